"""Was the machine quiet while a run was timed? A rule of ours, beside the twelve of `scalade check`.

The thresholds are shares of the timed steps, so that they read as what a step may have lost. Their reasons are in
docs/table.md, "The machine". Where all columns of a rule are null it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import numpy as np

from ..wording import count_of
from .column_codes import Coded, joint

OTHERS = 0.05  # of the CPU time: a rank that computes all the time loses about as much
STEAL = 0.01  # and what the hypervisor takes is taken from a running rank, the slowest of which makes the step
QUOTA = 0.01  # of the periods: in each of them every rank of the group stood still
HEAT = 0.01  # of the time, on a GPU
SLOWER = 0.9  # of the highest median clock of the table's runs on this CPU model, this GPU
LOAD = 0.25  # of the cores, above the ranks' own threads; where the time of others is not known

Share = tuple[str, str, float, str]
SHARES: tuple[Share, ...] = (
    ("cpu_others_share", f"other processes took more than {OTHERS:.0%} of the CPU time", OTHERS, "%"),
    ("cpu_steal_share", f"the hypervisor took more than {STEAL:.0%} of it", STEAL, "%"),
    ("cgroup_throttled_share", f"a CPU quota held ranks back in more than {QUOTA:.0%} of its periods", QUOTA, "%"),
    ("cpu_heat_throttles", "a CPU slowed itself for heat", 0, "times"),
    ("gpu_heat_share", f"heat held a GPU's clock down for more than {HEAT:.0%} of the time", HEAT, "%"),
)
CLOCKS = (("cpu_mhz", "cpu_model"), ("gpu_mhz_min", "device_name"))


def disturbed(rows: Sequence[Mapping], columns: Coded) -> dict[str, tuple[np.ndarray, str]]:
    """By what disturbed them: which runs (rows,), and the worst that was measured. Empty: the machine was quiet."""
    causes: dict[str, tuple[np.ndarray, str]] = {}
    for column, what, most, unit in SHARES:
        share = columns.numbers(column)
        if (above := share > most).any():
            worst = rows[int(np.nanargmax(share))][column]
            causes[what] = above, f"{worst:.0%}" if unit == "%" else f"{worst} {unit}"
    if (loaded := _loaded(columns)).any():
        causes["the load average was high"] = loaded, f"{columns.numbers('load_average')[loaded].max():.1f}"
    for column, device in CLOCKS:
        share = _share_of_highest(columns.numbers(column), joint([columns.of(device)], len(rows)))
        if (slow := share < SLOWER).any():
            what = f"{column} is below {SLOWER:.0%} of another run's on the same {device}"
            causes[what] = slow, f"{share[slow].min():.0%}"
    return causes


def _share_of_highest(mhz: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """(rows,) of the highest clock of the rows of its kind; NaN where it is not known."""
    known = mhz > 0
    highest = np.zeros(len(mhz))
    np.maximum.at(highest, kind[known], mhz[known])
    share = np.full(len(mhz), np.nan)
    share[known] = mhz[known] / highest[kind[known]]
    return share


def _loaded(columns: Coded) -> np.ndarray:
    """(rows,) bool: the load says more than the ranks' own threads, and no better witness is there."""
    load, cores, threads, ranks, nodes = map(
        columns.numbers, ("load_average", "cpu_count", "threads_per_rank", "world_size", "nodes")
    )
    own = ranks * threads / np.where(nodes != 0, np.nan_to_num(nodes, nan=1), 1)
    return columns.null("cpu_others_share") & (load - own > LOAD * cores)  # NaN, where one is not known, is not above


def quiet(rows: Sequence[Mapping], verdict: Callable[[Sequence, str, str], tuple], skip: str) -> tuple:
    """The rule's (verdict, why, runs) over runs with status ok."""
    names = ("load_average", *(column for column, *_ in SHARES), *(column for column, _ in CLOCKS))
    columns = Coded(rows)
    known = len(rows) - int(np.logical_and.reduce(list(map(columns.null, names))).sum())
    if not known:
        return skip, "no run recorded what else the machine did", ()
    causes = disturbed(rows, columns)
    order = chain.from_iterable(np.flatnonzero(some).tolist() for some, _ in causes.values())
    runs = {rows[at]["run_id"]: rows[at] for at in dict.fromkeys(order)}
    worsts = "; ".join(
        f"{what}: {count_of(some.sum(), 'run')}, at worst {worst}" for what, (some, worst) in causes.items()
    )
    return verdict(
        list(runs.values()),
        f"{len(runs)} of {count_of(len(rows), 'run')} disturbed: {worsts}",
        f"{known} of {count_of(len(rows), 'run')} recorded what else the machine did, none was disturbed",
    )
