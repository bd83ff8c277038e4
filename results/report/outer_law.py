"""How DiLoCo's loss scales with model size N and replicas M: L = A N^alpha M^beta (arXiv 2503.09799, table 10),
beside data parallel's L = A N^alpha (table 7), both with intervals over runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..efficiency.workload import DATA, OUTER, RECIPE, has_outer_loop
from ..laws.base import get_law
from ..laws.fit import Fit, fit, with_profiles
from ..laws.solver import Objective
from ..schema.rows import distinct, values_in
from .comparable import SAME, has_all, law_rows, loss_column, loss_name, picked
from .drawing import Drawn, Figures, Undrawn, legend, log_scale, look, new_figure, short
from .source import Source, label

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

TITLE = "DiLoCo: loss against model size and replicas"
NEEDS = (
    "runs with one outer algorithm, H and compression at equal tokens, or equal tokens per parameter, of two sizes "
    "and two M at least, four (N, M) in all (studies/diloco.toml)"
)
DRAWS = 1000
HELD = ("outer_algorithm", "outer_sync_every", "outer_compression")  # an L(N, M) is of one of each
TUNED = tuple(name for name in (*DATA, *RECIPE, *OUTER) if name not in HELD and name != "steps")


def diloco_law(source: Source) -> Figures:
    sweep = _sweep(source)
    if not sweep.tells_a_law:
        return [Undrawn(TITLE, f"{NEEDS}; there are {len(sweep.points)}")]
    plain = _plain_rows(source, sweep)
    column = loss_column([*sweep.rows, *plain])
    outer, base = _best(sweep.rows, column), _best(plain, column)
    try:
        law = _fitted("diloco_joint", outer, column, {"params": "params_total", "replicas": "outer_replicas"}, source)
    except ValueError as error:
        return [Undrawn(TITLE, f"{NEEDS} ({error})")]
    alone, why = _plain_law(base, column, source)
    chart = _Chart(column, sorted(distinct(sweep.rows, "params_total")))
    chart.add_all([_Line("data parallel", base, alone, None), *_lines(outer, law)])
    chart.finish()
    held = ", ".join(f"{name.removeprefix('outer_').replace('_', ' ')} {label(outer[0][name])}" for name in HELD)
    reading = [
        f"One point a run. L = A N^alpha M^beta: {_values(law)}.",
        f"Data parallel, L = A N^alpha: {_values(alone)}." if alone is not None else f"No line: {why}.",
        _penalty(outer, base, column),
        "No constant term: it holds over the sizes drawn, not far beyond.",
    ]
    return [
        Drawn(
            "diloco-law",
            TITLE,
            chart.figure,
            len(outer) + len(base),
            _interval_text([law] if alone is None else [law, alone]),
            f"{held}; {_budget_text(sweep.budget, outer)} in every run; of each (N, M) the setting with the lowest "
            "mean loss, as a sweep is read. N: all parameters. Least squares on log loss, as in the paper",
            " ".join(filter(None, reading)),
        )
    ]


def _plain_rows(source: Source, sweep: _Sweep) -> list[Mapping]:
    """Data parallel runs of the sizes, data and budget of the sweep."""
    sizes, data = distinct(sweep.rows, "params_total"), picked(sweep.rows[0], SAME)
    same = (row for row in _able(source, outer=False) if row["params_total"] in sizes and picked(row, SAME) == data)
    return [row for row in same if sweep.budget in _budgets(row)]


def _plain_law(base: Sequence[Mapping], column: str, source: Source) -> tuple[Fit | None, str]:
    """The law of data parallel, or why there is none."""
    if len(distinct(base, "params_total")) < 3:
        return None, "data parallel is there at fewer than three sizes"
    try:
        return _fitted("diloco", base, column, {"params": "params_total"}, source), ""
    except ValueError as error:
        return None, f"data parallel: {error}"


@dataclass(frozen=True)
class _Line:
    """The runs of one number of replicas (None: data parallel), and the law that is drawn through them."""

    name: str
    rows: Sequence[Mapping]
    law: Fit | None
    replicas: int | None


def _lines(rows: Sequence[Mapping], law: Fit) -> Iterator[_Line]:
    for m, of_m in _by(rows, "outer_replicas").items():
        yield _Line(f"M = {m}", of_m, law, m)


def _by(rows: Sequence[Mapping], column: str) -> dict[int, list[Mapping]]:
    """The rows of each value of the column, the smallest first."""
    groups = defaultdict(list)
    for row in rows:
        groups[row[column]].append(row)
    return dict(sorted(groups.items()))


class _Chart:
    """Loss over size, a line for each number of replicas."""

    def __init__(self, column: str, sizes: Sequence[float]) -> None:
        self.figure, (self.axes,) = new_figure(7.2, 4.4)
        self.column = column
        self.grid = np.geomspace(sizes[0] / 1.1, sizes[-1] * 1.1, 40)
        self.handles: list[Line2D] = []
        self.names: list[str] = []

    def add_all(self, lines: Sequence[_Line]) -> None:
        for index, line in enumerate(lines):
            if line.rows:
                self._add(line, look(index), dodge=1.02 ** (index - (len(lines) - 1) / 2))

    def _add(self, line: _Line, style: dict, dodge: float) -> None:
        """dodge: a factor of N, so that points of one size are side by side."""
        points = style | {"linestyle": "none"}
        sizes = [size * dodge for size in values_in(line.rows, "params_total")]
        self.axes.plot(sizes, values_in(line.rows, self.column), **points, zorder=3)
        if line.law is not None:
            self._add_law(line.law, line.replicas, style)
        self.handles.append(self.axes.plot([], [], **(points if line.law is None else style))[0])
        self.names.append(line.name)

    def _add_law(self, law: Fit, replicas: int | None, style: dict) -> None:
        at = {"params": self.grid}
        if replicas is not None:
            at["replicas"] = np.full(len(self.grid), float(replicas))
        self.axes.plot(self.grid, law.predict(at), color=style["color"], linestyle=style["linestyle"], linewidth=1.2)
        if law.draws is not None:
            low, high = np.exp(np.nanpercentile(law.log_predict(at, law.draws), _ends(law), axis=0))
            self.axes.fill_between(self.grid, low, high, color=style["color"], alpha=0.12, linewidth=0)

    def finish(self) -> None:
        log_scale(self.axes, "x")
        log_scale(self.axes, "y", lambda value, _: f"{value:.3g}")
        self.axes.set(xlabel="parameters N", ylabel=loss_name(self.column))
        legend(self.figure, self.handles, self.names)


def _interval_text(laws: Sequence[Fit]) -> str:
    refused = [law.no_draws for law in laws if law.draws is None]
    parts = [f"none: {why}" for why in dict.fromkeys(refused)]
    if len(refused) < len(laws):
        resampled = f"{laws[0].level:.0%} of the law by {DRAWS} resamples of runs, without a run's noise"
        parts.insert(0, f"bands and brackets: {resampled}")
    return "; ".join(parts)


def _able(source: Source, outer: bool) -> list[Mapping]:
    """The ok runs that a law can be fitted to, of those with an outer loop or of the others."""
    needed = ("params_total", "tokens_seen", "loss", *(["outer_replicas"] if outer else []))
    return [row for row in source.ok if has_outer_loop(row) == outer and has_all(row, needed)]


class _Budget(NamedTuple):
    """What the law holds fixed: `tokens`, or `ratio`, the tokens per parameter to 10%."""

    name: str
    value: float


def _budgets(row: Mapping) -> tuple[_Budget, _Budget]:
    ratio = row["tokens_seen"] / row["params_total"]
    return _Budget("tokens", row["tokens_seen"]), _Budget("ratio", float(np.round(np.log(ratio) / np.log(1.1))))


@dataclass(frozen=True)
class _Sweep:
    """Runs of one algorithm, H, compression and budget."""

    rows: list[Mapping]
    budget: _Budget

    @property
    def points(self) -> set[tuple]:
        """The different (N, M)."""
        return {picked(row, ("params_total", "outer_replicas")) for row in self.rows}

    @property
    def tells_a_law(self) -> bool:
        sizes, replicas = distinct(self.rows, "params_total"), distinct(self.rows, "outer_replicas")
        return len(self.points) >= 4 and min(len(sizes), len(replicas)) >= 2

    @property
    def size(self) -> tuple[int, int, _Budget]:
        """Different (N, M), then runs."""
        return len(self.points), len(self.rows), self.budget


def _sweep(source: Source) -> _Sweep:
    """The largest one."""
    kinds: dict[tuple, list[Mapping]] = defaultdict(list)
    for row in _able(source, outer=True):
        for budget in _budgets(row):
            kinds[(*picked(row, (*SAME, *HELD)), budget)].append(row)
    sweeps = [_Sweep(rows, key[-1]) for key, rows in kinds.items()]
    return max(sweeps, key=lambda sweep: sweep.size, default=_Sweep([], _Budget("tokens", 0)))


def _best(rows: Sequence[Mapping], column: str) -> list[Mapping]:
    """For each (N, M) the runs of the setting with the lowest mean loss."""
    cells: dict[tuple, dict[tuple, list[Mapping]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row["params_total"], row["outer_replicas"]][picked(row, TUNED)].append(row)
    best = (min(settings.values(), key=lambda some: np.mean(values_in(some, column))) for settings in cells.values())
    return list(chain.from_iterable(best))


def _fitted(law: str, rows: Sequence[Mapping], column: str, roles: dict[str, str], source: Source) -> Fit:
    table = law_rows(rows, column, roles)
    return with_profiles(
        fit(get_law(law), table, objective=Objective("squares"), bootstrap_draws=DRAWS, level=source.level)
    )


def _ends(law: Fit) -> list[float]:
    return [50 * (1 - law.level), 50 * (1 + law.level)]


def _values(law: Fit) -> str:
    """Parameters with their intervals; no number for one that the table does not identify."""
    unidentified = {one.name for one in law.profiles if not one.identified}
    bounds = None if law.draws is None else np.nanpercentile(law.natural_draws(), _ends(law), axis=0)
    texts = []
    for at, (name, value) in enumerate(law.natural.items()):
        span = "" if bounds is None else f" [{bounds[0][at]:.3g}, {bounds[1][at]:.3g}]"
        texts.append(f"{name} not identified{span}" if name in unidentified else f"{name} = {value:.4g}{span}")
    return ", ".join(texts) + f"; rms log residual {np.sqrt(np.mean(law.residuals**2)):.2%}"


def _penalty(outer: Sequence[Mapping], base: Sequence[Mapping], column: str) -> str:
    """By how much the loss of each M exceeds that of data parallel at the largest size that has both."""
    with_outer, without = _by(outer, "params_total"), _by(base, "params_total")
    shared = with_outer.keys() & without.keys()
    if not shared:
        return ""
    top = max(shared)
    below = np.mean(values_in(without[top], column))
    parts = ", ".join(
        f"M = {m} {np.mean(values_in(rows, column)) / below - 1:+.2%}"
        for m, rows in _by(with_outer[top], "outer_replicas").items()
    )
    return f"Against data parallel at N = {short(top)}: {parts}."


def _budget_text(budget: _Budget, rows: Sequence[Mapping]) -> str:
    ratio = np.median([row["tokens_seen"] / row["params_total"] for row in rows])
    return f"{short(budget.value)} tokens" if budget.name == "tokens" else f"about {short(ratio)} tokens per parameter"
