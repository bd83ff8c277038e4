"""Do a table's time stamps agree with its durations? A rule of ours, beside the twelve of `scalade check`.

Durations come from the monotonic clock, which cannot be set; `started_at` and `finished_at` are the host's clock at
those moments, which may be set in between. Where the two disagree, it was set: the durations stand, and what is derived
from stamps alone (the order of runs, waits between hosts) is not to be believed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np

from ..schema.rows import values_in
from ..table.column_codes import Coded
from ..wording import count_of

KEYS = ("run_id", "attempt")
COLUMNS = (*KEYS, "status", "started_at", "finished_at", "wall_s", "restarts", "elapsed_s", "ranks_json")
APART_S, APART = 5.0, 0.01  # finished_at - started_at from wall_s: seconds, and the share of wall_s
AHEAD_S = 300.0  # of this host's clock: other hosts' are allowed that


def unix_s(stamp: object) -> float | None:
    """Of an ISO 8601 stamp; one without a zone is UTC. None: it is not one."""
    try:
        at = datetime.fromisoformat(str(stamp))
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def disagreements(rows: Sequence[Mapping], now: float | None = None) -> dict[str, list[Mapping]]:
    """What is wrong, in words, and the rows, of all attempts. Empty: all agree.

    now: Unix time, s
    """
    now = time.time() if now is None else now
    rows = sorted(rows, key=lambda row: (row["run_id"], row["attempt"] or 0))
    columns = Coded(rows)
    began, ended = (_unix_s(values_in(rows, name)) for name in ("started_at", "finished_at"))
    wall_s, known = columns.numbers("wall_s"), ~columns.null("wall_s")
    disagreeing = {
        "wall_s is below 0": wall_s < 0,
        f"finished_at - started_at is not wall_s, by more than {APART_S:g} s and {APART:.0%}": (wall_s >= 0)
        & (np.abs(ended - began - wall_s) > APART_S + APART * wall_s),
        "started_at is in the future": began > now + AHEAD_S,
        "elapsed_s is null: between two starts the clock went back, or by months": (columns.numbers("restarts") > 0)
        & columns.null("elapsed_s")
        & known,
    } | _overlaps(rows, began, began + np.where(wall_s > 0, wall_s, 0))
    places = {what: np.flatnonzero(which) for what, which in disagreeing.items() if which.any()}
    return {what: [rows[at] for at in places[what]] for what in sorted(places, key=lambda what: places[what][0])}


def _overlaps(rows: Sequence[Mapping], began: np.ndarray, last: np.ndarray) -> dict[str, np.ndarray]:
    """What is wrong with an attempt beside the one before it, (rows,) bool each; rows in order of run and attempt."""
    early, over = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    stamped = np.flatnonzero(~np.isnan(began))
    run = Coded(rows).of("run_id")[stamped]
    again = np.flatnonzero(run[1:] == run[:-1])
    before, these = stamped[again], stamped[again + 1]
    early[these] = began[these] < began[before] - APART_S
    for at, other in zip(these, before, strict=True):
        over[at] = not early[at] and began[at] < last[other] - APART_S and _host(rows[at]) == _host(rows[other])
    return {
        "an attempt started before the one before it": early,
        "an attempt started before the one before it had ended, on one host": over,
    }


def _unix_s(stamps: Iterable[object]) -> np.ndarray:
    """(stamps,) NaN where it is none."""
    seconds = (None if stamp is None else unix_s(stamp) for stamp in stamps)
    return np.array([np.nan if at is None else at for at in seconds])


def _host(row: Mapping) -> str | None:
    """Of rank 0, as text: `ranks_json` begins with it."""
    return str(row.get("ranks_json") or "").partition('"host": "')[2].partition('"')[0] or None


def clocks(rows: Sequence[Mapping], verdict: Callable[[Sequence, str, str], tuple], skip: str) -> tuple:
    """The rule's (verdict, why, runs) over rows of all attempts."""
    stamped = [row for row in rows if row["started_at"] is not None]
    if not stamped:
        return skip, "no run says when it started", ()
    disagreeing = disagreements(rows)
    runs = {row["run_id"]: row for some in disagreeing.values() for row in some}
    causes = "; ".join(
        f"{what}: {count_of(len({row['run_id'] for row in some}), 'run')}" for what, some in disagreeing.items()
    )
    return verdict(
        list(runs.values()), causes, f"the stamps of {count_of(len(stamped), 'attempt')} agree with their durations"
    )
