"""Every finished attempt of a results folder at one moment, wherever it lies: in a run folder or in a part.

Attempts move from run folders into parts while others read (packing.py): the part stands before the folder goes. So
run folders are read first and parts after them, and no attempt is missed; of one seen twice, the folder's counts. Where
a file that was listed had gone when it was opened, all is read again, until nothing or only the same is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..schema.schema import arrow_schema
from ..wording import count_of
from . import salvage
from .attempts import OTHERS
from .loose import Loose, Notes, read_loose
from .part import DAMAGE, INDEX, NewerPart, Part, part_names

TRIES = 20  # readings that meet a packing; one more takes things as they are


class Held:
    """Attempts in memory as a source of rows."""

    def __init__(self, index: pa.Table, runs: pa.Table, kept: pa.Table, others: dict[str, pa.Table]) -> None:
        """others: by name the rows of all attempts, in the order of the index, without run_id and attempt."""
        self.index, self.loaded, self._kept, self._others = index, runs, kept, others
        self._ends = {name: np.cumsum(index[name].to_numpy()) for name in OTHERS}

    @property
    def stored(self) -> list[str]:
        return [name for name in self.loaded.column_names if self.loaded[name].null_count < len(self.loaded)]

    def runs(self, names: Sequence[str]) -> pa.Table:
        return self.loaded.select(list(names))

    def kept(self) -> pa.Table:
        return self._kept

    def rows(self, name: str, at: np.ndarray, names: Sequence[str]) -> tuple[pa.Table, np.ndarray]:
        lengths = self.index[name].to_numpy()[at]
        return stretches(self._others[name].select(list(names)), self._ends[name][at] - lengths, lengths), lengths


class Packed:
    """A part as a source of rows: of a damaged one, the attempts whose rows are as they were written."""

    def __init__(self, part: Part, names: Sequence[str], notes: Notes) -> None:
        self.part, self.notes = part, notes
        self.loaded, whole, loss = salvage.runs_of(part, names)
        self.index, self._places = part.index, np.flatnonzero(whole)
        if loss is not None:
            self.index = part.index.filter(pa.array(whole))
            notes.add(part.folder / "runs.arrow", loss)

    @property
    def stored(self) -> list[str]:
        return self.part.stored

    def runs(self, names: Sequence[str]) -> pa.Table:
        return self.loaded.select(list(names))

    def kept(self) -> pa.Table:
        return _taken(self.part.kept(), self._places)

    def rows(self, name: str, at: np.ndarray, names: Sequence[str]) -> tuple[pa.Table, np.ndarray]:
        """(rows of another table, how many each of these attempts has): those that are damaged none, and a note."""
        lengths = self.part.index[name].to_numpy()
        if not lengths[self._places[at]].any():
            schema = pa.schema([arrow_schema(name).field(one) for one in names])
            return schema.empty_table(), np.zeros(len(at), np.int64)
        table, whole, loss = salvage.rows_of_part(self.part, name, names)
        if loss is not None:
            self.notes.add(self.part.folder / f"{name}.arrow", loss)
        lengths = np.where(whole, lengths, 0)
        starts, at = np.cumsum(lengths) - lengths, self._places[at]
        return stretches(table, starts[at], lengths[at]), lengths[at]


Source = Packed | Loose | Held


@dataclass
class Snapshot:
    """The attempts in order of run_id and attempt: each one's source, and where it is in that."""

    sources: list[Source]
    index: pa.Table  # INDEX, in that order
    source: np.ndarray  # (attempts,)
    at: np.ndarray  # (attempts,)
    parts: list[str]  # names of the parts there were
    notes: Notes

    def __len__(self) -> int:
        return len(self.at)

    def runs(self, names: Sequence[str], start: int = 0, stop: int | None = None) -> pa.Table:
        """Rows of `runs` of the attempts [start, stop)."""
        return self._gathered([one.runs(names) for one in self.sources], start, stop)

    def kept(self, start: int = 0, stop: int | None = None) -> pa.Table:
        return self._gathered([one.kept() for one in self.sources], start, stop)

    def _gathered(self, tables: list[pa.Table], start: int, stop: int | None) -> pa.Table:
        offsets = np.cumsum([0, *map(len, tables)])
        if not tables:
            return arrow_schema("runs").empty_table()
        return _taken(pa.concat_tables(tables), (offsets[self.source] + self.at)[start:stop])

    def rows(self, name: str, which: np.ndarray, names: Sequence[str]) -> tuple[pa.Table, np.ndarray]:
        """(rows of another table without run_id and attempt, how many each of these attempts has).

        which: positions of attempts, ascending
        """
        tables, lengths = [], np.zeros(len(which), np.int64)
        starts, total = np.zeros(len(which), np.int64), 0
        for number, source in enumerate(self.sources):
            here = np.flatnonzero(self.source[which] == number)
            if not len(here):
                continue
            table, counts = source.rows(name, self.at[which[here]], names)
            starts[here], lengths[here] = total + np.cumsum(counts) - counts, counts
            total += len(table)
            tables.append(table)
        schema = pa.schema([arrow_schema(name).field(one) for one in names])
        table = pa.concat_tables(tables) if tables else schema.empty_table()
        return stretches(table, starts, lengths), lengths


def take_snapshot(path: Path, names: Sequence[str], all_attempts: bool = False) -> Iterator[Snapshot]:
    """Snapshots with these columns of `runs`, until one is used and nothing had moved.

    for snapshot in take_snapshot(...): read all that is needed from it. What the last one notes, stands.

    Raises
    ------
    ValueError: the path is no results folder and no run, or holds what only a newer Scalade reads
    """
    if not path.is_dir() and not _is_packed_run(path):
        raise ValueError(f"no results at {str(path)!r}: neither a results folder, nor a run, nor an exported file")
    missed: set = set()
    for _ in range(TRIES):
        snapshot = with_parts(path, read_loose(path, all_attempts), names, all_attempts)
        yield snapshot
        before, missed = missed, snapshot.notes.gone
        if missed <= before:
            return


def with_parts(path: Path, loose: Loose, names: Sequence[str], all_attempts: bool) -> Snapshot:
    """The snapshot of these loose attempts and the parts of the folder."""
    results, run_id = where_parts_are(path)
    present = part_names(results)
    sources: list[Source] = []
    for name in present:
        folder = results / "table" / name
        try:
            sources.append(Packed(Part(folder, results), names, loose.notes))
        except NewerPart:
            raise
        except DAMAGE as error:
            loose.notes.add(folder, _lost(folder, results, error))
    return ordered([*sources, loose], present, loose.notes, all_attempts, run_id)


def where_parts_are(path: Path) -> tuple[Path, str | None]:
    """The results folder that a path is or is a run of, and that run's id."""
    if not (path / "runs").is_dir() and path.absolute().parent.name == "runs":
        return path.absolute().parent.parent, path.name
    return path, None


def _is_packed_run(path: Path) -> bool:
    results, run_id = where_parts_are(path)
    return run_id is not None and results.is_dir() and bool(_parts_at(path))


def _parts_at(path: Path) -> list[str]:
    try:
        return part_names(where_parts_are(path)[0])
    except OSError:
        return []


def ordered(sources: list[Source], parts: list[str], notes: Notes, all_attempts: bool, run_id: str | None) -> Snapshot:
    """Attempts sorted; of one attempt in two sources the later source's; of a run the last attempt, or all."""
    indexes = [one.index for one in sources]
    index = pa.concat_tables(indexes)
    source = np.repeat(np.arange(len(sources)), list(map(len, indexes)))
    at = np.concatenate([np.arange(len(one)) for one in indexes])
    keys = pa.table({"run_id": index["run_id"], "attempt": index["attempt"], "source": source})
    order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in keys.column_names])
    order = order.to_numpy().astype(np.int64)
    runs = pc.dictionary_encode(index["run_id"].combine_chunks()).indices.to_numpy()[order]
    attempts = index["attempt"].to_numpy()[order]
    last = np.ones(len(order), bool)
    same = runs[1:] == runs[:-1]
    last[:-1] = ~(same & (attempts[1:] == attempts[:-1])) if all_attempts else ~same
    if run_id is not None:
        last &= pc.equal(index["run_id"], run_id).to_numpy()[order]
    order = order[last]
    return Snapshot(sources, _taken(index, order).cast(INDEX), source[order], at[order], parts, notes)


def _lost(folder: Path, results: Path, error: Exception) -> str:
    """What is lost with a damaged part, in a line."""
    try:
        runs = Part(folder, results).index["run_id"].unique().to_pylist()
        named = f"{', '.join(runs[:4])}{f' and {len(runs) - 4} more' if len(runs) > 4 else ''}"
        return f"{error}; with it the rows of {count_of(len(runs), 'run')}: {named}"
    except DAMAGE:
        return str(error)


def _taken(table: pa.Table, at: np.ndarray) -> pa.Table:
    """The rows at these places; a stretch of them is not copied."""
    if not len(at) or (at[-1] - at[0] == len(at) - 1 and (np.diff(at) == 1).all()):
        return table.slice(int(at[0]) if len(at) else 0, len(at))
    return table.take(pa.array(at))


def stretches(table: pa.Table, starts: np.ndarray, lengths: np.ndarray) -> pa.Table:
    """Rows starts[0] .. + lengths[0], then starts[1] .. and so on."""
    total = int(lengths.sum())
    if not total:
        return table.slice(0, 0)
    ends = np.cumsum(lengths)
    filled = lengths > 0
    if (np.diff(starts[filled]) == lengths[filled][:-1]).all():
        return table.slice(int(starts[filled][0]), total)
    return table.take(pa.array(np.repeat(starts - (ends - lengths), lengths) + np.arange(total)))
