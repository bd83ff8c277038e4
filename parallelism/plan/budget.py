"""The run to buy: which model, tokens, layout and batch reach the lowest loss within a budget of hours, joules or
dollars on a machine; data parallel, or DiLoCo over sites that a slow link connects.

For every model of a ladder the search finds the fastest layout; the budget over the cost of its step is how many steps
there are, and with them D; the law says what loss N and D reach. FLOPs do not appear: a model that keeps the machine
less busy gets fewer tokens for the same money. What the FLOP-optimal choice would have been stands beside.

Between sites (`Site`): a step of a replica is predicted on its share of devices and batch; gradients (data parallel,
every step) or outer gradients (DiLoCo, every H steps) cross the link as in `predict.outer`, layer by layer behind the
backward pass. What M replicas do to the loss is a fitted DiLoCo law's ratio to one replica.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...bench.shape import ModelShape
from ..predict import Machine
from ..predict.outer import VALUE_BITS, exposed_in_round
from .law_file import FittedLaw
from .question import Question
from .report import mfu
from .search import Candidate, search

UNITS = ("device-hours", "days", "joules", "dollars")
HOUR, DAY = 3600.0, 86400.0
NORMAL_90 = 1.645
DRAWS = 400
FLOPS_PER_ND = 6.0


@dataclass(frozen=True)
class Budget:
    """Raises ValueError where the amount is not positive or the unit is unknown."""

    amount: float
    unit: str

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"--unit {self.unit}: allowed are {', '.join(UNITS)}")
        if not 0 < self.amount < float("inf"):
            raise ValueError(f"--budget {self.amount:g}: must be more than 0 {self.unit}")

    def check(self, machine: Machine) -> None:
        """Raises ValueError where the machine's profile lacks what the unit needs."""
        if self.unit == "joules" and not machine.busy_w:
            raise ValueError(f"--unit joules: machine {machine.name} has no power: give [power] busy_w in its profile")
        if self.unit == "dollars" and not machine.dollars_per_device_hour:
            raise ValueError(
                f"--unit dollars: machine {machine.name} has no price: give [price] dollars_per_device_hour in its "
                "profile"
            )


@dataclass(frozen=True)
class Site:
    """What connects the sites of `replicas` replicas. bits_per_s: of one site; compression: bits of a value."""

    bits_per_s: float
    replicas: int
    sync_every: int = 1  # 1: data parallel
    bits: float = VALUE_BITS
    latency_s: float = 1e-2

    def exposed_s(self, shape: ModelShape, step_s: float) -> float:
        """Of the mean step: what its messages add. Over M sites a ring moves 2 (M - 1) / M of all values."""
        ring = 2 * (self.replicas - 1) / self.replicas
        message = ring * self.bits * shape.params_total / self.bits_per_s
        late = exposed_in_round(step_s, message, shape.layers) + self.latency_s
        return float(late) / self.sync_every


@dataclass(frozen=True)
class Purchase:
    """A model, the layout that trains it and what the budget reaches with it."""

    name: str
    shape: ModelShape
    candidate: Candidate  # of one site
    devices: int
    global_batch: int  # over all sites
    site: Site | None
    step_time_s: float  # with what crosses between sites
    tokens: float
    steps: float
    loss: float
    low: float  # of the loss, 90%
    high: float
    mfu_alone: float  # causal, of one site
    beyond: dict[str, float]  # role -> how many times outside of what the law was fitted on

    @property
    def how(self) -> str:
        if self.site is None:
            return "data parallel" if self.candidate.layout.dp > 1 else "one replica"
        if self.site.sync_every == 1:
            return f"data parallel over {self.site.replicas} sites"
        packed = "" if self.site.bits == VALUE_BITS else f", {self.site.bits:g} bits"
        return f"DiLoCo M={self.site.replicas} H={self.site.sync_every}{packed}"

    @property
    def days(self) -> float:
        return self.steps * self.step_time_s / DAY


@dataclass(frozen=True)
class Market:
    """What a budget is spent on: everything but the model."""

    budget: Budget
    machine: Machine
    devices: int
    law: FittedLaw
    diloco: FittedLaw | None = None  # of params and replicas
    global_batch: int = 0
    sites: tuple[Site, ...] = ()  # to choose from; empty: one site
    engine: str = "torch"
    stack: str = ""
    precision: str = "bf16"
    recompute: tuple[str, ...] = ("none", "selective", "full")


def step_cost(market: Market, step_s: float, compute_s: float) -> float:
    """Of a step of all devices, in the unit of the budget."""
    machine, devices = market.machine, market.devices
    costs = {
        "device-hours": step_s * devices / HOUR,
        "days": step_s / DAY,
        "joules": devices * (machine.busy_w * compute_s + machine.idle_w * (step_s - compute_s)),
        "dollars": step_s * devices / HOUR * machine.dollars_per_device_hour,
    }
    return costs[market.budget.unit]


def purchases(market: Market, models: Mapping[str, ModelShape]) -> tuple[list[Purchase], dict[str, str]]:
    """What each model reaches in each way to train it, and for models that none fits the reason.

    Raises
    ------
    ValueError: the budget cannot be computed on this machine
    """
    market.budget.check(market.machine)
    found: list[Purchase] = []
    refused: dict[str, str] = {}
    for name, shape in models.items():
        try:
            found += list(_of_model(market, name, shape))
        except ValueError as error:
            refused[name] = str(error)
    return found, refused


def _of_model(market: Market, name: str, shape: ModelShape) -> Iterable[Purchase]:
    ways: Sequence[Site | None] = market.sites or (None,)
    plans: dict[int, tuple[Question, Candidate]] = {}
    for site in ways:
        parts = site.replicas if site else 1
        if parts not in plans:
            plans[parts] = _fastest(market, name, shape, parts)
        question, candidate = plans[parts]
        yield _bought(market, question, candidate, site)


def _fastest(market: Market, name: str, shape: ModelShape, parts: int) -> tuple[Question, Candidate]:
    """The fastest layout of one of `parts` sites."""
    for what, count in (("--devices", market.devices), ("--global-batch", market.global_batch)):
        if count % parts:
            raise ValueError(f"{what} {count} is not a multiple of {parts} sites")
    question = Question(
        shape,
        market.devices // parts,
        market.machine,
        market.global_batch // parts,
        engine=market.engine,
        stack=market.stack,
        precision=market.precision,
        recompute=market.recompute,
        name=name,
    )
    return question, search(question, top=1, most_front=1).best[0]


def _bought(market: Market, question: Question, candidate: Candidate, site: Site | None) -> Purchase:
    shape, parts = question.shape, site.replicas if site else 1
    inner = candidate.step_time_s
    crossing = site.exposed_s(shape, inner) if site else 0.0
    step = inner + crossing
    batch = question.global_batch * parts
    steps = market.budget.amount / step_cost(market, step, candidate.parts["compute_time_s"])
    tokens = steps * batch * shape.seq_len
    speeds = np.exp(_speeds(candidate)) * inner + crossing
    some = tokens * step / speeds
    loss, low, high = _loss(market, shape, tokens, some, site)
    roles = {"params": params_of(market.law, shape), "tokens": tokens}
    beyond = {role: market.law.beyond(role, value) for role, value in roles.items()}
    return Purchase(
        question.name,
        shape,
        candidate,
        market.devices,
        batch,
        site,
        step,
        tokens,
        steps,
        loss,
        low,
        high,
        mfu(question, inner),
        {role: times for role, times in beyond.items() if times > 1},
    )


def _speeds(candidate: Candidate) -> np.ndarray:
    """Draws (DRAWS,) of log step time over its expectation, as wide as the 90% interval."""
    below = np.log(candidate.step_time_s / candidate.low_s) / NORMAL_90
    above = np.log(candidate.high_s / candidate.step_time_s) / NORMAL_90
    draws = np.random.default_rng(0).standard_normal(DRAWS)
    return np.where(draws < 0, draws * below, draws * above)


def _loss(
    market: Market, shape: ModelShape, tokens: float, some: np.ndarray, site: Site | None
) -> tuple[float, float, float]:
    """Loss, and the ends of its 90% interval over resamples of the laws and what the step time may be."""
    params = params_of(market.law, shape)
    at = np.concatenate([[tokens], some])
    point, draws = market.law.predict({"params": np.full(len(at), params), "tokens": at})
    rows = np.arange(len(some)) % max(1, len(draws))
    spread = draws[rows, np.arange(1, len(at))] if len(draws) else point[1:]
    loss = float(point[0])
    if site and site.sync_every > 1:
        assert market.diloco is not None
        ratio, ratios = _replicas_cost(market.diloco, shape, site.replicas)
        loss *= ratio
        spread = spread * (ratios[np.arange(len(spread)) % len(ratios)] if len(ratios) else ratio)
    low, high = np.nanpercentile(spread, [5, 95])
    return loss, float(low), float(high)


def _replicas_cost(law: FittedLaw, shape: ModelShape, replicas: int) -> tuple[float, np.ndarray]:
    """Loss of M replicas over that of one, and that of the resamples (B,)."""
    params = params_of(law, shape)
    roles = {"params": np.full(2, params), "replicas": np.array([replicas, 1.0])}
    point, draws = law.predict(roles)
    return float(point[0] / point[1]), draws[:, 0] / draws[:, 1]


def params_of(law: FittedLaw, shape: ModelShape) -> float:
    """N as the law's column counts it."""
    return shape.params_non_embedding if "non_embedding" in law.columns["params"] else shape.params_total


def flop_optimal(market: Market, best: Purchase, found: Sequence[Purchase]) -> Purchase | None:
    """What the same way of training reaches with the model that the law alone takes: the least loss at the FLOPs
    (6 N D) that the best purchase spends."""
    same = [each for each in found if each.site == best.site]
    params = np.array([params_of(market.law, each.shape) for each in same])
    flops = FLOPS_PER_ND * params_of(market.law, best.shape) * best.tokens
    loss, _ = market.law.predict({"params": params, "tokens": flops / (FLOPS_PER_ND * params)})
    return same[int(np.argmin(loss))] if same else None


def smaller_batch(market: Market, best: Purchase, loses: float = 0.02) -> Purchase:
    """The same model with the smallest batch that loses no more than this share of the speed: a law of N and D does
    not know what a larger batch costs."""
    chosen, batch = best, best.global_batch
    parts = best.site.replicas if best.site else 1
    while batch % (2 * parts) == 0:
        batch //= 2
        try:
            question, candidate = _fastest(replace(market, global_batch=batch), best.name, best.shape, parts)
        except ValueError:
            break
        tried = _bought(market, question, candidate, best.site)
        if tried.tokens < (1 - loses) * best.tokens:
            break
        chosen = tried
    return chosen
