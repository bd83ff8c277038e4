"""Which runs may be compared: the columns that must agree, what is a repeat of what, and which base a layout has.

A **group** is the runs that repeat each other: all that decides speed is the same, seeds may differ. Two groups are
comparable where the work function matches: model, data, recipe, outer algorithm, software choices and device are
the same, and so is the batch: the global one in strong scaling, the one of each device in weak scaling.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from statistics import median as middle

from ..columns import RUNS
from ..schema import columns


def _names(group: str, but: Iterable[str] = ()) -> tuple[str, ...]:
    return tuple(column.name for column in RUNS[group] if column.name not in but)


_NOT_SETTINGS = ("outer_replicas", "outer_placement", "outer_offload")  # how replicas are placed: layout
_OUTER = _names("Outer loop")
BATCH = "global_batch"
MODEL = tuple(name for name in _names("Model") if name.startswith("model_"))
DATA = tuple(
    name for name in _names("Data")
    if name.startswith("data_") and name not in ("data_path", "data_val_path", "data_tokens", "data_entropy_nats")
)  # fmt: skip
RECIPE = _names("Recipe", but=("seed", BATCH, "start_weights"))
OUTER = tuple(name for name in _OUTER[: _OUTER.index("outer_steps")] if name not in _NOT_SETTINGS)
CONDITIONS = ("recompute", "compile", "device_type", "device_name", "threads_per_rank")
MUST_MATCH = MODEL + DATA + RECIPE + OUTER + CONDITIONS
ON_CPU = ("cpu_model", "omp_wait_policy")  # must match where the CPU computes
_MATCHED = (*MUST_MATCH, *ON_CPU)  # of Group.match_key
NEAR = 32  # groups that one without a comparable base is set beside, to say what is in the way

DEGREES = {"dp_replicate": "dp", "dp_shard": "fsdp", "cp": "cp", "tp": "tp", "ep": "ep", "pp": "pp"}
_GROUPED = (*MUST_MATCH, BATCH, *_names("Layout"), "outer_replicas", "outer_placement", "world_size")


@dataclass(frozen=True)
class Group:
    """Runs that repeat each other; every one is `ok` and has a step time."""

    rows: tuple[dict, ...]
    not_ok: tuple[dict, ...] = ()  # runs of the same group that came to nothing

    def __getitem__(self, column: str) -> object:
        return self.rows[0].get(column)

    @property
    def devices(self) -> int:
        return self["world_size"]

    @property
    def label(self) -> str:
        return self["layout"] or "?"

    @property
    def where(self) -> str:
        return f"{self.label} on {self.devices} rank{'s' * (self.devices != 1)}"

    @cached_property
    def match_key(self) -> tuple:
        """Every column that must agree, but for the batch."""
        computes = self["device_type"] == "cpu"
        return tuple(self[name] for name in MUST_MATCH) + tuple(self[name] if computes else None for name in ON_CPU)

    @cached_property
    def family(self) -> str:
        """What grows: the dimensions in use, with the settings that make them another algorithm."""
        parts = [] if (self["outer_algorithm"] or "none") == "none" else [self["outer_algorithm"]]
        for column, name in DEGREES.items():
            if (self[column] or 1) > 1:
                extra = {
                    "dp_shard": ("" if self["reshard_after_forward"] is not False else "-z2") + self._zero,
                    "tp": "" if self["sp"] is not False else "-nosp",
                    "cp": "" if self["cp_method"] in (None, "allgather") else f"-{self['cp_method']}",
                    "pp": f"-{self['pp_schedule']}" if self["pp_schedule"] else "",
                }.get(column, "")
                parts.append(name + extra)
        for what in ("optimizer", "parameters"):
            if (self[f"offload_{what}"] or "none") != "none":
                parts.append(f"{what}-{self[f'offload_{what}']}")
        return "+".join(parts) or "single"

    @property
    def _zero(self) -> str:
        """How another engine than torch shards."""
        if self["engine"] in (None, "torch"):
            return ""
        return f"-zero{self['zero_stage']}" + (f"-hpz{self['hpz']}" if (self["hpz"] or 1) > 1 else "")

    @cached_property
    def cost_s(self) -> list[float]:
        """Device-seconds per token of each run: what efficiency divides."""
        return [row["step_time_s"] * self.devices / row["tokens_per_step"] for row in self.rows]


def groups(rows: Sequence[dict]) -> tuple[list[Group], list[dict]]:
    """The groups by device count, and the runs that belong to none because they are not ok or were not timed."""
    kept: dict[tuple, list[dict]] = {}
    lost: dict[tuple, list[dict]] = {}
    for row in rows:
        key = tuple(row.get(name) for name in _GROUPED)
        timed = row["status"] == "ok" and all(row.get(n) for n in ("step_time_s", "tokens_per_step", "world_size"))
        (kept if timed else lost).setdefault(key, []).append(row)
    found = [Group(tuple(members), tuple(lost.get(key, ()))) for key, members in kept.items()]
    found.sort(key=lambda g: (g.devices, g["engine"] or "", g.label, g["case_id"]))
    return found, [row for members in lost.values() for row in members]


def guess_mode(found: Sequence[Group]) -> str:
    """`strong` where the global batch is one and the same, `weak` where that of each device is.

    Raises
    ------
    ValueError: neither, or the table does not say
    """
    totals = {group[BATCH] for group in found}
    per_device = {Fraction(group[BATCH] or 0, group.devices) for group in found}
    if len(totals) == 1:
        return "strong"
    if len(per_device) == 1:
        return "weak"
    raise ValueError(
        f"global_batch is neither the same in all runs ({_listed(totals)}) nor per device ({_listed(per_device)}): "
        "name the mode, strong or weak, or keep a part of the runs with a filter"
    )


def differing(group: Group, base: Group, mode: str, allow: Sequence[str] = ()) -> list[str]:
    """The columns because of which the two may not be compared; empty: they may."""
    names = []
    if group.match_key != base.match_key:
        pairs = zip(_MATCHED, group.match_key, base.match_key, strict=True)
        names = [name for name, ours, theirs in pairs if ours != theirs]
    ours, theirs = (1, 1) if mode == "strong" else (base.devices, group.devices)
    if (group[BATCH] or 0) * ours != (base[BATCH] or 0) * theirs:
        names.append(BATCH)
    return [name for name in names if name not in allow]


def remedy(group: Group, base: Group, names: Sequence[str]) -> str:
    """What to change in a study whose runs differ in these columns, where that is a matter of how it is run; or ""."""
    counts = [group["threads_per_rank"], base["threads_per_rank"]]
    if "threads_per_rank" in names and all(counts):
        here, there = counts
        return (
            f" ({here}, there {there}): set run.threads_per_rank = {min(counts)} in the study and run it again with "
            "a --results of its own"
        )
    if "omp_wait_policy" in names:
        here, there = (group["omp_wait_policy"] or "not told", base["omp_wait_policy"] or "not told")
        return f" ({here}, there {there}): run both again by one version, with a --results of its own"
    return ""


def allowed(names: Sequence[str]) -> tuple[str, ...]:
    """The columns a user lets differ; `outer` is all settings of the outer algorithm.

    Raises
    ------
    ValueError: a column that nothing is compared by; names the nearest
    """
    known = (*MUST_MATCH, BATCH, *ON_CPU)
    found: list[str] = []
    for name in names:
        if name != "outer" and name not in known:
            near = difflib.get_close_matches(name, ("outer", *known), n=1, cutoff=0)[0]
            what = "is no column of the runs" if name not in columns("runs") else "need not match"
            raise ValueError(f"allow {name!r}: {what}; did you mean {near!r}?")
        found += OUTER if name == "outer" else [name]
    return tuple(found)


def work_key(group: Group, mode: str, allow: Sequence[str] = ()) -> tuple:
    """Equal for two groups that may be compared (`differing` names nothing), and for no others."""
    batch = group[BATCH] or 0
    key = tuple(value for name, value in zip(_MATCHED, group.match_key, strict=True) if name not in allow)
    return (*key, None if BATCH in allow else batch if mode == "strong" else Fraction(batch, group.devices))


class Bases:
    """What each group is read against: found by what must match, so that each costs the same however many there are.

    declared: the bases the user named. Otherwise a group's base is the smallest device count of the same engine and
    family, a single process belonging to every family; among several layouts there, the fastest.
    """

    def __init__(
        self, found: Sequence[Group], mode: str, allow: Sequence[str] = (), declared: Sequence[Group] | None = None
    ):
        self.mode, self.allow, self.declared = mode, allow, declared is not None
        self.pools: dict[tuple, list[Group]] = {}
        for group in sorted(found if declared is None else declared, key=_small_and_fast):
            for key in self._keys(group, group.family):
                self.pools.setdefault(key, []).append(group)

    def of(self, group: Group) -> tuple[Group | None, list[str]]:
        """The group's base and the columns in which it differs (empty: comparable); (None, []): there is none.

        Where none is comparable it is the nearest among the NEAR smallest that do most of the same work.
        """
        families = dict.fromkeys((group.family, "single"))
        for keys in zip(*(self._keys(group, family) for family in families), strict=True):
            candidates = [
                other for key in dict.fromkeys(keys) for other in self.pools.get(key, ())[:NEAR]
                if other is not group and (self.declared or other.devices < group.devices)
            ]  # fmt: skip
            if candidates:
                named = [(differing(group, other, self.mode, self.allow), other) for other in candidates]
                names, best = min(named, key=lambda pair: (len(pair[0]), *_small_and_fast(pair[1])))
                return best, names
        return None, []

    def _keys(self, group: Group, family: str) -> list[tuple]:
        """The pools a group is in, or looks in: all that must match, then less and less of it."""
        who = () if self.declared else (group["engine"], family)
        keep = [[name for name in some if name not in self.allow] for some in (MODEL + DATA + RECIPE + OUTER, MODEL)]
        return [(*who, work_key(group, self.mode, self.allow)),
                *((*who, tuple(group[name] for name in names)) for names in keep), who]  # fmt: skip


def _small_and_fast(group: Group) -> tuple[int, float]:
    return group.devices, middle(group.cost_s)


def _listed(values: Iterable) -> str:
    return ", ".join(str(value) for value in sorted(values, key=str)[:5])
