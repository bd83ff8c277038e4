"""What older versions of the schema wrote wrong: on reading it is null, and the row says which columns and why.

To add an entry, where a change makes a column of the rows that stand wrong, or changes what it means:

1. Append an Erratum to ERRATA: the version since which the column is right (SCHEMA_VERSION of results/schema/schema.py;
   raise it where that version was released), which rows held it wrong (a filter on `runs`, as `--filter` takes it, as
   narrow as the old columns allow: null matches nothing), the columns by table, one line why.
2. Say it in "Versions of the schema" of docs/table.md: what was wrong, since which version it is right.
3. A test: an old row of the kind and one that was right all along, through `scalade.read_runs`
   (tests/table/test_errata.py has them in a list).

The stored files stay as they are. A column of another table is taken out of all rows of the runs that match.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..schema.columns import MESH_DIMS
from ..schema.row_columns import COLLECTIVES
from ..schema.rows import AnyRow
from ..wording import count_of
from .filter import mask
from .filter import named as words
from .filter import where as frame_mask

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

NAMES, WHY = "superseded_columns", "superseded_reason"  # columns of `runs` that only reading fills
LISTED = 4


@dataclass(frozen=True)
class Erratum:
    """Columns that some rows written below schema version `before` hold wrong."""

    before: int
    where: str  # filter on `runs`: the rows concerned
    columns: Mapping[str, tuple[str, ...]]  # by table
    why: str  # one line, for people


@dataclass(frozen=True)
class Taken:
    """What one erratum took out of a table: for the note that readers print."""

    erratum: Erratum
    name: str  # of the table
    rows: np.ndarray  # bool (rows,)
    everywhere: bool = False  # a file that holds no runs: which rows are concerned is not known

    def line(self, count: int) -> str:
        """The note, of `count` rows."""
        columns = self.erratum.columns[self.name]
        more = f" and {len(columns) - LISTED} more" if len(columns) > LISTED else ""
        rows = count_of(count, f"row of {self.name} is", f"rows of {self.name} are")
        known = " (the file does not say of which runs this holds: all are read so)" if self.everywhere else ""
        return (
            f"{rows} read without {', '.join(columns[:LISTED])}{more}, written before schema version "
            f"{self.erratum.before}: {self.erratum.why}{known}"
        )


_SPEED = ("step_time_s", "tokens_per_s", "tokens_per_s_per_device", "mfu_6n", "mfu_palm", "mfu_causal")
_COMM = (
    "comm_bytes_per_step",
    "comm_calls_per_step",
    "comm_time_s",
    "comm_by_collective_json",
    "comm_by_dim_json",
    *(f"comm_bytes_{name}" for name in COLLECTIVES),
    *(f"comm_bytes_dim_{name}" for name in MESH_DIMS),
)

ERRATA: tuple[Erratum, ...] = (
    Erratum(
        before=2,  # where the timed steps were whole rounds, the mean over them was right
        where="outer_algorithm != none and (timed_steps % outer_sync_every != 0 or resumed_from_step != null"
        " or parity != null or (outer_algorithm in [delayed, eager] and measure_warmup_steps < outer_sync_every))",
        columns={"runs": _SPEED},
        why="the cost of the outer steps was divided by the run's timed steps, not by outer_sync_every",
    ),
    Erratum(
        before=2,
        where="outer_algorithm != none and outer_placement == distributed and parity == null"
        " and (outer_sync_every != 1 or outer_quorum != null)",
        columns={"runs": _COMM},
        why="communication was that of one probed step, with or without an outer step in it",
    ),
    Erratum(
        before=2,
        where="outer_algorithm != none and parity == null and (outer_steps == 0"
        " or (outer_algorithm == streaming and steps < outer_sync_every + outer_overlap_steps))",
        columns={"runs": ("val_loss", "val_bits_per_byte")},
        why="no outer step, or not of every fragment, was taken: this was the loss of the start weights",
    ),
    Erratum(
        before=2,
        where="parity != null and tokens_seen != tokens_per_step * step_rows",
        columns={"runs": ("tokens_per_step", *(name for name in _SPEED if name != "step_time_s"))},
        why="tokens_per_step was what record() had declared, and not what the steps said",
    ),
    Erratum(
        before=2,
        where="measure_eval_sequences > 0 and measure_eval_sequences % global_batch != 0",
        columns={"runs": ("val_loss", "val_bits_per_byte")},
        why="the held-out set was rounded to whole batches: another one than measure_eval_sequences says (`evals` has "
        "how many sequences it was)",
    ),
    Erratum(
        before=2,
        where="(model in [diloco-35m, diloco-90m, diloco-180m, diloco-335m, diloco-550m, diloco-1.3b, diloco-2.4b,"
        " diloco-4b, diloco-10b] and (model_vocab != 32768 or model_tied == false)) or (model in [tiny-100k, tiny-300k,"
        " tiny-800k, tiny-2m, tiny-5m, tiny-12m] and model_vocab != 256)",
        columns={"runs": ("model",)},
        why="the name did not say that the vocabulary or the head was another than the size's (params_total is right)",
    ),
)


def of_runs(table: pa.Table) -> tuple[pa.Table, list[Taken]]:
    """`runs` with the wrong columns of old rows null and superseded_columns, superseded_reason filled."""
    concerned = _concerned(table, "runs")
    if not concerned:
        return table, []
    runs = _Corrected(table)
    removed = [runs.take_out(one, rows) for one, rows in concerned]
    return runs.table(), [taken for taken in removed if taken.rows.any()]


class _Corrected:
    """`runs` while its errata are applied: what is wrong in which rows, and what each row says of it."""

    def __init__(self, stored: pa.Table) -> None:
        self.stored = stored
        self.names = [text.split(", ") if text else [] for text in stored[NAMES].to_pylist()]
        self.reasons = [[text] if text else [] for text in stored[WHY].to_pylist()]
        self.wrong: dict[str, list[np.ndarray]] = {}  # by column: rows that hold it wrong

    def take_out(self, one: Erratum, rows: np.ndarray) -> Taken:
        """Mark the columns of the erratum wrong in these rows. Returns in which of them there was anything."""
        import numpy as np

        held = {column: rows & self.stored[column].is_valid().to_numpy() for column in one.columns["runs"]}
        before = np.array([_says(texts, one.why) for texts in self.reasons])  # rows of an export name it already
        taken = Taken(one, "runs", rows & np.logical_or.reduce([before, *held.values()]))
        for column, of_column in held.items():
            self.wrong.setdefault(column, []).append(of_column)
            _append_to(self.names, of_column, column)
        _append_to(self.reasons, taken.rows & ~before, one.why)
        return taken

    def table(self) -> pa.Table:
        """The runs without what is wrong."""
        import numpy as np
        import pyarrow as pa

        table = self.stored
        for column, some in self.wrong.items():
            table = _nulled(table, column, np.logical_or.reduce(some))
        names = [", ".join(dict.fromkeys(columns)) or None for columns in self.names]
        why = ["; ".join(texts) or None for texts in self.reasons]
        table = _replaced(table, NAMES, pa.array(names, pa.string()))
        return _replaced(table, WHY, pa.array(why, pa.string()))


def _says(texts: list[str], why: str) -> bool:
    return any(why in text for text in texts)


def _append_to(lists: list[list[str]], rows: np.ndarray, text: str) -> None:
    for row in rows.nonzero()[0]:
        lists[row].append(text)


def named(name: str) -> list[str]:
    """Columns of `runs` that tell which rows of table `name` are concerned; of `runs`, also those taken out."""
    some = [one for one in ERRATA if name in one.columns]
    names = [column for one in some for column in words(one.where, "runs")]
    names += ["schema_version", NAMES, WHY, *taken_from("runs")] if name == "runs" else []
    return list(dict.fromkeys(names))


def taken_from(name: str) -> list[str]:
    """Columns of table `name` that some erratum takes out."""
    return list(dict.fromkeys(column for one in ERRATA for column in one.columns.get(name, ())))


def of_rows(name: str, table: pa.Table, runs: pa.Table, lengths: np.ndarray) -> tuple[pa.Table, list[Taken]]:
    """Another table with the wrong columns of old runs null.

    runs: the rows of `runs` behind it, with the columns that `named` says; lengths: rows that each has
    """
    import numpy as np

    removed = [Taken(one, name, np.repeat(rows, lengths)) for one, rows in _concerned(runs, name)]
    return _without(table, removed), [taken for taken in removed if taken.rows.any()]


def of_exported(name: str, table: pa.Table, version: int) -> tuple[pa.Table, list[Taken]]:
    """An exported table other than `runs`, written under schema version `version`: which runs match is not known."""
    import numpy as np

    every = np.ones(len(table), bool)
    removed = [
        Taken(one, name, every, everywhere=True) for one in ERRATA if version < one.before and name in one.columns
    ]
    return _without(table, removed), removed if len(table) else []


def of_frame(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[Taken]]:
    """A frame of `runs` with run_id and schema_version, read from elsewhere: an exported CSV."""
    removed = []
    for one in ERRATA:
        names = [name for name in one.columns.get("runs", ()) if name in frame.columns]
        old = _old_in_frame(frame, one)
        if names and old.any():
            frame = frame.copy()
            frame.loc[old, names] = None
            removed.append(Taken(one, "runs", old))
    return frame, removed


def _old_in_frame(frame: pd.DataFrame, one: Erratum) -> np.ndarray:
    """(rows,) bool: rows that the erratum is about."""
    old = frame["schema_version"].lt(one.before).fillna(False).to_numpy(bool)
    if not old.any():
        return old
    try:
        return old & frame_mask(frame, one.where).to_numpy()
    except ValueError:
        return old  # the deciding columns are not there: all old rows


def lines(removed: list[Taken], kept: np.ndarray | None = None, where: str | None = None) -> list[str]:
    """One note for each erratum that took something out of rows that a reader sees, or that `where` would have kept.

    kept: rows that `where` keeps. One that reads a column which was taken out drops such rows: they count, too.
    """
    named = set(re.findall(r"[^\W\d]\w*", where or ""))
    notes = []
    for taken in removed:
        rows = taken.rows
        if kept is not None and not named & set(taken.erratum.columns[taken.name]):
            rows = rows & kept
        if rows.any():
            notes.append(taken.line(int(rows.sum())))
    return notes


def why_missing(row: AnyRow, column: str) -> str | None:
    """Why reading took that column out of a row of `runs`; None: it did not."""
    if column not in (row.get(NAMES) or "").split(", "):
        return None
    about = (one.why for one in ERRATA if column in one.columns.get("runs", ()))
    return "; ".join(why for why in about if why in row[WHY]) or row[WHY]  # an export of a newer version knows more


def _concerned(runs: pa.Table, name: str) -> list[tuple[Erratum, np.ndarray]]:
    """The errata of table `name` and which rows of `runs` each is about, bool (rows,); those about none left out."""
    import pyarrow.compute as pc

    concerned = []
    for one in ERRATA:
        old = pc.less(runs["schema_version"], one.before).to_numpy()
        if name in one.columns and old.any():
            rows = old & mask(runs, "runs", one.where).to_numpy(zero_copy_only=False)
            concerned += [(one, rows)] if rows.any() else []
    return concerned


def _without(table: pa.Table, removed: list[Taken]) -> pa.Table:
    for taken in removed:
        for column in taken.erratum.columns[taken.name]:
            table = _nulled(table, column, taken.rows)
    return table


def _nulled(table: pa.Table, name: str, rows: np.ndarray) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    nothing = pa.scalar(None, table.schema.field(name).type)
    return _replaced(table, name, pc.if_else(pa.array(rows), nothing, table[name]))


def _replaced(table: pa.Table, name: str, values) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
