"""The tables of a report: layouts, runs, failures, runs that are not compared, and the environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, compress
from statistics import median

import numpy as np

from ..efficiency.series import Point, Series
from ..efficiency.workload import Group
from ..schema.columns import RUNS
from ..schema.rows import values_in
from ..stats.rank_intervals import Estimate
from ..table.held_out import refusal
from ..table.read import printable
from ..terminal import listed
from ..wording import count_of
from .layouts import throughput_estimate
from .source import Source, by_size, spread

MIB = 2.0**20
LAYOUTS, RUNS_SHOWN, REASONS = 500, 1000, 500  # rows of a table: a page of more opens slowly
VALUES = 8  # of one column of the environment
PER_CASE = ("launcher", "nodes", "world_size", "device_count")  # may vary: they are part of what is compared


@dataclass(frozen=True)
class Cell:
    """The text that is shown, and the value for sorting; a null value sorts last."""

    text: str
    value: float | str | None


@dataclass(frozen=True)
class Table:
    """columns: (header, explanation). note: under the title. of: the number of rows of which these are some; 0: all."""

    name: str
    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    of: int = 0

    @cached_property
    def numeric(self) -> tuple[bool, ...]:
        return tuple(
            any(isinstance(row[i].value, int | float) for row in self.rows)
            and not any(isinstance(row[i].value, str) for row in self.rows)
            for i in range(len(self.columns))
        )

    def without_empty_columns(self) -> Table:
        """The same without the columns in which every value is null."""
        by_column = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.columns)
        filled = [any(cell.value is not None for cell in cells) for cells in by_column]
        rows = tuple(tuple(compress(row, filled)) for row in self.rows)
        return replace(self, columns=tuple(compress(self.columns, filled)), rows=rows)


def kept(items: Sequence, most: int) -> tuple[list, int]:
    """At most so many of them, evenly spaced, with the first and the last; and of how many (0: all are kept)."""
    if len(items) <= most:
        return list(items), 0
    return [items[at] for at in np.linspace(0, len(items) - 1, most).round().astype(int)], len(items)


def layouts(source: Source) -> Table:
    """One row for each group of runs that repeat each other."""
    by_mode = {mode: _points_by_group(series) for mode, series in source.series.items() if series}
    held_out = not refusal(source.ok)
    columns = (
        ("model", ""),
        ("engine", ""),
        ("layout", ""),
        ("setting", "what tells it from others of its name"),
        ("ranks", ""),
        ("runs", "with status ok"),
        ("tokens/s", "median over runs, with its interval or range"),
        ("step ms", "median over runs"),
        *((f"{mode} eff.", "against the base of its family") for mode in by_mode),
        (source.convention.replace("mfu_", "MFU "), "of the peak; see the figure for the convention"),
        ("device MiB", "peak, fullest rank"),
        ("host MiB", "peak resident, fullest rank"),
        ("MB a step", "message bytes of one step, all ranks"),
        ("loss", "mean of the last tenth of the steps"),
        ("held-out", "loss at the end"),
    )
    shown, of = kept(sorted(source.groups, key=lambda g: (by_size(g), g.devices, g.label)), LAYOUTS)
    rows = tuple(
        _layout_row(source, group, [points.get(id(group)) for points in by_mode.values()], held_out) for group in shown
    )
    note = (
        f"Medians over runs. [low, high]: {source.level:.0%} interval over runs; [least .. most]: range, too few runs."
    )
    if not held_out:
        note += " No held-out losses: they are of different sequences, which `Every run` names."
    return Table("layouts", "Layouts", columns, rows, note, of).without_empty_columns()


def _points_by_group(series: Sequence[Series]) -> dict[int, Point]:
    """By id of the group."""
    points = chain.from_iterable(one.points for one in series)
    return {id(point.group): point for point in points}


def _layout_row(source: Source, group: Group, points: Sequence[Point | None], held_out: bool) -> tuple[Cell, ...]:
    """points: of the group in the series of each mode."""
    rate = throughput_estimate(source, group)
    return (
        text(group["model"]),
        text(group["engine"]),
        text(group.label),
        text(source.setting(group) or None),
        number(group.devices, "{:,.0f}"),
        number(len(group.rows), "{:.0f}"),
        Cell(f"{rate.value:,.0f}{_bounds(rate)}", rate.value),
        _middle(group, "step_time_s", "{:,.1f}", 1e3),
        *map(_efficiency, points),
        _middle(group, source.convention, "{:.2f} %", 100),
        _middle(group, "peak_memory_bytes", "{:,.0f}", 1 / MIB),
        _middle(group, "peak_host_memory_bytes", "{:,.0f}", 1 / MIB),
        _middle(group, "comm_bytes_per_step", "{:,.2f}", 1e-6),
        _middle(group, "loss", "{:.4f}"),
        _middle(group, "val_loss", "{:.4f}") if held_out else Cell("-", None),
    )


def _efficiency(point: Point | None) -> Cell:
    if point is None:
        return Cell("-", None)
    ratio = point.efficiency
    return Cell("1 (base)", 1.0) if ratio is None else Cell(f"{ratio.value:.3f}{_bounds(ratio, 3)}", ratio.value)


def runs(source: Source) -> Table:
    """Every run, of any status."""
    differ = refusal(source.ok)
    some, of = kept(source.rows, RUNS_SHOWN)
    columns = (
        ("run", ""),
        ("status", ""),
        ("model", ""),
        ("layout", ""),
        ("ranks", ""),
        ("seed", ""),
        ("tokens/s", ""),
        ("step ms", ""),
        ("p95 ms", "95th percentile of the timed steps"),
        ("loss", ""),
        ("held-out", ""),
        *((("held-out set", "val_hash: losses of one set compare"),) if differ else ()),
        ("wall s", ""),
        ("started (UTC)", ""),
    )
    rows = tuple(
        (
            text(r["run_id"]),
            text(r["status"]),
            text(r["model"]),
            text(r["layout"]),
            number(r["world_size"], "{:,.0f}"),
            number(r["seed"], "{:.0f}"),
            number(r["tokens_per_s"], "{:,.0f}"),
            number(r["step_time_s"], "{:,.1f}", 1e3),
            number(r["step_time_p95_s"], "{:,.1f}", 1e3),
            number(r["loss"], "{:.4f}"),
            number(r["val_loss"], "{:.4f}"),
            *((text(r["val_hash"]),) if differ else ()),
            number(r["wall_s"], "{:,.1f}"),
            text((r["started_at"] or "")[:19] or None),
        )
        for r in some
    )
    return Table("runs", "Runs" if of else "Every run", columns, rows, of=of)


def failures(source: Source) -> Table | None:
    """The runs without a result, and why."""
    failed = [row for row in source.rows if row["status"] != "ok"]
    if not failed:
        return None
    failed.sort(key=lambda r: (r["status"], r["reason"] or "", r["run_id"]))
    some, of = kept(failed, REASONS)
    columns = (
        ("status", ""),
        ("reason", ""),
        ("model", ""),
        ("layout", ""),
        ("ranks", ""),
        ("steps kept", "rows of the run in `steps`"),
        ("of", "steps asked for"),
        ("run", ""),
    )
    rows = tuple(
        (
            text(r["status"]),
            text(r["reason"] or "no reason was kept"),
            text(r["model"]),
            text(r["layout"]),
            number(r["world_size"], "{:,.0f}"),
            number(r["step_rows"], "{:,.0f}"),
            number(r["steps"], "{:,.0f}"),
            text(r["run_id"]),
        )
        for r in some
    )
    counts = Counter(values_in(failed, "status"))
    note = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    note += f" of {count_of(len(source.rows), 'run')}."
    return Table("failures", "Failures and skips", columns, rows, note, of)


def refusals(source: Source) -> Table | None:
    """Runs in no ratio, with the columns in which they differ."""
    columns = (("what", ""), ("why it is not compared", ""), ("base", ""), ("runs", ""))
    some, of = kept([one for one in source.refused if one.columns], REASONS)
    rows = tuple((text(one.what), text(one.why), text(one.base), text(listed(one.run_ids))) for one in some)
    note = "A ratio is formed only between runs of the same work."
    return Table("not-compared", "Not compared", columns, rows, note, of) if rows else None


def environment(source: Source) -> Table:
    """Each column of the environment, its values, and how many runs have each."""
    columns = (("fact", ""), ("value", ""), ("runs", "with this value, of those that ran"), ("", "more than one value"))
    ran = [row for row in source.rows if row["ranks_json"]] or list(source.rows)
    names = [column.name for column in RUNS["Environment"] if column.name != "ranks_json"]
    rows = [row for name in names for row in _values(name, ran)]
    return Table("environment", "Environment", columns, tuple(rows), "- : not known, or there is none on this machine.")


def _values(column: str, ran: Sequence[Mapping]) -> Iterator[tuple[Cell, ...]]:
    """A row for each value of the column, the commonest first."""
    counts = Counter(row[column] for row in ran if row[column] is not None)
    if not counts:
        yield text(column), Cell("-", None), Cell("0", 0), Cell("", "")
    varies = "varies" if len(counts) > 1 and column not in PER_CASE else ""
    for value, count in counts.most_common(VALUES):
        yield text(column), text(value), number(count, "{:,.0f}"), Cell(varies, varies)
    if len(counts) > VALUES:
        more = Cell(f"and {len(counts) - VALUES} more values", None)
        yield text(column), more, Cell("", None), Cell("varies", "varies")


def text(value: object) -> Cell:
    """A cell of text; null is a dash."""
    return Cell("-", None) if value is None else Cell(printable(value), printable(value))


def number(value: float | None, form: str, scale: float = 1.0) -> Cell:
    """A cell that sorts as a number and is shown in the format `form`."""
    return Cell("-", None) if value is None else Cell(form.format(value * scale), float(value))


def _middle(group: Group, column: str, form: str, scale: float = 1.0) -> Cell:
    """The median over the runs; a dash unless it is known of all."""
    values = spread(group.rows, column)
    if len(values) < len(group.rows) or not values:
        return Cell("-", None)
    return number(median(values), form, scale)


def _bounds(estimate: Estimate, digits: int = 0) -> str:
    if estimate.interval is None and estimate.runs == 1:
        return ""
    return " " + estimate.bounds(f"{{:,.{digits}f}}".format)
