"""How true and how sharp forecasts are: published sweeps with the top of their compute held out, and simulated tables.

    python tests/benchmarks/forecast_intervals.py ../shared/data            the table of docs/laws.md
    python tests/benchmarks/forecast_intervals.py ../shared/data --inner 1  the rows held out above are taken away
                                                                            first: what the method was chosen on
    python tests/benchmarks/forecast_intervals.py --simulated 20            laws without a published sweep

Per sweep and method: share of the held-out rows inside the nominal 95% interval, its median width (high/low - 1) and
the mean interval score in logs (width + 40 times what lies outside; less is better). plain: pairs bootstrap of the
first law. rival: the new-run interval of simple-scaling-laws (PyPI), law separable-power; left out where the package
is not installed. Nothing here is fitted to held-out rows, and nothing is asserted.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from scalade.results.laws import Rows, fit, forecast, get_law, rows
from scalade.results.laws.ahead import STACKS
from scalade.results.laws.predictions import score

LEVEL = 0.95
DRAWS = 400  # resamples of plain and rival
TOP = 0.85  # of the rows by compute; the rest is held out
HEAD = ("sweep", "rows fitted / held out", "reach")


def sweeps(folder: Path) -> Iterator[tuple[str, str, Rows]]:
    """(name, law, rows) of every published sweep in the folder that can be held against its largest runs."""
    law, own, nd = get_law("chinchilla"), dict(params="N", tokens="D"), dict(params="n_params", tokens="n_tokens")
    t = pd.read_csv(folder / "chinchilla_epoch.csv")
    yield "chinchilla", law.name, rows(law, t[~t.outlier], nd, "loss")
    yield "farseer", law.name, rows(law, pd.read_csv(folder / "farseer_dense.csv"), nd, "loss_bits_per_char")
    t = pd.read_csv(folder / "datablations_c4_182.csv")
    yield "datablations, up to 4 epochs", law.name, rows(law, t[t.epochs <= 4], own, "loss")
    t = pd.read_csv(folder / "gadre_losses_long.csv")
    for name in sorted(t.dataset.unique()):
        yield f"gadre {name}", law.name, rows(law, t[(t.dataset == name) & (t.val == "c4_val")], own, "loss")
    t = pd.read_csv(folder / "porian_isoflop_points.csv")
    for (file, *rest), some in t.groupby(["file", "warmup", "decay", "param_count"]):
        source = file.replace("summary_df", "").replace("kaplan_tuned_hparams", "tuned").strip("_") or "rw"
        yield f"porian {source} {' '.join(rest)}", law.name, rows(law, some, own, "loss")
    law, t = get_law("diloco_joint"), pd.read_csv(folder / "diloco_losses.csv")
    names = dict(params="n_params_nominal", replicas="replicas_M")
    yield "diloco, M of 1 to 8", law.name, rows(law, t[t.replicas_M > 0], names, "loss")


def simulated(name: str, seed: int, bend: float) -> Rows:
    """A table of a law without a published sweep; bend: a smooth deviation in its first column, which it lacks."""
    rng, n = np.random.default_rng(seed), 40
    N, D = np.exp(rng.uniform(*np.log((3e7, 3e9)), n)), np.exp(rng.uniform(*np.log((1e9, 1e11)), n))
    experts = 2.0 ** rng.integers(1, 9, n)
    columns, y = {
        "routed": (
            dict(params=N, experts=experts),
            10 ** (-0.082 * np.log10(N) - 0.108 * np.log10(experts) + 0.009 * np.log10(N) * np.log10(experts) + 1.104),
        ),
        "step_law_lr": (dict(params=N, tokens=D), 1.79 * N**-0.713 * D**0.307),
        "step_law_batch": (dict(tokens=D), 0.58 * D**0.571),
        "diloco_joint": (dict(params=N, replicas=2.0 ** rng.integers(0, 4, n)), None),
    }[name]
    if y is None:
        y = 19.226 * N**-0.0985 * columns["replicas"] ** 0.0116
    first = np.log(next(iter(columns.values())))
    y = y * np.exp(bend * np.sin(first - first.min()) + 0.004 * rng.standard_normal(n))
    return Rows(columns, y, np.arange(n), np.arange(n))


def split(law: str, table: Rows, inner: int = 0) -> tuple[Rows, Rows]:
    """Rows up to the `TOP` quantile of compute and those above; inner: of what is left after as many such splits."""
    for _ in range(inner + 1):
        extent = get_law(law).extent(table.columns)
        top = extent > np.quantile(extent, TOP)
        table, above = table.take(~top), table.take(top)
    return table, above


def plain(law: str, low: Rows, top: Rows) -> tuple[np.ndarray, np.ndarray]:
    f = fit(law, low, bootstrap_draws=DRAWS)
    if f.draws is None:
        raise ValueError(f.no_draws)
    tail = 50 * (1 - LEVEL)
    return tuple(np.nanpercentile(f.log_predict(top.columns, f.draws), [tail, 100 - tail], axis=0))


def ours(law: str, low: Rows, top: Rows) -> tuple[np.ndarray, np.ndarray]:
    stack = next((s for s in STACKS if law in s), (law,))
    c = forecast(list(dict.fromkeys([law, *stack])), low, get_law(law).extent(low.columns), level=LEVEL)
    if c.calibration is None:
        raise ValueError(c.why_not)
    _, a, b = c.predict(top.columns)
    return np.log(a), np.log(b)


def rival(law: str, low: Rows, top: Rows) -> tuple[np.ndarray, np.ndarray]:
    import polars as pl
    import simple_scaling_laws as other

    def frame(table):
        first, second = get_law(law).roles
        data = {"model_size__a": table.columns[first], "dataset_size__b": table.columns[second]}
        return data | {"point_id": [str(i) for i in range(len(table.y))]}

    model = other.fit(
        pl.DataFrame(frame(low) | {"training_run_id": [str(i) for i in range(len(low.y))], "test_loss__y": low.y}),
        law="separable-power",
        n_draws=DRAWS,
        seed=0,
    )
    tail = (1 - LEVEL) / 2
    found = model.predict(pl.DataFrame(frame(top)), quantiles=[tail, 1 - tail], kind="new-run")
    return tuple(np.log(found[f"test_loss__y__q{q}"].to_numpy()) for q in ("025", "975"))


def judged(method, law: str, low: Rows, top: Rows) -> tuple[float, float, float] | str:
    """Coverage, median width and mean score, or why there are none."""
    try:
        a, b = method(law, low, top)
    except (ValueError, ImportError) as error:
        return type(error).__name__ if isinstance(error, ImportError) else str(error)
    y = np.log(top.y)
    return float(np.mean((a <= y) & (y <= b))), float(np.median(np.expm1(b - a))), score(y, a, b, LEVEL)


def cell(found) -> str:
    return "-" if isinstance(found, str) else f"{found[0]:.0%}, {found[1]:.1%}, {found[2]:.4f}"


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def published(folder: Path, inner: int, only: str, methods) -> None:
    row(*HEAD, *methods, "seconds, ours")
    row(*["---"] * (4 + len(methods)))
    won, held, kept = 0, 0, 0
    for name, law, table in sweeps(folder):
        if only not in name:
            continue
        low, top = split(law, table, inner)
        extent = get_law(law).extent
        found, spent = {}, 0.0
        for method in methods:
            began = time.process_time()
            found[method] = judged(METHODS[method], law, low, top)
            spent = time.process_time() - began if method == "ours" else spent
        reach = extent(top.columns).max() / extent(low.columns).max()
        counts = f"{len(low.y)} / {len(top.y)}"
        row(name, counts, f"{reach:.1f}x", *(cell(found[m]) for m in methods), f"{spent:.1f}")
        if isinstance(found.get("ours", ""), str):
            continue
        kept, held = kept + (found["ours"][0] >= 0.9), held + 1
        if not isinstance(found.get("rival", ""), str):
            won += found["ours"][2] < found["rival"][2]
    if held:
        print(f"\nours covers 90% or more on {kept} of {held}; its score is below the rival's on {won}")


def of_simulated(tables: int) -> None:
    row("law", "tables", "plain", "ours")
    row(*["---"] * 4)
    for bend in (0.0, 0.02):
        for name in ("routed", "step_law_lr", "step_law_batch", "diloco_joint"):
            found = []
            for seed in range(tables):
                low, top = split(name, simulated(name, seed, bend))
                found.append([judged(METHODS[m], name, low, top) for m in ("plain", "ours")])
            mean = [tuple(np.mean([f[k] for f in found], 0)) for k in (0, 1)]
            row(name + (", bent" if bend else ""), str(tables), *map(cell, mean))


METHODS = {"plain": plain, "ours": ours, "rival": rival}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="where the published tables are")
    parser.add_argument("--inner", type=int, default=0, help="take this many top splits away first")
    parser.add_argument("--only", default="", help="sweeps whose name holds this")
    parser.add_argument("--methods", default="plain,ours,rival", help="which of these, with commas")
    parser.add_argument("--simulated", type=int, default=0, metavar="TABLES", help="of each law instead")
    asked = parser.parse_args()
    if asked.simulated:
        of_simulated(asked.simulated)
        return
    if asked.folder is None:
        parser.error("name the folder of the published tables, or --simulated TABLES")
    methods = asked.methods.split(",")
    if "rival" in methods and importlib.util.find_spec("simple_scaling_laws") is None:
        print("simple-scaling-laws is not installed: no rival", file=sys.stderr)
        methods.remove("rival")
    published(asked.folder, asked.inner, asked.only, methods)


if __name__ == "__main__":
    main()
