"""The attempts that lie in parts, for writers: looked up by run, and kept in step with other processes' packing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..schema.rows import Row, rows_of

if TYPE_CHECKING:
    from .part import Part

FOLDER = "table"
Losses = dict[str, tuple[int, str]]  # run_id -> its last attempt of which something is lost, and what
TRIES = 20  # readings that meet a packing; the last one takes things as they are
SETTLED_S = 2.0  # a folder changed less long ago may change again within the same tick of its clock


@dataclass(frozen=True)
class Place:
    """Where an attempt lies."""

    status: str
    part: Part
    at: int  # in the part's order


class _Attempt(NamedTuple):
    run_id: str
    attempt: int
    status: str


class _ReadPart(NamedTuple):
    """A part with its attempts in its order: None for one that does not count as done, for what `losses` says."""

    part: Part
    attempts: list[_Attempt | None]
    losses: Losses


class PackedRuns:
    """run_id -> attempt -> where it lies, of every part that can be read."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self._known: tuple[int | None, bool] | None = None  # when the folder was changed, and whether that has settled
        self._parts: dict[str, _ReadPart] = {}
        self._places: dict[str, dict[int, Place]] = {}
        self._rows: dict[tuple, dict[int, Row]] = {}
        self._lost: Losses = {}
        self._damaged: dict[str, str] = {}

    def attempts(self, run_id: str) -> dict[int, Place]:
        self._refresh()
        return self._places.get(run_id, {})

    def run_ids(self) -> Iterable[str]:
        self._refresh()
        return self._places.keys()

    def damaged(self) -> dict[str, str]:
        """Name of a part that cannot be read -> why. Its runs are not among ours."""
        self._refresh()
        return self._damaged

    def brief(self, place: Place, names: tuple[str, ...]) -> Row | None:
        """These columns of the attempt's row; None: it is damaged."""
        from .part import DAMAGE
        from .salvage import runs_of

        key = place.part.folder.name, names
        try:
            if key not in self._rows:
                table, whole, _ = runs_of(place.part, names)
                self._rows[key] = dict(zip(whole.nonzero()[0].tolist(), rows_of(table), strict=True))
            return self._rows[key].get(place.at)
        except DAMAGE:
            return None

    def row(self, place: Place) -> dict[str, Any] | None:
        """The attempt's row; None: it is damaged."""
        from ..schema.schema import columns
        from .part import DAMAGE
        from .salvage import runs_of

        try:
            table, whole, _ = runs_of(place.part, list(columns("runs")))
            return table.slice(int(whole[: place.at].sum()), 1).to_pylist()[0] if whole[place.at] else None
        except DAMAGE:
            return None

    def lost(self, run_id: str) -> tuple[int, str] | None:
        """The run's last attempt that a damaged part lost something of, and what; None: nothing."""
        self._refresh()
        return self._lost.get(run_id)

    def starts(self, run_id: str) -> str | None:
        """The run's starts.jsonl as it was packed; None: there was none."""
        from .part import DAMAGE

        places = self.attempts(run_id)
        try:
            texts = [places[n].part.kept()["starts"][places[n].at].as_py() for n in sorted(places)]
        except DAMAGE:
            return None
        return next((text for text in reversed(texts) if text), None)

    def _refresh(self) -> None:
        """Read the parts that are new, where the folder has changed."""
        try:
            changed = os.stat(self.results / FOLDER, follow_symlinks=False).st_mtime_ns
        except OSError:
            changed = None
        if self._known is not None and self._known == (changed, True):
            return
        settled = changed is None or time.time() - changed / 1e9 > SETTLED_S
        if changed is None and not self._parts:
            return
        self._known = changed, settled and changed is not None
        self._take()

    def _take(self) -> None:
        """Read the parts that there are now; a part may be taken into another between listing and opening."""
        from .part import part_names

        for _ in range(TRIES):
            names = part_names(self.results)
            if names == list(self._parts):
                return
            parts, damaged, is_whole = self._read_all(names)
            if is_whole:
                break
        self._parts, self._rows, self._damaged = parts, {}, damaged
        self._places, self._lost = {}, {}
        for one in parts.values():
            self._lost |= {run_id: max(lost, self._lost.get(run_id, lost)) for run_id, lost in one.losses.items()}
            for at, row in enumerate(one.attempts):
                if row is not None:
                    self._places.setdefault(row.run_id, {})[row.attempt] = Place(row.status, one.part, at)

    def _read_all(self, names: Sequence[str]) -> tuple[dict[str, _ReadPart], dict[str, str], bool]:
        """(the parts by name, why others are damaged, whether none of them is gone)."""
        from .part import DAMAGE, NewerPart, Part

        parts, damaged, is_whole = dict[str, _ReadPart](), dict[str, str](), True
        for name in names:
            try:
                parts[name] = self._parts.get(name) or _read(Part(self.results / FOLDER / name, self.results))
            except FileNotFoundError:
                is_whole = False
            except NewerPart:
                raise  # its runs are done: to leave it out would be to run them again
            except DAMAGE as error:
                damaged[name] = str(error)  # what it holds is not there: it runs again
        return parts, damaged, is_whole


def _read(part: Part) -> _ReadPart:
    """Of an attempt that is not ok the row counts alone."""
    from .salvage import losses

    rows = zip(*(part.index[name].to_pylist() for name in ("run_id", "attempt", "status")), strict=True)
    attempts: list[_Attempt | None] = [_Attempt(*row) for row in rows]
    lost_of: Losses = {}
    for loss in losses(part):
        for at in loss.lost.nonzero()[0].tolist() if loss.name != "kept" else ():
            row = attempts[at]
            if row is not None and (loss.name == "runs" or row.status == "ok"):
                lost = row.attempt, f"{FOLDER}/{part.folder.name}/{loss.name}.arrow: {loss.error}"
                lost_of[row.run_id] = max(lost, lost_of.get(row.run_id, lost))
                attempts[at] = None
    return _ReadPart(part, attempts, lost_of)
