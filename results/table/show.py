"""`scalade show` and `scalade export`: the tables for a person, for a program, and for other tools."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
from rich.cells import cell_len

from .. import files
from ..schema.aliases import ALIASES, resolved
from ..schema.rows import AnyRow, distinct, rows_of
from ..schema.schema import SCHEMA_VERSION, columns, known_column
from ..terminal import listed
from ..wording import count_of
from . import screen
from .filter import mask
from .json_rows import json_pieces
from .read import EXPORT_KEY, noted, printable, rows_table, runs_table
from .screen import GAP, fitted, folded, varying

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = ("csv", "parquet")
FORMULA, NUMBER = r"^[=+\-@\t\r\n]", r"^[+\-]?[0-9.]+([eE][+\-]?[0-9]+)?$"


@dataclass(frozen=True)
class Shown:
    """One column of the table on the screen."""

    header: str
    column: str
    text: Callable[[Any], str]
    left: bool = False


def _scaled(factor: float, digits: int) -> Callable[[Any], str]:
    return lambda value: f"{value * factor:,.{digits}f}"


def _short(name: str, digits: int) -> Shown:
    """A short name of aliases.py, in its unit."""
    return Shown(name, ALIASES[name].column, _scaled(ALIASES[name].factor, digits))


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


DEFAULT = (
    Shown("model", "model", str, left=True),
    Shown("layout", "layout", str, left=True),
    Shown("ranks", ALIASES["ranks"].column, str),
    Shown("rep", ALIASES["rep"].column, str),
    Shown("status", "status", str, left=True),
    Shown("tokens_per_s", "tokens_per_s", _scaled(1, 0)),
    _short("step_ms", 1),
    Shown("loss", "loss", "{:.4f}".format),
    Shown("val_loss", "val_loss", "{:.4f}".format),
    _short("peak_mib", 0),
    _short("host_mib", 0),
)
USUAL = tuple(one.header for one in DEFAULT)
LABELS = ("model", "layout", "ranks", "rep")  # that come first
WANTED = ("layout", "model", "ranks", "status", "tokens_per_s", "loss")  # first on a narrow screen, where they differ
NEXT = ("loss", "tokens_per_s", "val_loss", "step_ms", "status", "ranks", "rep", "model")
EXPLAINED = (
    "run_id",
    "status",
    "reason",
    "tokens_per_s",
    "tokens_per_s_reason",
    "val_hash",
)  # read for the lines below
ON_TERMINAL = 200  # rows
SHORT = {"git_commit": 8}  # characters that tell two apart


def show(
    path: str | Path,
    columns: Sequence[str] | str | None = None,
    where: str | None = None,
    sort: str | None = None,
    all_attempts: bool = False,
    as_json: bool = False,
    console: Console | None = None,
    limit: int | None = None,
) -> int:
    """Print the runs at `path` (see read_runs). Returns how many there are.

    columns: names, or one string with commas; `all`: every column; None: those a person looks at first, and those in
        which the rows differ. On a screen that is too narrow for these a line names those left out; columns that were
        asked for are all shown, in blocks.
    where: a filter, as `status == ok and tp >= 2`.
    sort: a column, `-column` for the largest first; nulls last. None: in the order the runs were started.
        Names are columns or the short ones of aliases.py, which the table's header has.
    as_json: a list of objects with null for what is missing, instead of a table.
    limit: print no more rows than these, and how many more there are; 0: all. None: ON_TERMINAL of a table on a
        terminal, and all elsewhere.

    Raises
    ------
    ValueError: nothing at the path, an unknown column (the nearest is named), not a filter
    """
    from rich.console import Console

    console = console or _console()
    with noted() as warnings:
        picked = _picked(columns)
        wanted = _wanted_columns(picked, sort, as_json and not columns)
        table = _sorted(runs_table(path, all_attempts, where, wanted), sort)
        total = len(table) or _without_filter(path, all_attempts, where)
    if limit is None:
        limit = ON_TERMINAL if console.is_terminal and not as_json else 0
    shown = table.slice(0, limit) if limit else table
    if as_json:
        _write_json(console, _by_asked_name(shown, picked if columns else None))
    else:
        _print(console, path, shown, picked, total, where)
        _say_more(console, len(table) - len(shown))
    notes_to = Console(stderr=True) if as_json else console
    for line in warnings:
        _say(notes_to, f"warning: {line}", style="yellow")
    return len(table)


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # a pipe or a file has no edge: nothing is cut
    return console


def _without_filter(path: str | Path, all_attempts: bool, where: str | None) -> int:
    """Runs at the path, where a filter left none."""
    return len(runs_table(path, all_attempts, columns=["run_id"])) if where else 0


def _write_json(console: Console, columns: Mapping[str, pa.ChunkedArray]) -> None:
    for piece in json_pieces(columns):
        console.file.write(piece)
    console.file.write("\n")


def _say_more(console: Console, more: int) -> None:
    if more:
        _say(console, "", f"{more:,} more rows: --limit 0 shows all, --filter and --sort choose")


def export(
    path: str | Path,
    out: str | Path,
    format: str | None = None,
    table: str = "runs",
    where: str | None = None,
    all_attempts: bool = False,
    csv_safe: bool = False,
) -> int:
    """Write one of the TABLES to one file. Returns the number of rows.

    format: csv or parquet; None: by the suffix of `out`. In CSV a missing value is empty and NaN is `nan`.
    csv_safe: a text that a spreadsheet would take for a formula is written with ' before it (CSV alone)
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
    try:
        with files.replacing(out, sync=False) as stream:
            if format == "csv":
                _write_csv(rows, stream, csv_safe)
            else:
                _write_parquet(rows, stream, table)
    except OSError as error:
        raise ValueError(f"cannot write {printable(out)}: {error.strerror or error}") from None
    return len(rows)


def _write_csv(rows: pa.Table, stream: BinaryIO, safe: bool) -> None:
    import pyarrow.csv

    pyarrow.csv.write_csv(_without_formulas(rows) if safe else rows, stream)


def _write_parquet(rows: pa.Table, stream: BinaryIO, table: str) -> None:
    import pyarrow.parquet

    about = {EXPORT_KEY: json.dumps({"table": table, "schema_version": SCHEMA_VERSION})}
    pyarrow.parquet.write_table(rows.replace_schema_metadata(about), stream, compression="zstd")


def _without_formulas(table: pa.Table) -> pa.Table:
    """Texts that begin as a spreadsheet's formulas do, but are no numbers, with ' before them."""
    for at, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            column = table.column(at)
            formula = pc.and_(
                pc.match_substring_regex(column, FORMULA), pc.invert(pc.match_substring_regex(column, NUMBER))
            )
            marked = pc.binary_join_element_wise("'", column, "")
            table = table.set_column(at, field, pc.if_else(formula, marked, column))
    return table


def _picked(names: Sequence[str] | str | None) -> tuple[Shown, ...]:
    if not names:
        return DEFAULT
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    return tuple(map(_named, list(columns("runs")) if names == ["all"] else names))


def _named(name: str) -> Shown:
    """A column by its own name as it is, by a short one as the table shows it."""
    if name in ALIASES:
        return next(one for one in DEFAULT if one.header == name)
    return Shown(name, name, _plain, left=known_column("runs", name).type == "string")


def _wanted_columns(picked: Sequence[Shown], sort: str | None, everything: bool) -> list[str] | None:
    """Columns of `runs` that are read; None: all."""
    if everything:
        return None
    more = screen.settings() if picked is DEFAULT else []
    return list(dict.fromkeys([*(one.column for one in picked), *EXPLAINED, *_sort_keys(sort), *more]))


def _by_asked_name(table: pa.Table, picked: Sequence[Shown] | None) -> dict[str, pa.ChunkedArray]:
    """For programs: the columns by the names they were asked for by."""
    if picked is None:
        return dict(zip(table.column_names, table.columns, strict=True))

    def values(name: str) -> pa.ChunkedArray:
        column, factor = table[resolved(name).column], resolved(name).factor
        return column if factor == 1 else pc.multiply(column, factor)

    return {one.header: values(one.header) for one in picked}


def _sort_keys(sort: str | None) -> tuple[str, ...]:
    return resolved(sort.removeprefix("-")).column if sort else "started_at", "run_id", "attempt"


def _sorted(table: pa.Table, sort: str | None) -> pa.Table:
    order = "descending" if sort is not None and sort.startswith("-") else "ascending"
    keys = dict.fromkeys(_sort_keys(sort), "ascending") | {_sort_keys(sort)[0]: order}
    return table.take(pc.sort_indices(table, sort_keys=list(keys.items())))  # nulls come last


def _print(
    console: Console, path: str | Path, table: pa.Table, picked: Sequence[Shown], total: int, where: str | None
) -> None:
    if not total:
        return _say(console, f"no runs in {printable(path)} yet: `scalade run STUDY.toml` writes them")
    if not len(table):
        return _say(console, f"none of the {count_of(total, 'run')} matches {where!r}")
    asked = picked is not DEFAULT
    if not asked:
        picked = _with_varying([one for one in picked if _says_something(one.column, table)], table)
    rows = rows_of(table)
    _print_columns(console, rows, picked, asked)
    _paragraph(console, _causes(rows))
    _note_other_sequences(console, table, {one.column for one in picked})


def _print_columns(console: Console, rows: Sequence[AnyRow], picked: Sequence[Shown], asked: bool) -> None:
    """asked: the reader named these columns, so that all of them are shown."""
    cells = [[one.header, *(_cell(one, row) for row in rows)] for one in picked]
    widths = [max(map(cell_len, column)) for column in cells]
    laid = folded(widths, console.width) if asked else fitted(widths, _wanted(picked, rows), console.width)
    for number, block in enumerate(laid.blocks):
        _block(console, [(picked[at], widths[at], cells[at]) for at in block], after=number > 0)
    no_room = ", ".join(picked[at].header for at in laid.left_out)
    _paragraph(console, [f"no room for {no_room}: --columns NAMES or a wider window shows them"] if no_room else [])


def _note_other_sequences(console: Console, table: pa.Table, seen: Collection[str]) -> None:
    sets = set(table["val_hash"].drop_null().to_pylist())
    if len(sets) > 1 and "val_loss" in seen and "val_hash" not in seen:
        _say(console, f"note: val_loss is over {len(sets)} sets of held-out sequences: see the column val_hash")


def _causes(rows: Sequence[AnyRow]) -> list[str]:
    """What became of runs that are not ok, then why others have no throughput: a line each cause, with its runs."""
    causes: dict[tuple[bool, str], list[str]] = {}
    for row in rows:
        if row["status"] != "ok":
            causes.setdefault((False, f"{row['status']}: {row['reason']}"), []).append(row["run_id"])
        elif row["tokens_per_s"] is None and row["tokens_per_s_reason"]:
            causes.setdefault((True, f"no tokens_per_s: {row['tokens_per_s_reason']}"), []).append(row["run_id"])
    failures_first = sorted(causes.items(), key=lambda one: one[0][0])
    return [_cause_line(cause, runs) for (_, cause), runs in failures_first]


def _cause_line(cause: str, runs: Sequence[str]) -> str:
    return f"{runs[0]} {cause}" if len(runs) == 1 else f"{len(runs)} x {cause} ({listed(runs)})"


def _with_varying(picked: list[Shown], table: pa.Table) -> list[Shown]:
    """The columns, and after the labels those in which the rows differ."""
    names = varying(table, [one.column for one in picked])
    more = [_shortened(name) if name in SHORT else _named(name) for name in names]
    at = sum(one.header in LABELS for one in picked)
    return [*picked[:at], *more, *picked[at:]]


def _shortened(name: str) -> Shown:
    most = SHORT[name]
    return replace(_named(name), text=lambda value: value[:most])


def _wanted(picked: Sequence[Shown], rows: Sequence[AnyRow]) -> list[int]:
    """Columns in the order in which a narrow screen takes them: what tells rows apart before what is the same."""
    same = {one.header for one in picked if _is_constant(one.column, rows)}
    varied = [one.header for one in picked if one.header not in USUAL]
    labels = _without(("layout", *WANTED), same)
    first = [name for name in labels if name in LABELS] or varied[:1] or ["layout"]  # what tells one row from another
    order = dict.fromkeys([*first, *labels, *varied, "layout", *NEXT, *USUAL])
    places = {one.header: at for at, one in enumerate(picked)}
    return [places[name] for name in order if name in places]


def _without(names: Sequence[str], some: Collection[str]) -> list[str]:
    return [name for name in names if name not in some]


def _is_constant(column: str, rows: Sequence[AnyRow]) -> bool:
    return len(rows) > 1 and len(distinct(rows, column)) == 1


def _cell(one: Shown, row: AnyRow) -> str:
    value = row[one.column]
    return "-" if value is None else printable(one.text(value))


def _block(console: Console, some: Sequence[tuple[Shown, int, list[str]]], after: bool) -> None:
    """Whole columns beside each other; after: another block stands above."""
    from rich.text import Text

    def line(row: int) -> str:
        padded = (
            cells[row] + " " * (width - cell_len(cells[row]))
            if one.left
            else " " * (width - cell_len(cells[row])) + cells[row]
            for one, width, cells in some
        )
        return GAP.join(padded).rstrip()

    header, *lines = map(line, range(len(some[0][2])))
    rule = "─" * (sum(width for _, width, _ in some) + len(GAP) * (len(some) - 1))
    console.print(Text(("\n" if after else "") + header, style="bold"), soft_wrap=True)
    console.print(Text("\n".join([rule, *lines])), soft_wrap=True)


def _says_something(column: str, table: pa.Table) -> bool:
    """Whether a person wants this column of these runs: the screen is narrow."""
    if column == "repeat":
        return pc.max(table[column]).as_py() > 0
    if column == "peak_host_memory_bytes" and _says_something("peak_memory_bytes", table):
        return False
    return column in ("status", "loss") or table[column].null_count < len(table)


def _paragraph(console: Console, lines: Sequence[str]) -> None:
    for line in ["", *lines] if lines else ():
        _say(console, *_wrapped(line, console.width))


def _wrapped(line: str, width: int) -> list[str]:
    """The line as lines of whole words; a word that is longer than the screen stays one."""
    return textwrap.wrap(
        printable(line), width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    ) or [""]


def _say(console: Console, *lines: str, style: str = "") -> None:
    for line in lines:
        console.print(printable(line), style=style, markup=False, highlight=False, soft_wrap=True)
