"""`scalade show` and `scalade export`: the tables for a person, for a program, and for other tools."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from .read import EXPORT_KEY, noted, printable, rows_table, runs_table
from .schema import SCHEMA_VERSION, columns, known_column
from .where import mask

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = ("csv", "parquet")


@dataclass(frozen=True)
class Shown:
    """One column of the table on the screen."""

    header: str
    column: str
    text: Callable[[object], str]
    left: bool = False


def _scaled(factor: float, digits: int) -> Callable[[object], str]:
    return lambda value: f"{value * factor:,.{digits}f}"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


DEFAULT = (
    Shown("model", "model", str, left=True),
    Shown("layout", "layout", str, left=True),
    Shown("ranks", "world_size", str),
    Shown("rep", "repeat", str),
    Shown("status", "status", str, left=True),
    Shown("tokens/s", "tokens_per_s", _scaled(1, 0)),
    Shown("step ms", "step_time_s", _scaled(1e3, 1)),
    Shown("loss", "loss", "{:.4f}".format),
    Shown("val loss", "val_loss", "{:.4f}".format),
    Shown("peak MiB", "peak_memory_bytes", _scaled(2**-20, 0)),
    Shown("host MiB", "peak_host_memory_bytes", _scaled(2**-20, 0)),
)


def show(
    path: str | Path,
    columns: Sequence[str] | str | None = None,
    where: str | None = None,
    sort: str | None = None,
    all_attempts: bool = False,
    as_json: bool = False,
    console: Console | None = None,
) -> int:
    """Print the runs at `path` (see read_runs). Returns how many.

    columns: names, or one string with commas; `all`: every column; None: those a person looks at first.
    where: a filter, as `status == ok and tp >= 2`.
    sort: a column, `-column` for the largest first; nulls last. None: in the order the runs were started.
    as_json: a list of objects with null for what is missing, instead of a table.

    Raises
    ------
    ValueError: nothing at the path, an unknown column (the nearest is named), not a filter
    """
    from rich.console import Console

    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = 10_000  # a pipe or a file has no edge: nothing is cut
    with noted() as told:
        table = _sorted(runs_table(path, all_attempts, where), sort)
        total = len(table) or (len(runs_table(path, all_attempts)) if where else 0)
    picked = _picked(columns)
    if as_json:
        names = [c.column for c in picked] if columns else table.column_names
        console.file.write(json.dumps(table.select(list(dict.fromkeys(names))).to_pylist(), indent=1) + "\n")
    else:
        _print(console, path, table, picked, total, where)
    for line in told:
        _say(Console(stderr=True) if as_json else console, f"warning: {line}", style="yellow")
    return len(table)


def export(
    path: str | Path,
    out: str | Path,
    format: str | None = None,
    table: str = "runs",
    where: str | None = None,
    all_attempts: bool = False,
) -> int:
    """Write one of the TABLES to one file. Returns the number of rows.

    format: csv or parquet; None: by the suffix of `out`. In CSV a missing value is empty and NaN is `nan`.
    where: a filter on the columns of that table.

    Raises
    ------
    ValueError: nothing at the path, no such table, format or column, or `out` cannot be written
    """
    out = Path(out)
    format = format or out.suffix.lstrip(".").lower()
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: allowed are {', '.join(FORMATS)}")
    known = columns(table)
    rows = runs_table(path, all_attempts) if table == "runs" else rows_table(path, table, None, all_attempts)
    rows = rows.select(list(known))
    rows = rows.filter(mask(rows, table, where)) if where else rows
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        if format == "csv":
            import pyarrow.csv

            pyarrow.csv.write_csv(rows, aside)
        else:
            import pyarrow.parquet

            about = {EXPORT_KEY: json.dumps({"table": table, "schema_version": SCHEMA_VERSION})}
            pyarrow.parquet.write_table(rows.replace_schema_metadata(about), aside, compression="zstd")
        os.replace(aside, out)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise ValueError(f"cannot write {printable(out)}: {error.strerror or error}") from None
    return len(rows)


def _picked(names: Sequence[str] | str | None) -> tuple[Shown, ...]:
    if not names:
        return DEFAULT
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    names = list(columns("runs")) if names == ["all"] else names
    return tuple(Shown(name, name, _plain, left=known_column("runs", name).type == "string") for name in names)


def _sorted(table: pa.Table, sort: str | None) -> pa.Table:
    descending = bool(sort) and sort.startswith("-")
    column = known_column("runs", sort.removeprefix("-")).name if sort else "started_at"
    order = "descending" if descending else "ascending"
    keys = [(column, order), ("run_id", "ascending"), ("attempt", "ascending")]
    return table.take(pc.sort_indices(table, sort_keys=keys))  # nulls come last


def _print(console: Console, path, table: pa.Table, picked, total: int, where: str | None) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not total:
        return _say(console, f"no runs in {printable(path)} yet: `scalade run STUDY.toml` writes them")
    if not len(table):
        return _say(console, f"none of the {total} runs matches {where!r}")
    if picked is DEFAULT:
        picked = [one for one in picked if _says_something(one.column, table)]
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for one in picked:
        grid.add_column(one.header, justify="left" if one.left else "right", overflow="fold")
    cells = {one.column: table[one.column].to_pylist() for one in picked}
    for row in range(len(table)):
        texts = [(one, cells[one.column][row]) for one in picked]
        grid.add_row(*(Text("-" if value is None else printable(one.text(value))) for one, value in texts))
    console.print(grid)
    ended = zip(*(table[name].to_pylist() for name in ("run_id", "status", "reason")), strict=True)
    reasons = [f"{run_id} {status}: {reason}" for run_id, status, reason in ended if status != "ok"]
    for line in ["", *reasons] if reasons else ():
        _say(console, line)


def _says_something(column: str, table: pa.Table) -> bool:
    """Whether a person wants this column of these runs: the screen is narrow."""
    if column == "repeat":
        return pc.max(table[column]).as_py() > 0
    if column == "peak_host_memory_bytes" and _says_something("peak_memory_bytes", table):
        return False
    return column in ("status", "loss") or table[column].null_count < len(table)


def _say(console: Console, line: str, style: str = "") -> None:
    console.print(printable(line), style=style, markup=False, highlight=False, soft_wrap=True)
