"""Which runs may be compared: the columns that must agree, what is a repeat of what, and which base a layout has.

A **group** is the runs that repeat each other: all that decides speed is the same, seeds may differ. Two groups are
comparable where the work function matches: model, data, recipe, outer algorithm, software choices and device are
the same, and so are the tokens of a step (work.py): all of them in strong scaling, those of each device in weak.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from statistics import median as middle

import numpy as np

from ..schema.columns import DEGREE_LABELS, RUNS
from ..schema.schema import columns
from ..table.column_codes import NULL, Coded, coded
from ..table.distinguishing import differing_in_parts
from ..table.work import Work, rate_of
from ..wording import count_of, nearest


def columns_of(group: str, but: Iterable[str] = ()) -> tuple[str, ...]:
    return tuple(column.name for column in RUNS[group] if column.name not in but)


_NOT_SETTINGS = ("outer_replicas", "outer_placement", "outer_offload")  # how replicas are placed: layout
_OUTER = columns_of("Outer loop")
BATCH = "global_batch"
TOKENS = "tokens_per_step"
MODEL = tuple(name for name in columns_of("Model") if name.startswith("model_"))
DATA = tuple(
    name
    for name in columns_of("Data")
    if name.startswith("data_") and name not in ("data_path", "data_val_path", "data_tokens", "data_entropy_nats")
)
RECIPE = columns_of("Recipe", but=("seed", BATCH, "start_weights"))
OUTER = tuple(name for name in _OUTER[: _OUTER.index("outer_steps")] if name not in _NOT_SETTINGS)
CONDITIONS = ("recompute", "compile", "device_type", "device_name", "threads_per_rank")
MUST_MATCH = MODEL + DATA + RECIPE + OUTER + CONDITIONS
ON_CPU = ("cpu_model", "omp_wait_policy")  # must match where the CPU computes
_MATCHED = (*MUST_MATCH, *ON_CPU)  # of Group.match_key
NEAR = 32  # groups that one without a comparable base is set beside, to say what is in the way


@dataclass(frozen=True)
class Group:
    """Runs that repeat each other; every one is `ok`, has a step time, a throughput and known tokens per step."""

    rows: tuple[Mapping, ...]
    not_ok: tuple[Mapping, ...] = ()  # runs of the same group that came to nothing
    work: Work | None = None  # of a step
    levels: tuple[Fraction, Fraction] = (Fraction(0), Fraction(0))  # that work, and one device's: equal where the same

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
        return f"{self.label} on {count_of(self.devices, 'rank')}"

    @cached_property
    def match_key(self) -> tuple:
        """Every column that must agree, but for the batch."""
        computes = self["device_type"] == "cpu"
        return tuple(self[name] for name in MUST_MATCH) + tuple(self[name] if computes else None for name in ON_CPU)

    @cached_property
    def family(self) -> str:
        """What grows: the dimensions in use, with the settings that make them another algorithm."""
        parts = [] if (self["outer_algorithm"] or "none") == "none" else [self["outer_algorithm"]]
        for column, name in DEGREE_LABELS.items():
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
    def rates(self) -> list[float]:
        """tokens/s of each run."""
        return [rate_of(row) for row in self.rows]

    @cached_property
    def cost_s(self) -> float:
        """Device-seconds per token, which efficiency divides: the median over the runs."""
        return middle(self.devices / rate for rate in self.rates)

    def level(self, mode: str) -> Fraction:
        """What must be equal in two groups that do the same work."""
        return self.levels[mode == "weak"]

    def amount(self, mode: str) -> str:
        """The work that a mode compares, for people."""
        return f"{self.work}" if mode == "strong" else f"{self.work.over(self.devices)} a device"


def varying(bases: Sequence[Group]) -> list[str]:
    """The columns in which bases of one model differ: what their series have to be told apart by."""
    names = (*MUST_MATCH, BATCH)
    told = differing_in_parts([base.rows[0] for base in bases], [base["model"] for base in bases], names)
    found = set().union(*set(told))
    return [name for name in names if name in found]


def guess_mode(found: Sequence[Group]) -> str:
    """`strong` where the tokens of a step are the same in all groups that match, `weak` where each device's are.

    Raises
    ------
    ValueError: neither
    """
    pools: dict[tuple, list[Group]] = {}
    for group in found:
        pools.setdefault(group.match_key, []).append(group)
    for mode in ("strong", "weak"):
        if all(len({group.level(mode) for group in some}) == 1 for some in pools.values()):
            return mode
    worst = max(pools.values(), key=lambda some: len({group.level("strong") for group in some}))
    totals, shares = ({group.level(mode): group.amount(mode) for group in worst} for mode in ("strong", "weak"))
    raise ValueError(
        f"{TOKENS} is neither the same in all runs ({_listed(totals)}) nor per device "
        f"({_listed(shares).replace(' a device', '')}): name the mode, strong or weak, or keep a part of the runs "
        "with a filter"
    )


def differing(group: Group, base: Group, mode: str, allow: Sequence[str] = ()) -> list[str]:
    """The columns because of which the two may not be compared; empty: they may."""
    names = []
    if group.match_key != base.match_key:
        pairs = zip(_MATCHED, group.match_key, base.match_key, strict=True)
        names = [name for name, ours, theirs in pairs if ours != theirs]
    if group.level(mode) != base.level(mode):
        names.append(TOKENS)
    return [name for name in names if name not in allow]


def difference(group: Group, base: Group, mode: str, names: Sequence[str]) -> str:
    """The columns in which two groups differ, for people: with the values, and what to change in the study, where the
    work or the threads are among them."""
    threads = next((name for name in ("threads_per_rank", "omp_wait_policy") if name in names), None)
    here, there = (one[threads] if threads else None for one in (group, base))
    told = {
        TOKENS: f"{TOKENS} ({group.amount(mode)} against {base.amount(mode)})",
        threads: f"{threads} ({here or 'not told'}, there {there or 'not told'})",
    }
    shown = ", ".join(told.get(name, name) for name in names)
    if threads == "threads_per_rank" and here and there:
        least = min(here, there)
        return f"{shown}: set run.threads_per_rank = {least} in the study and run it again with a --results of its own"
    if threads == "omp_wait_policy":
        return f"{shown}: run both again by one version, with a --results of its own"
    return shown


def allowed(names: Sequence[str]) -> tuple[str, ...]:
    """The columns a user lets differ; `outer` is all settings of the outer algorithm, global_batch the tokens.

    Raises
    ------
    ValueError: a column that nothing is compared by; names the nearest
    """
    known = (*MUST_MATCH, "val_hash", TOKENS, *ON_CPU)
    found: list[str] = []
    for name in (TOKENS if name == BATCH else name for name in names):
        if name != "outer" and name not in known:
            near = nearest(name, ("outer", *known), cutoff=0)[0]
            what = "is no column of the runs" if name not in columns("runs") else "need not match"
            raise ValueError(f"allow {name!r}: {what}; did you mean {near!r}?")
        found += OUTER if name == "outer" else [name]
    return tuple(found)


def work_keys(found: Sequence[Group], mode: str, allow: Sequence[str] = ()) -> np.ndarray:
    """(groups,) equal for two that may be compared (`differing` names nothing), and for no others."""
    columns = Coded([group.rows[0] for group in found])
    on_cpu = np.array([group["device_type"] == "cpu" for group in found], bool)
    names = [name for name in MUST_MATCH if name not in allow]
    more = [np.where(on_cpu, columns.of(name), NULL) for name in ON_CPU if name not in allow]
    more += [coded(group.level(mode) for group in found)] if TOKENS not in allow else []
    return columns.joint(names, *more)


class Bases:
    """What each group is read against: found by what must match, so that each costs the same however many there are.

    declared: the bases the user named, of those found. Otherwise a group's base is the smallest device count of the
    same engine and family, a single process belonging to every family; among several layouts there, the fastest.
    """

    def __init__(
        self, found: Sequence[Group], mode: str, allow: Sequence[str] = (), declared: Sequence[Group] | None = None
    ):
        self.mode, self.allow, self.declared = mode, allow, declared is not None
        columns = Coded([group.rows[0] for group in found])
        keep = [[name for name in some if name not in allow] for some in (MODEL + DATA + RECIPE + OUTER, MODEL)]
        works = np.stack([work_keys(found, mode, allow), *map(columns.joint, keep)], -1)
        self.works = dict(zip(map(id, found), works.tolist(), strict=True))  # all that must match, then less of it
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
                other
                for key in dict.fromkeys(keys)
                for other in self.pools.get(key, ())[:NEAR]
                if other is not group and (self.declared or other.devices < group.devices)
            ]
            if candidates:
                named = [(differing(group, other, self.mode, self.allow), other) for other in candidates]
                names, best = min(named, key=lambda pair: (len(pair[0]), *_small_and_fast(pair[1])))
                return best, names
        return None, []

    def _keys(self, group: Group, family: str) -> list[tuple]:
        """The pools a group is in, or looks in: all that must match, then less and less of it."""
        who = () if self.declared else (group["engine"], family)
        return [*((*who, kind, work) for kind, work in enumerate(self.works[id(group)])), who]


def _small_and_fast(group: Group) -> tuple[int, float]:
    return group.devices, group.cost_s


def _listed(amounts: dict[Fraction, str]) -> str:
    return ", ".join(amounts[level] for level in sorted(amounts)[:5])
