"""How DiLoCo's loss scales with model size N and replicas M: L = A N^alpha M^beta (arXiv 2503.09799, table 10),
beside data parallel's L = A N^alpha (table 7), both with intervals over runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..efficiency.workload import DATA, OUTER, RECIPE, has_outer_loop
from ..laws.base import get_law
from ..laws.fit import Fit, fit, with_profiles
from ..laws.solver import Objective
from .drawing import Drawn, Figures, Undrawn, legend, log_scale, look, new_figure, short
from .losses import SAME, law_rows, loss_column, loss_name
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
    points = {(row["params_total"], row["outer_replicas"]) for row in sweep.rows}
    if len(points) < 4 or any(len(set(values)) < 2 for values in zip(*points, strict=True)):
        return [Undrawn(TITLE, f"{NEEDS}; there are {len(points)}")]
    plain = _plain_rows(source, sweep)
    column = loss_column([*sweep.rows, *plain])
    outer, base = _best(sweep.rows, column), _best(plain, column)
    try:
        law = _fitted("diloco_joint", outer, column, {"params": "params_total", "replicas": "outer_replicas"}, source)
    except ValueError as error:
        return [Undrawn(TITLE, f"{NEEDS} ({error})")]
    alone, why = _plain_law(base, column, source)
    chart = _Chart(column, sorted({row["params_total"] for row in sweep.rows}))
    replicas = sorted({row["outer_replicas"] for row in outer})
    dodges = [1.02 ** (index - len(replicas) / 2) for index in range(len(replicas) + 1)]  # sizes stand side by side
    chart.add(_Line("data parallel", base, alone, None), look(0), dodges[0])
    for index, m in enumerate(replicas, 1):
        rows = [row for row in outer if row["outer_replicas"] == m]
        chart.add(_Line(f"M = {m}", rows, law, m), look(index), dodges[index])
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
    sizes, first = {row["params_total"] for row in sweep.rows}, sweep.rows[0]
    return [
        row
        for row in _able(source, outer=False)
        if row["params_total"] in sizes
        and all(row[name] == first[name] for name in SAME)
        and sweep.budget in _budgets(row)
    ]


def _plain_law(base: Sequence[Mapping], column: str, source: Source) -> tuple[Fit | None, str]:
    """The law of data parallel, or why there is none."""
    if len({row["params_total"] for row in base}) < 3:
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


class _Chart:
    """Loss over size, a line for each number of replicas."""

    def __init__(self, column: str, sizes: Sequence[float]) -> None:
        self.figure, (self.axes,) = new_figure(7.2, 4.4)
        self.column = column
        self.grid = np.geomspace(sizes[0] / 1.1, sizes[-1] * 1.1, 40)
        self.handles: list[Line2D] = []
        self.names: list[str] = []

    def add(self, line: _Line, style: dict, dodge: float) -> None:
        """dodge: a factor of N, so that points of one size are side by side."""
        if not line.rows:
            return
        points = style | {"linestyle": "none"}
        sizes = [row["params_total"] * dodge for row in line.rows]
        self.axes.plot(sizes, [row[self.column] for row in line.rows], **points, zorder=3)
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
    drawn = [law for law in laws if law.draws is not None]
    refused = dict.fromkeys(law.no_draws for law in laws if law.draws is None)
    bands = f"bands and brackets: {laws[0].level:.0%} of the law by {DRAWS} resamples of runs, without a run's noise"
    return "; ".join([*([bands] if drawn else []), *(f"none: {why}" for why in refused)])


def _able(source: Source, outer: bool) -> list[Mapping]:
    """The ok runs that a law can be fitted to, of those with an outer loop or of the others."""
    needed = ("params_total", "tokens_seen", "loss", *(["outer_replicas"] if outer else []))
    return [row for row in source.ok if has_outer_loop(row) == outer and all(row[name] for name in needed)]


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
    def size(self) -> tuple[int, int, _Budget]:
        """Different (N, M), then runs."""
        return len({(row["params_total"], row["outer_replicas"]) for row in self.rows}), len(self.rows), self.budget


def _sweep(source: Source) -> _Sweep:
    """The largest one."""
    kinds: dict[tuple, list[Mapping]] = defaultdict(list)
    for row in _able(source, outer=True):
        for budget in _budgets(row):
            kinds[(*(row[name] for name in (*SAME, *HELD)), budget)].append(row)
    sweeps = [_Sweep(rows, key[-1]) for key, rows in kinds.items()]
    return max(sweeps, key=lambda sweep: sweep.size, default=_Sweep([], _Budget("tokens", 0)))


def _best(rows: Sequence[Mapping], column: str) -> list[Mapping]:
    """For each (N, M) the runs of the setting with the lowest mean loss."""
    cells: dict[tuple, dict[tuple, list[Mapping]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row["params_total"], row["outer_replicas"]][tuple(row[name] for name in TUNED)].append(row)
    return [
        row
        for settings in cells.values()
        for row in min(settings.values(), key=lambda some: np.mean([one[column] for one in some]))
    ]


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
    shared = {r["params_total"] for r in outer} & {r["params_total"] for r in base}
    if not shared:
        return ""
    top = max(shared)
    below = np.mean([row[column] for row in base if row["params_total"] == top])
    by_m = defaultdict(list)
    for row in outer:
        if row["params_total"] == top:
            by_m[row["outer_replicas"]].append(row[column])
    parts = ", ".join(f"M = {m} {np.mean(losses) / below - 1:+.2%}" for m, losses in sorted(by_m.items()))
    return f"Against data parallel at N = {short(top)}: {parts}."


def _budget_text(budget: _Budget, rows: Sequence[Mapping]) -> str:
    ratio = np.median([row["tokens_seen"] / row["params_total"] for row in rows])
    return f"{short(budget.value)} tokens" if budget.name == "tokens" else f"about {short(ratio)} tokens per parameter"
