"""Where the time of a step went, in figures: every part of it, and the bubble beside the formula's."""

from __future__ import annotations

from ..efficiency.breakdown import RESIDUAL_FLAG, Breakdown
from .source import Source, by_size
from .tables import LAYOUTS, Cell, Table, kept, number, text

COLUMNS = (
    ("layout", ""),
    ("step ms", "slowest rank, median over runs"),
    ("compute", "forward and backward, without the waits that were measured; mean over the ranks, as all parts"),
    ("exposed comm", "waited for collectives: transfers that nothing hid, and slower ranks"),
    ("least rank", "exposed comm of the rank that waited least: the mean has more by what it waited for others"),
    ("bubble", "waited for other pipeline stages, transfers of activations included"),
    ("data", "waiting for data"),
    ("optimizer", "clipping and update"),
    ("outer", "outer steps, the part waited for"),
    ("residual", f"in no part; ! above {RESIDUAL_FLAG:.0%}"),
    ("bubble of f+b", "of forward and backward, as measured"),
    ("by formula", "(p-1)/(vm+p-1)"),
)


def table(source: Source) -> Table | None:
    """One row for each group of which a part was measured; percentages of the step."""
    measured = [g for g in source.groups if any(part is not None for part in _parts(source.breakdown(g)))]
    if not measured:
        return None
    shown, of = kept(sorted(measured, key=lambda g: (by_size(g), g.devices, g.label)), LAYOUTS)
    return Table(
        "parts",
        "Where the time of a step went",
        COLUMNS,
        tuple(_row(source.name(group), source.breakdown(group)) for group in shown),
        "% of the step, medians over runs; - was not measured and is in compute. Ranks that wait for slower ones count "
        "that as exposed comm or bubble.",
        of,
    ).without_empty_columns()


def _row(name: str, b: Breakdown) -> tuple[Cell, ...]:
    return (
        text(name),
        number(b.step_s, "{:,.1f}", 1e3),
        *(number(None if part is None else part / b.step_s, "{:.1f}", 100) for part in _parts(b)),
        _residual(b),
        number(b.bubble_share, "{:.1f}", 100),
        number(b.bubble_share_theory, "{:.1f}", 100),
    )


def _parts(b: Breakdown) -> tuple[float | None, ...]:
    return b.compute_s, b.exposed_comm_s, b.exposed_comm_min_s, b.bubble_s, b.data_s, b.optimizer_s, b.outer_s


def _residual(b: Breakdown) -> Cell:
    if b.residual_s is None:
        return number(None, "{:.1f}")
    share = 100 * b.residual_s / b.step_s
    return Cell(f"{share:.1f}" + (" !" if b.residual_flagged else ""), share)
