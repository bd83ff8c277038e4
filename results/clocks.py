"""Do a table's time stamps agree with its durations? A rule of ours, beside the twelve of `scalade check`.

Durations come from the monotonic clock, which nobody sets; `started_at` and `finished_at` are the host's clock at those
moments, which may be set in between. Where the two disagree, somebody did: the durations stand, and what is derived
from stamps alone (the order of runs, waits between hosts) is not to be believed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime

COLUMNS = ("run_id", "attempt", "status", "started_at", "finished_at", "wall_s", "restarts", "elapsed_s", "ranks_json")
APART_S, APART = 5.0, 0.01  # finished_at - started_at from wall_s: seconds, and the share of wall_s
AHEAD_S = 300.0  # of this host's clock: other hosts' are allowed that


def unix_s(stamp: object) -> float | None:
    """Of an ISO 8601 stamp; one without a zone is UTC. None: it is not one."""
    try:
        at = datetime.fromisoformat(str(stamp))
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def disagreements(rows: Iterable[Mapping], now: float | None = None) -> dict[str, list[Mapping]]:
    """What is wrong, in words, and the rows, of all attempts. Empty: all agree.

    now: Unix time, s
    """
    now = time.time() if now is None else now
    found: dict[str, list[Mapping]] = {}

    def note(what: str, row: Mapping) -> None:
        found.setdefault(what, []).append(row)

    before: dict[object, tuple[float, float, Mapping]] = {}  # by run: when its last attempt began and ended
    for row in sorted(rows, key=lambda row: (row["run_id"], row["attempt"] or 0)):
        began, ended, wall_s = unix_s(row["started_at"]), unix_s(row["finished_at"]), row["wall_s"]
        if wall_s is not None and wall_s < 0:
            note("wall_s is below 0", row)
        elif None not in (began, ended, wall_s) and abs(ended - began - wall_s) > APART_S + APART * wall_s:
            note(f"finished_at - started_at is not wall_s, by more than {APART_S:g} s and {APART:.0%}", row)
        if began is not None and began > now + AHEAD_S:
            note("started_at is in the future", row)
        if row.get("restarts") and row.get("elapsed_s") is None and wall_s is not None:
            note("elapsed_s is null: between two starts the clock went back, or by months", row)
        if began is None:
            continue
        if row["run_id"] in before:
            first, last, other = before[row["run_id"]]
            if began < first - APART_S:
                note("an attempt started before the one before it", row)
            elif began < last - APART_S and _host(row) == _host(other):
                note("an attempt started before the one before it had ended, on one host", row)
        before[row["run_id"]] = began, began + wall_s if wall_s is not None and wall_s > 0 else began, row
    return found


def _host(row: Mapping) -> str | None:
    """Of rank 0, as text: `ranks_json` begins with it."""
    return str(row.get("ranks_json") or "").partition('"host": "')[2].partition('"')[0] or None


def clocks(rows: Sequence[Mapping], verdict: Callable[[Sequence, str, str], tuple], skip: str) -> tuple:
    """The rule's (verdict, why, runs) over rows of all attempts."""
    told = [row for row in rows if row["started_at"] is not None]
    if not told:
        return skip, "no run says when it started", ()
    found = disagreements(rows)
    runs = {row["run_id"]: row for some in found.values() for row in some}
    said = "; ".join(f"{what}: {len({row['run_id'] for row in some})} runs" for what, some in found.items())
    return verdict(list(runs.values()), said, f"the stamps of {len(told)} attempts agree with their durations")
