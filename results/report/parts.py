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
    rows = []
    told = [group for group in source.groups if any(part is not None for part in _parts(source.breakdown(group)))]
    some, of = kept(sorted(told, key=lambda g: (by_size(g), g.devices, g.label)), LAYOUTS)
    for group in some:
        b = source.breakdown(group)
        shares = [number(None if part is None else part / b.step_s, "{:.1f}", 100) for part in _parts(b)]
        rows.append(
            (
                text(source.name(group)),
                number(b.step_s, "{:,.1f}", 1e3),
                *shares,
                _residual(b),
                number(b.bubble_share, "{:.1f}", 100),
                number(b.bubble_share_theory, "{:.1f}", 100),
            )
        )
    keep = [i for i in range(len(COLUMNS)) if any(row[i].value is not None for row in rows)]
    return (
        Table(
            "parts",
            "Where the time of a step went",
            tuple(COLUMNS[i] for i in keep),
            tuple(tuple(row[i] for i in keep) for row in rows),
            "% of the step, medians over runs; - was not measured and is in compute. Ranks that wait "
            "for slower ones count "
            "that as exposed comm or bubble.",
            of,
        )
        if rows
        else None
    )


def _parts(b: Breakdown) -> tuple[float | None, ...]:
    return b.compute_s, b.exposed_comm_s, b.exposed_comm_min_s, b.bubble_s, b.data_s, b.optimizer_s, b.outer_s


def _residual(b: Breakdown) -> Cell:
    if b.residual_s is None:
        return number(None, "{:.1f}")
    share = 100 * b.residual_s / b.step_s
    return Cell(f"{share:.1f}{' !' * bool(b.residual_flagged)}", share)
