"""What of a part with a damaged file is still as it was written, attempt by attempt (row_digests.py).

A flipped bit costs the attempt whose value it was. Where the file cannot be followed any further (cut off, or its
framing is damaged) all attempts from there on are lost, and where the digests are lost too, all that the file held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ..schema.schema import arrow_schema
from ..wording import count_of
from .arrow_file import under
from .attempts import OTHERS
from .part import DAMAGE, Part, rows_schema
from .row_digests import row_digests


@dataclass(frozen=True)
class Loss:
    """A file of a part that is not as it was written, and whose rows in it are lost."""

    part: Part
    name: str  # of the file, without .arrow
    error: Exception
    lost: np.ndarray  # (attempts,) bool

    def runs(self) -> list[str]:
        return self.part.index["run_id"].filter(pa.array(self.lost)).unique().to_pylist()

    def __str__(self) -> str:
        runs = self.runs()
        named = f"{', '.join(runs[:4])}{f' and {len(runs) - 4} more' if len(runs) > 4 else ''}"
        what = {"runs": "the rows", "kept": "the logs of starts, and columns of other versions,"}
        return (
            f"{what.get(self.name, f'the {self.name}')} of {len(runs)} of {count_of(len(self.part), 'run')} lost"
            + (f" ({named})" if runs else "")
            + f": {self.error}"
        )


def losses(part: Part) -> list[Loss]:
    """Every damaged file of the part but its index, without which it is none. Reads all of them."""
    damaged, every = [], np.ones(len(part), bool)
    for name in ("runs", *OTHERS, "kept"):
        try:
            if name == "kept":
                part.kept()
            elif name == "runs":
                part.runs(part.stored)
            else:
                part.rows(name, rows_schema(name).names)
        except DAMAGE as error:
            damaged.append(Loss(part, name, error, every if name == "kept" else ~_salvaged(part, name)[1]))
    return damaged


def runs_of(part: Part, names: Sequence[str]) -> tuple[pa.Table, np.ndarray, Loss | None]:
    """(rows of `runs` that are as they were written, (attempts,) bool whose, what is lost)."""
    try:
        return part.runs(names), np.ones(len(part), bool), None
    except DAMAGE as error:
        table, good = _salvaged(part, "runs")
        loss = Loss(part, "runs", error, ~good)
        if not good.any():
            raise
        return part.as_runs(under(_schema("runs", names), table), part.index.filter(pa.array(good))), good, loss


def rows_of_part(part: Part, name: str, names: Sequence[str]) -> tuple[pa.Table, np.ndarray, Loss | None]:
    """The same of another table, for the attempts that have rows in it."""
    try:
        return part.rows(name, names), np.ones(len(part), bool), None
    except DAMAGE as error:
        table, good = _salvaged(part, name)
        return under(_schema(name, names), table), good, Loss(part, name, error, ~good)


def _schema(name: str, names: Sequence[str]) -> pa.Schema:
    return pa.schema([arrow_schema(name).field(one) for one in names])


def _salvaged(part: Part, name: str) -> tuple[pa.Table, np.ndarray]:
    """(the rows of the attempts that are whole, (attempts,) bool which those are); one without rows is."""
    lengths = part.index[name].to_numpy() if name in OTHERS else np.ones(len(part), np.int64)
    whole = lengths == 0
    try:
        known = np.array(part.digests()[name].to_pylist(), object)
        batches = []
        for batch in part.batches(name):
            batches.append(_readable(batch))
        table = pa.Table.from_batches(batches)
    except DAMAGE:
        return rows_schema(name).empty_table() if name in OTHERS else arrow_schema(name).empty_table(), whole
    there = np.searchsorted(np.cumsum(lengths), len(table), side="right")  # attempts whose rows were all reached
    lengths, good = lengths[:there], whole.copy()
    digests = np.array(row_digests(table.slice(0, int(lengths.sum())), lengths), object)
    good[:there] |= (digests == known[:there]) & (lengths > 0)
    kept = np.repeat(good[:there], lengths)
    return table.slice(0, len(kept)).filter(pa.array(kept)), good


def _readable(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with null for texts that are none any more."""
    columns = []
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowException:
            column = _texts(column)
        columns.append(column)
    return pa.record_batch(columns, schema=batch.schema)


def _texts(column: pa.Array) -> pa.Array:
    if not pa.types.is_string(column.type):
        return pa.nulls(len(column), column.type)
    content = pa.Array.from_buffers(pa.binary(), len(column), column.buffers(), offset=column.offset)
    try:
        content.validate(full=True)
    except pa.ArrowException:
        return pa.nulls(len(column), column.type)
    return pa.array(map(_text, content.to_pylist()), pa.string())


def _text(content: bytes | None) -> str | None:
    try:
        return None if content is None else content.decode()
    except UnicodeDecodeError:
        return None
