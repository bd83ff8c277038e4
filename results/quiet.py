"""Was the machine quiet while a run was timed? A rule of ours, beside the twelve of `scalade check`.

The thresholds are shares of the timed steps, so that they read as what a step may have lost. Their reasons are in
docs/table.md, "The machine". None of a rule's columns told: it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

OTHERS = 0.05  # of the CPU time: a rank that computes all the time loses about as much
STEAL = 0.01  # and what the hypervisor takes is taken from a running rank, the slowest of which makes the step
QUOTA = 0.01  # of the periods: in each of them every rank of the group stood still
HEAT = 0.01  # of the time, on a GPU
SLOWER = 0.9  # of the highest median clock of the table's runs on this CPU model, this GPU
LOAD = 0.25  # of the cores, above the ranks' own threads; where the time of others is not told

Share = tuple[str, str, float, str]
SHARES: tuple[Share, ...] = (
    ("cpu_others_share", f"other processes took more than {OTHERS:.0%} of the CPU time", OTHERS, "%"),
    ("cpu_steal_share", f"the hypervisor took more than {STEAL:.0%} of it", STEAL, "%"),
    ("cgroup_throttled_share", f"a CPU quota held ranks back in more than {QUOTA:.0%} of its periods", QUOTA, "%"),
    ("cpu_heat_throttles", "a CPU slowed itself for heat", 0, "times"),
    ("gpu_heat_share", f"heat held a GPU's clock down for more than {HEAT:.0%} of the time", HEAT, "%"),
)
CLOCKS = (("cpu_mhz", "cpu_model"), ("gpu_mhz_min", "device_name"))


def disturbed(rows: Sequence[Mapping]) -> dict[str, tuple[list[Mapping], str]]:
    """By what disturbed them: the runs, and the worst that was measured. Empty: the machine was quiet."""
    found: dict[str, tuple[list[Mapping], str]] = {}
    for column, what, most, unit in SHARES:
        above = [row for row in rows if row.get(column) is not None and row[column] > most]
        if above:
            worst = max(row[column] for row in above)
            found[what] = above, f"{worst:.0%}" if unit == "%" else f"{worst} {unit}"
    if loaded := [row for row in rows if _loaded(row)]:
        found["the load average was high"] = loaded, f"{max(row['load_average'] for row in loaded):.1f}"
    for column, device in CLOCKS:
        highest: dict[object, float] = {}
        told = [row for row in rows if (row.get(column) or 0) > 0]
        for row in told:
            highest[row.get(device)] = max(highest.get(row.get(device), 0.0), row[column])
        if slow := [row for row in told if row[column] < SLOWER * highest[row.get(device)]]:
            worst = min(row[column] / highest[row.get(device)] for row in slow)
            found[f"{column} is below {SLOWER:.0%} of another run's on the same {device}"] = slow, f"{worst:.0%}"
    return found


def _loaded(row: Mapping) -> bool:
    names = ("load_average", "cpu_count", "threads_per_rank", "world_size")
    if row.get("cpu_others_share") is not None or any(row.get(name) is None for name in names):
        return False
    own = row["world_size"] * row["threads_per_rank"] / (row.get("nodes") or 1)
    return row["load_average"] - own > LOAD * row["cpu_count"]


def quiet(rows: Sequence[Mapping], verdict: Callable[[Sequence, str, str], tuple], skip: str) -> tuple:
    """The rule's (verdict, why, runs) over runs with status ok."""
    names = ("load_average", *(column for column, *_ in SHARES), *(column for column, _ in CLOCKS))
    told = [row for row in rows if any(row.get(name) is not None for name in names)]
    if not told:
        return skip, "no run tells what else the machine did", ()
    found = disturbed(told)
    runs = {row["run_id"]: row for some, _ in found.values() for row in some}
    said = "; ".join(f"{what}: {len(some)} runs, at worst {worst}" for what, (some, worst) in found.items())
    return verdict(list(runs.values()), f"{len(runs)} of {len(rows)} runs were disturbed: {said}",
                   f"{len(told)} of {len(rows)} runs tell of the machine, and none was disturbed")  # fmt: skip
