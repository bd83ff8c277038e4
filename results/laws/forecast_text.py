"""The parts of a report that look ahead: optima, approaches 1 and 2, forecasts, held-out rows, the run to add next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .forecast import Calibration, LawScore
from .isoflop import Frontier, FrontierOptimum, Vertex
from .next_run import NextRun
from .optimum import Optimum
from .predictions import Holdout, Prediction
from .text import number, span, table


def below(what: str, reached: float | None, level: float) -> Iterator[str]:
    """The warning where an interval covers less than it says."""
    if reached is not None and reached < level:
        yield f"  WARNING: {what} covered {reached:.0%}, not {level:.0%}: believe no interval here beyond that"


def optima(best: Sequence[Optimum], convention: str, level: float) -> Iterator[str]:
    if not best:
        return
    pct = f"{level:.0%} by run"
    yield f"\ncompute optimum ({convention})"
    yield from table(
        ["FLOPs", "N*", pct, "D*", pct],
        [
            [f"{o.flops:.3g}", number(o.params), span(o.params_interval), number(o.tokens), span(o.tokens_interval)]
            for o in best
        ],
    )
    last = best[-1]
    if last.exponent is not None:
        yield f"  N* ~ C^{last.exponent:.3f} {span(last.exponent_interval)}"
    yield from (f"  {note}" for note in dict.fromkeys(o.note for o in best) if note)


def frontier(f: Frontier, pct: str) -> Iterator[str]:
    of = "budgets" if f.method == "isoflop" else "points of the envelope"
    yield (
        f"\n{f.method}: N* = G C^a from {len(f.flops)} {of}, a = {f.exponent:.3f} {span(f.exponent_interval)}, "
        f"G = {number(f.coefficient)} {span(f.coefficient_interval)}; D* = C / ({f.flops_per_nd:g} N*)"
    )
    if len(f.flops) == 2:
        yield "  WARNING: a line through two points shows nothing of how far it holds, and has no interval; add budgets"
    if f.vertices:
        yield from table(
            ["C", "N at the minimum", pct, "D", pct, "loss", pct, "sizes", "curvature"],
            list(map(_vertex_cells, f.vertices)),
        )
    if f.targets:
        yield from table(["target C", "N*", pct, "D*", pct, "C / largest"], list(map(_target_cells, f.targets)))
    yield from (f"  left out: {w}" for w in f.left_out)


def _vertex_cells(v: Vertex) -> list[str]:
    return [
        f"{v.flops:.3g}",
        number(v.params),
        span(v.params_interval),
        number(v.tokens),
        span(v.tokens_interval),
        number(v.loss),
        span(v.loss_interval),
        str(v.sizes),
        number(v.curvature, 3),
    ]


def _target_cells(t: FrontierOptimum) -> list[str]:
    return [
        f"{t.flops:.3g}",
        number(t.params),
        span(t.params_interval),
        number(t.tokens),
        span(t.tokens_interval),
        f"{t.beyond:.3g}",
    ]


def laws(scores: Sequence[LawScore], calibration: Calibration | None) -> Iterator[str]:
    """The score of each law above the cuts, its weight, and the coverage that was reached there."""
    if scores:
        yield "\nlaws, out of sample above rolling compute cuts"
        yield from table(
            ["law", "rms log error", "weight"], [[s.law, number(s.rmse), f"{s.weight:.2f}"] for s in scores]
        )
        yield from (f"  {s.law}: {s.error}" for s in scores if s.error)
    if calibration:
        k = calibration
        plain = "" if k.plain is None else f"plain bootstrap {k.plain:.0%}, "
        yield (
            f"  coverage reached at nominal {k.level:.0%} over {k.rows} rows above {k.cuts} cuts: {plain}"
            f"stacked {k.stacked:.0%}, calibrated {k.calibrated:.0%} (intervals scaled by {k.scale:.2f} sd)"
        )
        yield from below("the calibrated intervals above the rolling cuts", k.calibrated, k.level)


def next_runs(candidates: Sequence[NextRun]) -> Iterator[str]:
    if not candidates:
        return
    yield "\nrun to add next"
    yield from table(
        ["N", "D", "device-hours", "narrows by", "per 1000 device-hours"],
        [
            [
                number(n.params),
                number(n.tokens),
                number(n.device_hours),
                f"{n.narrows:.1%}",
                f"{1000 * n.narrows_per_device_hour:.3g}",
            ]
            for n in candidates[:4]
        ],
    )
    most = max(candidates, key=lambda n: n.narrows)
    yield (
        f"  narrowing most within the budget: N = {number(most.params)}, D = {number(most.tokens)}, "
        f"{number(most.device_hours)} device-hours, by {most.narrows:.1%}"
    )


def forecasts(runs: Sequence[Prediction], scores: Sequence[LawScore], level: float) -> Iterator[str]:
    """Runs without a loss: the stack's point, its calibrated interval, and how far beyond the table they lie."""
    if not runs:
        return
    first = runs[0]
    yield f"\nforecast by the stack of {', '.join(f'{s.law} {s.weight:.2f}' for s in scores if s.weight >= 0.005)}"
    yield from table(_head(first, f"calibrated {level:.0%}"), list(map(_cells, runs)))
    if best := _optima_of_budgets(runs):
        yield f"  the optimum of a budget: {', '.join(best)} FLOPs"
    if first.why_not:
        yield f"  no interval: {first.why_not}"
    yield from (f"  WARNING: {note}" for note in dict.fromkeys(p.note for p in runs) if note)


def _optima_of_budgets(runs: Sequence[Prediction]) -> list[str]:
    return [f"{number(p.columns['params'])} of {p.target_flops:.3g}" for p in runs if p.target_flops is not None]


def _head(first: Prediction, pct: str) -> list[str]:
    extent = "compute" if {"params", "tokens"} <= set(first.columns) else "extent"
    beyond = (extent if role == "extent" else role for role in first.beyond)
    return [*first.columns, "forecast", pct, "width", *(f"{name} / largest" for name in beyond), "nearest run"]


def _cells(p: Prediction) -> list[str]:
    return [
        *(number(v) for v in p.columns.values()),
        number(p.point),
        "-" if p.low is None else span((p.low, p.high)),
        "-" if p.width is None else f"{p.width:.1%}",
        *(f"{v:.3g}" for v in p.beyond.values()),
        ", ".join(number(v, 3) for v in p.nearest.values()) + f" (within {p.nearest_factor:.3g}x)",
    ]


def holdout(h: Holdout | None, law: str, level: float, stacked: bool) -> Iterator[str]:
    """Held-out rows: how the stack forecast them, or the law alone where no stack was made."""
    if h is None:
        return
    errors = f"rms log error {number(h.rmse_log)}, mean relative error {h.relative_error:.2%}"
    yield f"\nheld out: {h.rows} rows, forecast by {'the stack' if stacked else law}: {errors}"
    if h.calibrated_coverage is not None:
        yield (
            f"  covered by the calibrated {level:.0%} interval: {h.calibrated_coverage:.0%}, "
            f"width {h.calibrated_width:.1%}, interval score {number(h.calibrated_score)}"
        )
        yield from below("the calibrated intervals of the held-out rows", h.calibrated_coverage, level)
    if stacked:
        yield f"  {law} alone: rms log error {number(h.law_rmse_log)}, mean relative error {h.law_relative_error:.2%}"
    if h.plain_coverage is not None:
        plain = f"{h.plain_coverage:.0%}, interval score {number(h.plain_score)}"
        yield f"  covered by the plain bootstrap of {law}: {plain}"
