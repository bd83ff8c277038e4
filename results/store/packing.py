"""Packing: finished attempts move out of their run folders into a part (part.py), and back again on request.

In this order, so that a process killed at any moment loses no row and doubles none:

    1  the lock of the table is taken; what a killed packer left half done is removed
    2  the attempts are read whole, with their other tables, by the checks that every reader makes
    3  a part is written aside, synced, and read back: digests and index must be what was meant
    4  it is renamed into place, and the folder synced: from here on the rows stand twice
    5  older parts that it holds as well are removed, then the attempts in the run folders, each by a rename first

Parts stay few: a new one takes in those before it that are no larger, so that each is at least twice the size of the
next and a row is rewritten about log2(runs) times.

What stays in the run folder: an attempt that is damaged, of a newer version, or holds files of others; anything that a
run which did not succeed may still need (scratch, stacks, weights); and all of a run that another process holds at that
moment.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .. import files
from ..schema.schema import arrow_schema, columns
from . import digests
from .attempt_files import arrow_bytes
from .attempts import OTHERS, ROW_FILE, RUN_ID, STARTS, attempts_in
from .loose import Loose, NewerRow, Notes, read_loose, run_folders, starts_in
from .part import DAMAGE, DIGESTS, FOLDER, INDEX, KEPT, KEYS, LOCK, Part, PartWriter, part_names, rows_schema
from .row_digests import row_digests
from .snapshot import Held, Packed, Snapshot, Source, ordered, stretches

AT_ONCE = 10_000  # runs that are read before a part is written
LARGEST = 250_000  # attempts in a part
ROWS_AT_ONCE = 2**20  # of another table, in memory


@dataclass
class Done:
    """What a packing did."""

    packed: int = 0  # attempts that moved
    left: int = 0  # attempts that stay in their run folders
    parts: int = 0  # there are now


class Busy(OSError):
    """Another process is packing."""


def compact(results: Path, wait: bool = True) -> Done:
    """Move the finished attempts of a results folder into parts.

    Raises
    ------
    Busy: another process is at it, and `wait` is false
    OSError: the folder may not be written, or the disk is full; nothing is lost
    """
    done = Done()
    runs = [one for one in run_folders(results) if RUN_ID.fullmatch(one[1])]
    for start in range(0, len(runs), AT_ONCE):
        chunk = runs[start : start + AT_ONCE]
        with table_lock(results, wait):
            try:
                loose = read_loose(results, True, chunk)
            except NewerRow:
                continue
            held, folders = _whole(loose)
            done.left += len(loose.folders) - len(folders)
            if folders:
                write_part(results, held)
                done.packed += len(folders)
            _release(results, folders, held.kept()["starts"].to_pylist(), (run for run, _ in chunk))
    done.parts = len(part_names(results))
    return done


def pack_rows(results: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Add whole rows of `runs`, which have none in the other tables, in one part. Call only while holding
    the table's lock."""
    if not rows:
        return
    table = pa.Table.from_pylist(list(rows), arrow_schema("runs"))
    counts = [pa.array(np.zeros(len(table), np.int64))] * len(OTHERS)
    index = pa.table([*(table[name] for name in KEYS), *counts], schema=INDEX)
    kept = pa.table([pa.nulls(len(table), pa.string())] * len(KEPT), schema=KEPT)
    write_part(results, Held(index, table, kept, {name: rows_schema(name).empty_table() for name in OTHERS}))


def unpack(results: Path) -> int:
    """Move every attempt of every part back into a run folder. Returns how many. Damaged parts stay.

    Raises
    ------
    OSError: the folder may not be written, or the disk is full; nothing is lost
    """
    count = 0
    with table_lock(results):
        for name in reversed(part_names(results)):  # of an attempt in two, the later part's is there first and stays
            part = _sound(results, name)
            if part is not None:
                count += _unpack(results, part)
                _remove(results / FOLDER / name, results)
    return count


@contextmanager
def table_lock(results: Path, wait: bool = True) -> Iterator[None]:
    """Held by the one process that writes parts."""
    files.make_folder(results / FOLDER, results)
    descriptor = files.open_file(results / FOLDER / LOCK, results, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise Busy(11, "another process is packing these results", str(results)) from None
        for name in files.names(results / FOLDER, results):
            if name.startswith(files.ASIDE):
                files.remove(results / FOLDER / name, results)
        yield
    finally:
        os.close(descriptor)


def write_part(results: Path, held: Held) -> None:
    """A new part of these attempts, and of the newest parts that are no larger. Call only while holding the
    table's lock."""
    names, every = part_names(results), arrow_schema("runs").names
    number = max((int(name[1:]) for name in names), default=0) + 1
    parts = _newest_no_larger(results, names, len(held.index))
    sources: list[Source] = [*(Packed(part, every, Notes()) for part in parts), held]
    stored = set().union(*(source.stored for source in sources), KEYS)
    merged = ordered(sources, [], Notes(), True, None)
    aside = results / FOLDER / f"{files.ASIDE}{os.getpid()}-{os.urandom(4).hex()}"
    try:
        _write(merged, aside, [name for name in every if name in stored], results)
        _rename_synced(results, aside.name, f"p{number}")
    except BaseException:
        files.remove(aside, results)
        raise
    for part in parts:
        _remove(part.folder, results)


def _newest_no_larger(results: Path, names: Sequence[str], total: int) -> list[Part]:
    """The newest parts that are no larger than what comes after them; total: attempts that come after all."""
    parts: list[Part] = []
    for name in reversed(names):
        part = _sound(results, name)
        if part is None or len(part) > total or total + len(part) > LARGEST:
            break
        parts.insert(0, part)
        total += len(part)
    return parts


def _rename_synced(results: Path, old: str, new: str) -> None:
    """Of a part; its new name is on the disk."""
    table = files.open_folder(results / FOLDER, results)
    try:
        os.rename(old, new, src_dir_fd=table, dst_dir_fd=table)
        os.fsync(table)
    finally:
        os.close(table)


def _write(merged: Snapshot, aside: Path, stored: Sequence[str], results: Path) -> None:
    """The files of a part, on the disk and read back."""
    lengths = sum(merged.index[name].to_numpy() for name in OTHERS)
    cuts = np.searchsorted(np.cumsum(lengths), np.arange(ROWS_AT_ONCE, lengths.sum(), ROWS_AT_ONCE), side="right")
    edges = np.unique([0, *cuts, *range(0, len(merged), AT_ONCE), len(merged)])
    with PartWriter(aside, stored, results) as writer:
        for start, stop in zip(edges, edges[1:], strict=False):
            writer.add("index", merged.index.slice(start, stop - start))
            runs, count = merged.runs(stored, start, stop), np.ones(stop - start, np.int64)
            writer.add("runs", runs)
            known = {"runs": row_digests(runs, count)}
            writer.add("kept", merged.kept(start, stop))
            for name in OTHERS:
                table, lengths_read = merged.rows(name, np.arange(start, stop), rows_schema(name).names)
                if not np.array_equal(lengths_read, merged.index[name].to_numpy()[start:stop]):
                    raise OSError(5, f"rows of {name} were not there when they were packed", str(results))
                writer.add(name, table)
                known[name] = row_digests(table, lengths_read)
            writer.add("digests", pa.table(known, schema=DIGESTS))
        writer.finish()
    part = Part(aside, results)
    part.verify()
    if not part.index.equals(merged.index):
        raise OSError(5, "a part reads back as another than was written", str(aside))


def _whole(loose: Loose) -> tuple[Held, list[Path]]:
    """The attempts that can move, with their other tables, and the folders that they leave."""
    every = np.arange(len(loose.folders))
    good = np.array([_is_plain(folder, loose.below) for folder in loose.folders], bool)
    tables, lengths = {}, {}
    for name in OTHERS:
        counts_in_row = loose.index[name].to_numpy()
        tables[name], lengths[name] = loose.rows(name, every, rows_schema(name).names)
        good &= (counts_in_row == lengths[name]) | (counts_in_row == -1)
    broken = {file.parent for file, _ in loose.notes.lines}
    good &= np.array([folder not in broken for folder in loose.folders], bool)
    at = np.flatnonzero(good)
    others = {
        name: stretches(tables[name], (np.cumsum(lengths[name]) - lengths[name])[at], lengths[name][at])
        for name in OTHERS
    }
    index = loose.index.take(pa.array(at))
    counts = (pa.array(lengths[name][at]) for name in OTHERS)
    index = pa.table([*(index[one] for one in KEYS), *counts], schema=INDEX)
    runs, kept = loose.runs(arrow_schema("runs").names).take(pa.array(at)), loose.kept().take(pa.array(at))
    return Held(index, runs, kept, others), [loose.folders[one] for one in at]


def _is_plain(folder: Path, below: Path) -> bool:
    """Whether the attempt's folder holds nothing but ours."""
    ours = {ROW_FILE, *(f"{name}.arrow" for name in OTHERS)}
    try:
        return set(files.names(folder, below)) <= ours
    except OSError:  # gone since
        return False


def _release(results: Path, folders: Sequence[Path], starts: Sequence[str | None], runs: Iterable[Path]) -> None:
    """Remove the attempts that are in a part now, and of these runs what is not needed any more."""
    attempts: dict[Path, list[Path]] = {run: [] for run in runs}
    packed_starts: dict[Path, set[str | None]] = {run: set() for run in attempts}
    for folder, text in zip(folders, starts, strict=True):
        attempts[folder.parent].append(folder)
        packed_starts[folder.parent].add(text)
    for run in attempts:
        if attempts[run] or all(name == LOCK or name.startswith(files.ASIDE) for name in _names(run, results)):
            with _locked(run, results) as is_ours:
                if is_ours:
                    _empty(run, attempts[run], packed_starts[run], results)
    files.sync_folder(results / "runs", results)


@contextmanager
def _locked(run: Path, results: Path) -> Iterator[bool]:
    """False: another process holds the run, or it cannot be locked: its rows are in both places, and the same, until
    the next packing."""
    try:
        lock = files.open_file(run / LOCK, results, os.O_RDWR | os.O_CREAT)
    except OSError:
        yield False
        return
    try:
        yield _try_lock(lock)
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _empty(run: Path, attempts: Sequence[Path], packed_starts: Collection[str | None], results: Path) -> None:
    """Remove from a run's folder what a part has, and the folder where nothing else is in it."""
    for folder in attempts:
        _remove(folder, results)
    for name in _names(run, results):
        if name.startswith(files.ASIDE):
            files.remove(run / name, results)
    if (starts := starts_in(run, results)) is not None and starts in packed_starts:
        files.remove(run / STARTS, results)
    if _names(run, results) == [LOCK]:
        files.remove(run / LOCK, results)
        with suppress(OSError):  # another process has begun to write there
            os.rmdir(run)


def _names(folder: Path, results: Path) -> list[str]:
    try:
        return files.names(folder, results)
    except OSError:
        return [""]  # a link, or a file in a folder's place


def _remove(folder: Path, results: Path) -> None:
    """Gone at once for readers, by a rename; then removed."""
    hidden = f"{files.ASIDE}{folder.name}-{os.getpid()}-{os.urandom(4).hex()}"
    parent = files.open_folder(folder.parent, results)
    try:
        os.rename(folder.name, hidden, src_dir_fd=parent, dst_dir_fd=parent)
    finally:
        os.close(parent)
    files.remove(folder.with_name(hidden), results)


def _sound(results: Path, name: str) -> Part | None:
    """The part where every file of it can be read; None: it is damaged, and stays as it is."""
    try:
        part = Part(results / FOLDER / name, results)
        part.verify()
        return part
    except DAMAGE:
        return None


def _unpack(results: Path, part: Part) -> int:
    """Write the part's attempts into run folders, and sync them; those that are there already stay."""
    contents, count, folders = _PartContents(part), 0, set()
    for at, (run_id, attempt) in enumerate(zip(*(part.index[n].to_pylist() for n in KEYS[:2]), strict=True)):
        folder = results / "runs" / run_id
        if not RUN_ID.fullmatch(run_id) or attempt in attempts_in(folder, results):
            continue
        files.make_folder(folder, results)
        starts = contents.kept(at)["starts"]
        if starts and files.look(folder / STARTS, results) is None:
            files.write(folder / STARTS, starts, results)
        files.write_folder(folder / f"a{attempt}", contents.attempt_files(at), results)
        count += 1
        folders.add(folder)
    for folder in folders:
        files.sync_folder(folder, results)
    files.sync_folder(results / "runs", results)
    return count


class _PartContents:
    """What a part has of each attempt, by the attempt's place in it, as files of a run folder."""

    def __init__(self, part: Part) -> None:
        self.part, self.runs = part, Packed(part, arrow_schema("runs").names, Notes()).loaded
        self._kept = part.kept()
        self.others = {name: part.rows(name, rows_schema(name).names) for name in OTHERS}
        self.starts = {name: np.cumsum(part.index[name].to_numpy()) - part.index[name].to_numpy() for name in OTHERS}

    def kept(self, at: int) -> dict[str, str | None]:
        return self._kept.slice(at, 1).to_pylist()[0]

    def attempt_files(self, at: int) -> dict[str, bytes]:
        tables = {
            name: arrow_bytes(self.others[name].slice(self.starts[name][at], length).combine_chunks())
            for name in OTHERS
            if (length := self.part.index[name][at].as_py())
        }
        row = _row_of(self.runs.slice(at, 1).to_pylist()[0], self.kept(at)["other_json"], tables)
        sealed = digests.sealed(row) if row.get(digests.ROW) else json.dumps(row, indent=1).encode() + b"\n"
        return {ROW_FILE: sealed} | {f"{name}.arrow": content for name, content in tables.items()}


def _row_of(row: dict, other: str | None, tables: Mapping[str, bytes]) -> dict:
    """The row as run.json has it: an older row without the columns that came later."""
    absent = [name for name, column in columns("runs").items() if row[name] is None and column.required]
    known = _without(row, absent)
    if known.get(digests.TABLES) is not None:
        known[digests.TABLES] = digests.of_tables(tables)
    return _without(_object(other), known) | known


def _without(row: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def _object(text: str | None) -> dict:
    """The JSON object that the text is; an empty one where it is none."""
    try:
        content = files.parse_json(text or "{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
