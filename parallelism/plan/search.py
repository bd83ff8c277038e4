"""The search: predict the memory of every possible layout, the time of those that fit, keep the best and the front.

A block of layouts at a time, so that memory stays bounded whatever the space. Nothing is sampled: a layout is left
untimed only where its lower bound (`Estimator.least`) is already beaten, by the best and by the front.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from ..layout import Layout
from ..predict.configs import Configs
from ..predict.memory import predict_memory
from .devices import no_layout
from .estimate import Estimator, estimator
from .pareto import front
from .question import Question
from .rules import Columns
from .space import Refusals, blocks, configs_of, joined, layout_of, take

HEAT = 200  # layouts that are timed together, before the bounds of the others are looked at again


@dataclass(frozen=True)
class Candidate:
    """A layout that fits, with what is predicted of it. Seconds of a step, bytes of the rank that needs most."""

    layout: Layout
    step_time_s: float
    low_s: float  # of the 90% interval
    high_s: float
    parts: dict[str, float]  # seconds, by name of the measured column
    bound_time_s: float
    memory_bytes: float
    constant_mfu_s: float | None  # naive: the profile's reference MFU
    smallest_scale_s: float  # naive: what the same layout takes without data parallelism


@dataclass
class Plan:
    """What a search found. `possible` = `too_big` + `outside` + `fitting`."""

    question: Question
    best: list[Candidate] = field(default_factory=list)  # fastest first
    front: list[Candidate] = field(default_factory=list)  # less memory costs more time, least time first
    refusals: Refusals = field(default_factory=Refusals)
    possible: int = 0
    fitting: int = 0
    timed: int = 0  # of those that fit; the others cannot be better: their lower bound is beaten
    outside: int = 0  # fit the memory, but are outside of what the calibration covers
    outside_reason: str = ""  # of one of them
    least_bytes: float = np.inf  # of any possible layout
    least_layout: Layout | None = None
    seconds: float = 0.0

    @property
    def too_big(self) -> int:
        return self.possible - self.fitting - self.outside

    @property
    def looked_at(self) -> int:
        """Layouts, those refused counted."""
        return self.possible + self.refusals.total


@dataclass
class _Kept:
    """Rows that may still be among the best or on the front."""

    columns: Columns
    seconds: np.ndarray
    memory: np.ndarray


class _Race:
    """The best and the front so far, and which layouts may still get among them."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.kept: _Kept | None = None
        self.slowest = np.inf  # of the best `top`; a slower one is not among them
        self.front_s, self.front_bytes = np.zeros(0), np.zeros(0)

    def open(self, least: np.ndarray, memory: np.ndarray) -> np.ndarray:
        """(n,) whether a layout that takes `least` seconds or more may be among the best or on the front."""
        before = np.searchsorted(self.front_s, least, side="right") - 1
        beaten = (before >= 0) & (np.append(self.front_bytes, np.inf)[before] <= memory)
        return (least < self.slowest) | ~beaten

    def add(self, new: _Kept) -> None:
        both = [self.kept, new] if self.kept else [new]
        seconds = np.concatenate([each.seconds for each in both])
        memory = np.concatenate([each.memory for each in both])
        columns = joined([each.columns for each in both])
        best = distinct(columns, seconds)[: self.top]
        on_front = front(seconds, memory)
        self.slowest = float(seconds[best[-1]]) if len(best) == self.top else np.inf
        self.front_s, self.front_bytes = seconds[on_front], memory[on_front]
        rows = np.union1d(best, on_front)
        self.kept = _Kept(take(columns, rows), seconds[rows], memory[rows])


def search(question: Question, top: int = 10, most_front: int = 12) -> Plan:
    """Every layout of the question, ranked.

    Raises
    ------
    ValueError: no layout fills the devices (with counts of devices that work), or none fits the memory
    """
    begin = time.perf_counter()
    plan, model, race = Plan(question), estimator(question.machine, question.model_stack), _Race(top)
    for columns in blocks(question, plan.refusals):
        _run(columns, plan, model, race)
    if not plan.possible:
        raise ValueError(no_layout(question, plan.refusals))
    rest = race.kept
    if rest is None:
        raise ValueError(_none_ranked(plan))
    fastest = distinct(rest.columns, rest.seconds)[:top]
    on_front = _thinned(front(rest.seconds, rest.memory), most_front)
    plan.best = list(candidates(take(rest.columns, fastest), question, model))
    plan.front = list(candidates(take(rest.columns, on_front), question, model))
    plan.seconds = time.perf_counter() - begin
    return plan


def _run(columns: Columns, plan: Plan, model: Estimator, race: _Race) -> None:
    """Let the layouts of a block that fit the memory into the race, those with the least lower bound first."""
    question = plan.question
    configs = configs_of(columns, question)
    memory = np.broadcast_to(predict_memory(configs, question.machine, question.model_stack).total, len(columns["tp"]))
    plan.possible += len(memory)
    least = int(np.argmin(memory))
    if memory[least] < plan.least_bytes:
        plan.least_bytes, plan.least_layout = float(memory[least]), layout_of(columns, least, question.engine)
    rows = np.flatnonzero(memory <= question.machine.memory_bytes)
    if not len(rows):
        return
    refused = model.refused(configs.take(rows))
    if refused.any():
        plan.outside += int(refused.sum())
        plan.outside_reason = plan.outside_reason or model.refusal(configs.take(rows[refused])) or ""
    rows = rows[~refused]
    plan.fitting += len(rows)
    if not len(rows):
        return
    bound = model.least(configs.take(rows))
    left = np.argsort(bound, kind="stable")
    while len(left := left[race.open(bound[left], memory[rows[left]])]):
        at, left = rows[left[:HEAT]], left[HEAT:]
        plan.timed += len(at)
        race.add(_Kept(take(columns, at), model.seconds(configs.take(at)), memory[at]))


def distinct(columns: Columns, seconds: np.ndarray) -> np.ndarray:
    """Rows, fastest first, the fastest alone of those that differ in details only: schedule, stages a rank, copies
    against shards, norms, resharding."""
    dp = columns["dp_replicate"] * columns["dp_shard"]
    kinds = np.column_stack([dp, *(columns[name] for name in ("pp", "tp", "cp", "microbatches", "recompute"))])
    order = np.argsort(seconds, kind="stable")
    _, first = np.unique(kinds[order], axis=0, return_index=True)
    return order[np.sort(first)]


def _thinned(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many points of a front, its ends among them."""
    if len(rows) <= most:
        return rows
    return rows[np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int))]


def candidates(columns: Columns, question: Question, model: Estimator) -> Iterator[Candidate]:
    """The rows with all that is predicted of them."""
    configs = configs_of(columns, question)
    found = model.whole(configs)
    memory = np.broadcast_to(predict_memory(configs, question.machine, question.model_stack).total, len(configs))
    alone = model.seconds(_alone(columns, question))
    for i in range(len(columns["tp"])):
        yield Candidate(
            layout=layout_of(columns, i, question.engine),
            step_time_s=float(found.seconds[i]),
            low_s=float(found.low[i]),
            high_s=float(found.high[i]),
            parts={name: float(values[i]) for name, values in found.parts.items()},
            bound_time_s=float(found.bound[i]),
            memory_bytes=float(memory[i]),
            constant_mfu_s=constant_mfu(question),
            smallest_scale_s=float(alone[i]),
        )


def _alone(columns: Columns, question: Question) -> Configs:
    """The same layouts without data parallelism: every rank has the same work, on as few ranks as can be."""
    ones = np.ones_like(columns["tp"])
    alone = configs_of(columns | {"dp_replicate": ones, "dp_shard": ones}, question)
    return replace(alone, global_batch=question.global_batch // (columns["dp_replicate"] * columns["dp_shard"]))


def constant_mfu(question: Question) -> float | None:
    """Seconds of a step at the MFU (causal) of the profile's reference run; None: the profile has none."""
    from ...bench.flops import flops_per_token

    machine = question.machine
    if not machine.reference_mfu:
        return None
    rate = machine.peak(question.precision) * machine.reference_mfu * question.devices
    return flops_per_token(question.shape)["causal"] * question.tokens / rate


def _none_ranked(plan: Plan) -> str:
    question, layout = plan.question, plan.least_layout
    if plan.outside:
        name = question.machine.name
        return f"no layout that fits is covered by the calibration of machine {name}: {plan.outside_reason}"
    assert layout is not None
    return (
        f"none of {plan.possible:,} layouts fits into {question.machine.memory_bytes / 1e9:.1f} GB of machine "
        f"{question.machine.name}: the smallest needs {plan.least_bytes / 1e9:.1f} GB ({layout.name()}); "
        "take more --devices"
    )
