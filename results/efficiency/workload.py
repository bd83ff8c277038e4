"""Which runs may be compared: the columns that must agree, what is a repeat of what, and which base a layout has.

A **group** is a set of runs that repeat each other: everything that decides speed is the same, seeds may differ. Two
groups are comparable if model, data, recipe, outer algorithm, software choices and device are the same, and so are
the tokens of a step (work.py): all of them in strong scaling, those of each device in weak scaling.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain
from statistics import median as middle
from typing import Any

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
NEAR = 32  # groups tried for one without a comparable base, to name the columns in which it differs


@dataclass(frozen=True)
class Group:
    """Runs that repeat each other; every one is `ok`, has a step time, a throughput and known tokens per step.

    not_ok: runs of the same settings that have no result. levels: see `level`; of the step, and of one device.
    """

    rows: tuple[Mapping, ...]
    not_ok: tuple[Mapping, ...]
    work: Work  # of a step
    levels: tuple[Fraction, Fraction]

    def __getitem__(self, column: str) -> Any:  # a cell of the table: its type is the column's
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
        """The dimensions that grow with the devices, with the settings that make each a different algorithm."""
        parts = [self["outer_algorithm"]] if has_outer_loop(self.rows[0]) else []
        parts += [name + self._variant(column) for column, name in DEGREE_LABELS.items() if (self[column] or 1) > 1]
        offloads = {what: self[f"offload_{what}"] or "none" for what in ("optimizer", "parameters")}
        parts += [f"{what}-{target}" for what, target in offloads.items() if target != "none"]
        return "+".join(parts) or "single"

    def _variant(self, degree: str) -> str:
        """The settings that make a dimension a different algorithm, as a suffix of its name."""
        match degree:
            case "dp_shard":
                return ("-z2" if self["reshard_after_forward"] is False else "") + self._zero
            case "tp":
                return "-nosp" if self["sp"] is False else ""
            case "cp":
                return "" if self["cp_method"] in (None, "allgather") else f"-{self['cp_method']}"
            case "pp":
                return f"-{self['pp_schedule']}" if self["pp_schedule"] else ""
            case _:
                return ""

    @property
    def _zero(self) -> str:
        """How an engine other than torch shards."""
        if self["engine"] in (None, "torch"):
            return ""
        return f"-zero{self['zero_stage']}" + (f"-hpz{self['hpz']}" if (self["hpz"] or 1) > 1 else "")

    @cached_property
    def rates(self) -> list[float]:
        """tokens/s of each run."""
        return list(filter(None, map(rate_of, self.rows)))  # none is null: see the class

    @cached_property
    def cost_s(self) -> float:
        """Device-seconds per token, which efficiency divides: the median over the runs."""
        return middle(self.devices / rate for rate in self.rates)

    def level(self, mode: str) -> Fraction:
        """What must be equal in two groups that do the same work."""
        whole, share = self.levels
        return share if mode == "weak" else whole

    def amount(self, mode: str) -> str:
        """The work that a mode compares, as text."""
        return f"{self.work}" if mode == "strong" else f"{self.work.over(self.devices)} a device"


def has_outer_loop(row: Mapping) -> bool:
    return (row.get("outer_algorithm") or "none") != "none"


def varying(bases: Sequence[Group]) -> list[str]:
    """The columns in which bases of one model differ: they tell the series of that model apart."""
    names = (*MUST_MATCH, BATCH)
    by_model = differing_in_parts([base.rows[0] for base in bases], [base["model"] for base in bases], names)
    differ = {name for columns in set(by_model) for name in columns}
    return [name for name in names if name in differ]


def guess_mode(groups: Sequence[Group]) -> str:
    """`strong` if the tokens of a step are the same in all groups that match, `weak` if those of each device are.

    Raises
    ------
    ValueError: neither
    """
    pools: dict[tuple, list[Group]] = {}
    for group in groups:
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
    """The columns that keep the two from being compared; empty: they may be compared."""
    names = []
    if group.match_key != base.match_key:
        pairs = zip(_MATCHED, group.match_key, base.match_key, strict=True)
        names = [name for name, ours, theirs in pairs if ours != theirs]
    if group.level(mode) != base.level(mode):
        names.append(TOKENS)
    return [name for name in names if name not in allow]


def difference(group: Group, base: Group, mode: str, names: Sequence[str]) -> str:
    """The columns in which two groups differ, as text: where the work or the threads are among them, with the values
    and what to change in the study."""
    detail = {TOKENS: f"{TOKENS} ({group.amount(mode)} against {base.amount(mode)})"}
    threads = next((name for name in ("threads_per_rank", "omp_wait_policy") if name in names), None)
    if threads is not None:
        detail[threads] = f"{threads} ({group[threads] or 'not told'}, there {base[threads] or 'not told'})"
    text = ", ".join(detail.get(name, name) for name in names)
    if threads == "threads_per_rank" and group[threads] and base[threads]:
        least = min(group[threads], base[threads])
        return f"{text}: set run.threads_per_rank = {least} in the study and run it again with a --results of its own"
    if threads == "omp_wait_policy":
        return f"{text}: run both again by one version, with a --results of its own"
    return text


def allowed(names: Sequence[str]) -> tuple[str, ...]:
    """The columns that a user allows to differ; `outer` stands for all settings of the outer algorithm, global_batch
    for the tokens.

    Raises
    ------
    ValueError: a column by which nothing is compared; names the nearest
    """
    known = (*MUST_MATCH, "val_hash", TOKENS, *ON_CPU)
    columns_allowed: list[str] = []
    for name in (TOKENS if name == BATCH else name for name in names):
        if name != "outer" and name not in known:
            near = nearest(name, ("outer", *known), cutoff=0)[0]
            what = "is no column of the runs" if name not in columns("runs") else "need not match"
            raise ValueError(f"allow {name!r}: {what}; did you mean {near!r}?")
        columns_allowed += OUTER if name == "outer" else [name]
    return tuple(columns_allowed)


def work_keys(groups: Sequence[Group], mode: str, allow: Sequence[str] = ()) -> np.ndarray:
    """(groups,) equal for two that may be compared (`differing` names nothing), and for no others."""
    columns = Coded([group.rows[0] for group in groups])
    on_cpu = np.array([group["device_type"] == "cpu" for group in groups], bool)
    names = [name for name in MUST_MATCH if name not in allow]
    more = [np.where(on_cpu, columns.of(name), NULL) for name in ON_CPU if name not in allow]
    more += [coded(group.level(mode) for group in groups)] if TOKENS not in allow else []
    return columns.joint(names, *more)


class Bases:
    """The base of each group: looked up by the columns that must match, whatever the number of groups.

    declared: the bases that the user named, among `groups`. Otherwise a group's base is the smallest device count of
    the same engine and family, where a single process belongs to every family; of several layouts there, the fastest.
    """

    def __init__(
        self, groups: Sequence[Group], mode: str, allow: Sequence[str] = (), declared: Sequence[Group] | None = None
    ):
        self.mode, self.allow, self.declared = mode, allow, declared is not None
        columns = Coded([group.rows[0] for group in groups])
        keep = [[name for name in some if name not in allow] for some in (MODEL + DATA + RECIPE + OUTER, MODEL)]
        works = np.stack([work_keys(groups, mode, allow), *map(columns.joint, keep)], -1)
        self.works = dict(zip(map(id, groups), works.tolist(), strict=True))  # all that must match, then less of it
        self.pools: dict[tuple, list[Group]] = {}
        for group in sorted(groups if declared is None else declared, key=_small_and_fast):
            for key in self._keys(group, group.family):
                self.pools.setdefault(key, []).append(group)

    def _may_be_base(self, other: Group, group: Group) -> bool:
        return other is not group and bool(self.declared or other.devices < group.devices)

    def of(self, group: Group) -> tuple[Group | None, list[str]]:
        """The group's base and the columns in which it differs (empty: comparable); (None, []): there is none.

        If no group is comparable, it is the nearest among the NEAR smallest whose work agrees in most columns.
        """
        families = dict.fromkeys((group.family, "single"))
        for keys in zip(*(self._keys(group, family) for family in families), strict=True):
            nearest = chain.from_iterable(self.pools.get(key, ())[:NEAR] for key in dict.fromkeys(keys))
            candidates = [other for other in nearest if self._may_be_base(other, group)]
            if candidates:
                named = [(differing(group, other, self.mode, self.allow), other) for other in candidates]
                names, best = min(named, key=lambda pair: (len(pair[0]), *_small_and_fast(pair[1])))
                return best, names
        return None, []

    def _keys(self, group: Group, family: str) -> list[tuple]:
        """The pools in which a group is, or looks: all columns that must match, then fewer and fewer of them."""
        owner = () if self.declared else (group["engine"], family)
        return [*((*owner, kind, work) for kind, work in enumerate(self.works[id(group)])), owner]


def _small_and_fast(group: Group) -> tuple[int, float]:
    return group.devices, group.cost_s


def _listed(amounts: dict[Fraction, str]) -> str:
    return ", ".join(amounts[level] for level in sorted(amounts)[:5])
