"""How DiLoCo's loss scales with model size N and replicas M: L = A N^alpha M^beta (arXiv 2503.09799, table 10),
beside data parallel's L = A N^alpha (table 7), both with intervals over runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ..efficiency.workload import DATA, OUTER, RECIPE
from ..laws.base import get_law
from ..laws.fit import Fit, fit, with_profiles
from ..laws.solver import Objective
from .drawing import Drawn, Undrawn, legend, log_scale, look, new_figure, short
from .losses import SAME, law_rows, loss_column, loss_name
from .source import Source, label

TITLE = "DiLoCo: loss against model size and replicas"
NEEDS = (
    "runs with one outer algorithm, H and compression at equal tokens, or equal tokens per parameter, of two sizes "
    "and two M at least, four (N, M) in all (studies/diloco.toml)"
)
DRAWS = 1000
HELD = ("outer_algorithm", "outer_sync_every", "outer_compression")  # an L(N, M) is of one of each
TUNED = tuple(name for name in (*DATA, *RECIPE, *OUTER) if name not in HELD and name != "steps")


def diloco_law(source: Source) -> list[Drawn | Undrawn]:
    rows, budget = _sweep(source)
    points = {(row["params_total"], row["outer_replicas"]) for row in rows}
    if len(points) < 4 or min(len({p[i] for p in points}) for i in (0, 1)) < 2:
        return [Undrawn(TITLE, f"{NEEDS}; there are {len(points)}")]
    sizes = {row["params_total"] for row in rows}
    plain = [
        row
        for row in _able(source, outer=False)
        if row["params_total"] in sizes and all(row[n] == rows[0][n] for n in SAME) and budget in _budgets(row)
    ]
    column = loss_column(rows + plain)
    outer, base = _best(rows, column), _best(plain, column)
    try:
        law = _fitted("diloco_joint", outer, column, {"params": "params_total", "replicas": "outer_replicas"}, source)
    except ValueError as error:
        return [Undrawn(TITLE, f"{NEEDS} ({error})")]
    alone, why = None, "data parallel is there at fewer than three sizes"
    if len({row["params_total"] for row in base}) >= 3:
        try:
            alone, why = _fitted("diloco", base, column, {"params": "params_total"}, source), ""
        except ValueError as error:
            why = f"data parallel: {error}"
    figure, (axes,) = new_figure(7.2, 4.4)
    grid = np.geomspace(min(sizes) / 1.1, max(sizes) * 1.1, 40)
    replicas = sorted({row["outer_replicas"] for row in outer})
    handles, names = [], []
    for i, m in enumerate([None, *replicas]):
        some = base if m is None else [row for row in outer if row["outer_replicas"] == m]
        one, dodge = look(i), 1.02 ** (i - len(replicas) / 2)  # points of one size stand side by side
        if not some:
            continue
        axes.plot(
            [row["params_total"] * dodge for row in some],
            [row[column] for row in some],
            **one | {"linestyle": "none"},
            zorder=3,
        )
        fitted = alone if m is None else law
        if fitted is not None:
            at = {"params": grid} | ({} if m is None else {"replicas": np.full(len(grid), float(m))})
            axes.plot(grid, fitted.predict(at), color=one["color"], linestyle=one["linestyle"], linewidth=1.2)
            if fitted.draws is not None:
                low, high = np.exp(np.nanpercentile(fitted.log_predict(at, fitted.draws), _ends(fitted), axis=0))
                axes.fill_between(grid, low, high, color=one["color"], alpha=0.12, linewidth=0)
        handles.append(axes.plot([], [], **one if fitted is not None else one | {"linestyle": "none"})[0])
        names.append("data parallel" if m is None else f"M = {m}")
    log_scale(axes, "x")
    log_scale(axes, "y", lambda value, _: f"{value:.3g}")
    axes.set(xlabel="parameters N", ylabel=loss_name(column))
    legend(figure, handles, names)
    laws = [law] + ([alone] if alone is not None else [])
    known = [one for one in laws if one.draws is not None]
    refused = list(dict.fromkeys(one.no_draws for one in laws if one.draws is None))
    held = ", ".join(f"{name.removeprefix('outer_').replace('_', ' ')} {label(outer[0][name])}" for name in HELD)
    return [Drawn(
        "diloco-law", TITLE, figure, len(outer) + len(base),
        "; ".join(([f"bands and brackets: {law.level:.0%} of the law by {DRAWS} resamples of runs, without a run's "
                    "noise"] if known else []) + [f"none: {one}" for one in refused]),
        f"{held}; {_said(budget, outer)} in every run; of each (N, M) the setting with the lowest mean loss, as a "
        "sweep is read. N: all parameters. Least squares on log loss, as in the paper",
        " ".join(filter(None, [
            f"One point a run. L = A N^alpha M^beta: {_values(law)}.",
            f"Data parallel, L = A N^alpha: {_values(alone)}." if alone is not None else f"No line: {why}.",
            _penalty(outer, base, column), "No constant term: it holds over the sizes drawn, not far beyond.",
        ])),
    )]  # fmt: skip


def _able(source: Source, outer: bool) -> list[dict]:
    return [
        row
        for row in source.ok
        if ((row["outer_algorithm"] or "none") != "none") == outer
        and all(row[name] for name in ("params_total", "tokens_seen", "loss", "outer_replicas" if outer else "loss"))
    ]


def _budgets(row: dict) -> tuple[tuple[str, float], ...]:
    """What the law may hold fixed: the tokens, or the tokens per parameter to 10%."""
    ratio = row["tokens_seen"] / row["params_total"]
    return ("tokens", row["tokens_seen"]), ("ratio", float(np.round(np.log(ratio) / np.log(1.1))))


def _sweep(source: Source) -> tuple[list[dict], tuple[str, float]]:
    """The runs of one algorithm, H, compression and budget that hold most (N, M)."""
    kinds: dict[tuple, list[dict]] = defaultdict(list)
    for row in _able(source, outer=True):
        for budget in _budgets(row):
            kinds[(*(row[name] for name in (*SAME, *HELD)), budget)].append(row)
    if not kinds:
        return [], ("tokens", 0)
    most = max(
        kinds,
        key=lambda key: (len({(r["params_total"], r["outer_replicas"]) for r in kinds[key]}), len(kinds[key]), key[-1]),
    )
    return kinds[most], most[-1]


def _best(rows: Sequence[dict], column: str) -> list[dict]:
    """Of each (N, M) the runs of the setting with the lowest mean loss."""
    cells: dict[tuple, dict[tuple, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row["params_total"], row["outer_replicas"]][tuple(row[name] for name in TUNED)].append(row)
    return [
        row
        for settings in cells.values()
        for row in min(settings.values(), key=lambda some: np.mean([one[column] for one in some]))
    ]


def _fitted(law: str, rows: Sequence[dict], column: str, roles: dict[str, str], source: Source) -> Fit:
    given = law_rows(rows, column, roles)
    return with_profiles(
        fit(get_law(law), given, objective=Objective("squares"), bootstrap_draws=DRAWS, level=source.level)
    )


def _ends(law: Fit) -> list[float]:
    return [50 * (1 - law.level), 50 * (1 + law.level)]


def _values(law: Fit) -> str:
    """Parameters with their intervals; no number for what the table does not identify."""
    lost = {one.name for one in law.profiles if not one.identified}
    bounds = None if law.draws is None else np.nanpercentile(law.natural_draws(), _ends(law), axis=0)
    said = []
    for i, (name, value) in enumerate(law.natural.items()):
        span = "" if bounds is None else f" [{bounds[0][i]:.3g}, {bounds[1][i]:.3g}]"
        said.append(f"{name} not identified{span}" if name in lost else f"{name} = {value:.4g}{span}")
    return ", ".join(said) + f"; rms log residual {np.sqrt(np.mean(law.residuals**2)):.2%}"


def _penalty(outer: Sequence[dict], base: Sequence[dict], column: str) -> str:
    """How far each M lies above data parallel at the largest size that has both."""
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


def _said(budget: tuple[str, float], rows: Sequence[dict]) -> str:
    name, value = budget
    ratio = np.median([row["tokens_seen"] / row["params_total"] for row in rows])
    return f"{short(value)} tokens" if name == "tokens" else f"about {short(ratio)} tokens per parameter"
