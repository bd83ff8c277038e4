"""Which outer algorithm synchronises the replicas, and its settings. Needs no torch.

Defaults are the papers': H = 30, Nesterov 0.9 and the outer learning rate by the number of replicas from
arXiv 2503.09799; fragments, overlap and mixing from Streaming DiLoCo, arXiv 2501.18512; density, decay of the
residual and plain outer averaging under top-k from SparseLoCo, arXiv 2508.15706.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TypeVar

from ...bench.mistakes import Finder

T = TypeVar("T")

ALGORITHMS = ("none", "localsgd", "diloco", "streaming", "delayed", "eager")
PLACEMENTS = ("distributed", "folded")
FRAGMENT_ORDERS = ("strided", "sequential")
EXCHANGES = ("allgather", "twoshot")
COMPRESSIONS = ("none", "bf16", "int8", "int4", "fp4", "topk")
NOISE = 2.0**-20  # relative difference of two fp32 computations in another order, after some steps
ALLOWANCE = {"bf16": 1e-4, "int8": 2e-4, "int4": 7e-4, "fp4": 1.2e-3, "topk": 2.5e-3}
"""By codec, how far two packed messages are apart whose values differ in fp32's rounding alone, over their norm.

A value near the border between two codes falls to either side. Of values x with a relative difference of eps = NOISE
the share p takes the other code and moves by d; the messages are apart by sqrt(sum p d^2 / sum x^2):

    int8, int4   x = u s, u even in [0, q]: borders one step apart, p = 2 eps u, d = s:         sqrt(3 eps / q)
    fp4          one border an octave, at 1.5 of a power of two: p = 2 eps / ln 2, d = 2 x / 3:  sqrt(1.28 eps)
    topk         the k-th largest for the next one: of normal values, kept beyond t standard deviations, t = 2.4 at a
                 density of 1/64:                                                                t sqrt(eps)
    bf16         steps of x/2^8 or less: p = 2^9 eps, d = x / 2^8:                               sqrt(eps / 2^7)

An outer step moves the model by the message, so losses of two such runs differ by no larger a share of what the step
changed; rounded up. A shard's message that is dropped, or scaled by 0.9, is a share of 0.1 and more.
"""
OF_COMPRESSION: dict[str, dict[str, object]] = {  # settings that mean something with it, and their defaults
    "none": {},
    "bf16": {"error_decay": 0.0},
    **dict.fromkeys(("int8", "int4", "fp4"), {"block_size": 256, "error_decay": 0.0}),
    "topk": {"block_size": 4096, "density": 1 / 64, "error_decay": 0.95},
}
RANGES = {
    "sync_every": (1, math.inf),
    "lr": (0, math.inf),
    "momentum": (0, 1),
    "fragment_layers": (1, math.inf),
    "overlap_steps": (0, math.inf),
    "mixing_alpha": (0, 1),
    "block_size": (8, 65536),
    "density": (0, 1),
    "error_decay": (0, 1),
    "bucket_mb": (0, math.inf),
    "quorum_timeout_s": (0, math.inf),
}
OUTER_LR = {1: 0.4, 2: 0.6, 4: 0.6, 8: 0.8}  # by replicas; between two of them the smaller one's


def in_use(setting: T | None) -> T:
    """A setting of `Outer` that the chosen algorithm uses: it was given, or has its default, and is never None."""
    assert setting is not None
    return setting


@dataclass(frozen=True)
class Outer:
    """`algorithm = "none"`: one replica, no outer step: plain data parallel, the base case.

    A setting left at None takes the paper's default, and that number is what the table shows. A setting that the
    chosen algorithm or compression does not use becomes None, so that a grid over algorithms makes no two cases
    that compute the same.

    Raises
    ------
    ValueError: a setting is out of range, or two of them exclude each other
    """

    algorithm: str = "none"
    replicas: int = 1  # M
    placement: str = "distributed"  # each replica has its own ranks; folded: they take turns on the same ones
    sync_every: int | None = None  # H: inner steps between two synchronisations of a parameter; 30
    lr: float | None = None  # outer learning rate
    momentum: float | None = None  # outer; 0.9
    nesterov: bool | None = None  # True
    fragment_layers: int | None = None  # streaming: layers a fragment; 3
    fragment_order: str | None = None  # strided: layers p, p + P, ...; sequential: neighbours
    overlap_steps: int | None = None  # tau: inner steps between sending and applying; 1
    mixing_alpha: float | None = None  # share of the replica's own parameters kept when applying; 0.5
    compression: str = "none"  # of the pseudo-gradients
    block_size: int | None = None  # elements that share a scale (256), or of which top-k keeps some (4096)
    density: float | None = None  # topk: share of a block's elements that is sent; 1/64
    error_decay: float | None = None  # of the residual kept back by compression; 0: no error feedback, topk 0.95
    exchange: str | None = None  # of packed messages: allgather, or twoshot: the sum is rounded too, and less is sent
    bucket_mb: float | None = None  # fp32 size of one message before compression; 0: one parameter a message; 8
    offload: bool = False  # folded: replicas wait their turn in host memory
    quorum: int | None = None  # replicas that an outer step needs; others may be missing. 0: all must be there
    quorum_timeout_s: float | None = None  # how long an outer step waits for those beyond the quorum; 60

    def __post_init__(self) -> None:
        find = Finder("outer")
        self._check_choices(find)
        if find.found:
            self._check_ranges(find)
            find.done()
        if self.algorithm == "none" and self.replicas > 1:
            line = f"replicas = {self.replicas}: algorithm 'none' has one replica; "
            find.add("replicas algorithm", f"{line}allowed algorithms are {', '.join(ALGORITHMS[1:])}")
        if self.algorithm == "none":
            object.__setattr__(self, "compression", "none")
        if self.quorum:
            self._check_quorum(find, self.quorum)
        self._fill_in(self._defaults())
        self._check_ranges(find)
        find.done()
        if self.nesterov and self.momentum == 0:
            object.__setattr__(self, "nesterov", False)  # the same update

    def _check_choices(self, find: Finder) -> None:
        for name, allowed in (
            ("algorithm", ALGORITHMS),
            ("placement", PLACEMENTS),
            ("compression", COMPRESSIONS),
            ("fragment_order", (*FRAGMENT_ORDERS, None)),
            ("exchange", (*EXCHANGES, None)),
        ):
            if getattr(self, name) not in allowed:
                line = f"{name} = {getattr(self, name)!r}: allowed are {', '.join(filter(None, allowed))}"
                find.add(name, line)
        if self.replicas < 1:
            find.add("replicas", f"replicas = {self.replicas}: must be at least 1")

    def _fill_in(self, defaults: dict[str, object]) -> None:
        """Settings that were not given take their default; those that mean nothing here are null."""
        for field in fields(self):
            if field.default is None:
                value = getattr(self, field.name)
                unset = value is None or field.name not in defaults
                object.__setattr__(self, field.name, defaults.get(field.name) if unset else value)
        if self.placement == "distributed" or self.algorithm == "none":
            object.__setattr__(self, "offload", False)

    def _defaults(self) -> dict[str, object]:
        """The settings that mean something here, with the value each takes when it is not given."""
        if self.algorithm == "none":
            return {}
        defaults: dict[str, object] = dict(sync_every=30, bucket_mb=8.0)
        if self.algorithm != "localsgd":
            sparse = self.compression == "topk"
            defaults |= dict(lr=self._default_lr(), momentum=0.0 if sparse else 0.9, nesterov=not sparse)
        if self.algorithm == "streaming":
            defaults |= dict(fragment_layers=3, fragment_order="strided", overlap_steps=1, mixing_alpha=0.5)
        defaults |= OF_COMPRESSION[self.compression]
        if self.compression != "none":
            defaults |= dict(exchange="allgather")
        if self.quorum:
            defaults |= dict(quorum=self.quorum, quorum_timeout_s=60.0)
        return defaults

    def _default_lr(self) -> float:
        if self.compression == "topk":
            return 1.0
        if self.algorithm == "streaming":
            return 0.4
        return OUTER_LR[max(m for m in OUTER_LR if m <= self.replicas)]

    def _check_quorum(self, find: Finder, quorum: int) -> None:
        at = f"quorum = {quorum}"
        if not 1 <= quorum <= self.replicas:
            find.add("quorum replicas", f"{at}: must be from 1 to outer.replicas = {self.replicas}, or 0: all of them")
        if self.algorithm not in ("none", "localsgd", "diloco"):
            why = f"{self.algorithm} has messages on their way between outer steps, which a replica that comes back"
            find.add("quorum algorithm", f"{at}: {why} has missed; allowed algorithms are localsgd, diloco")
        if self.placement == "folded" and self.algorithm != "none":
            why = "folded replicas share their ranks, none can be missing; set placement = 'distributed'"
            find.add("quorum placement", f"{at}: {why}")
        if self.error_decay or (self.compression == "topk" and self.error_decay is None):
            why = "error feedback takes for sent what a round without its replica never saw; set error_decay = 0"
            find.add("quorum error_decay compression", f"{at}: {why}")

    def _check_ranges(self, find: Finder) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # also refuses NaN
                find.add(name, f"{name} = {value}: must be between {low} and {high}")
        if not find.wrong("block_size") and (self.block_size or 0) % 8:
            find.add("block_size", f"block_size = {self.block_size}: must be a multiple of 8")
        if self.density == 0:
            find.add("density", "density = 0: must be above 0, or nothing is ever sent")
        overlap, every = self.overlap_steps, self.sync_every
        if overlap is not None and every is not None and overlap >= every:
            line = f"overlap_steps = {overlap}: must be below outer.sync_every = {every}"
            find.add("overlap_steps sync_every", line)
        if self.exchange == "twoshot":
            self._check_two_shot(find)

    def _check_two_shot(self, find: Finder) -> None:
        if self.quorum:
            why, at = "an owner may be missing", f"outer.quorum = {self.quorum}"
        elif self.compression == "topk":
            why, at = "the sum of what they kept is no longer sparse", f"outer.compression = {self.compression!r}"
        else:
            return
        line = f"exchange = 'twoshot' with {at}: {why}; set exchange = 'allgather'"
        find.add("exchange compression quorum", line)

    @property
    def interval(self) -> int:
        """H of an algorithm that has outer steps: inner steps between two synchronisations of a parameter."""
        return in_use(self.sync_every)

    @property
    def placed_replicas(self) -> int:
        """Replicas that have ranks of their own."""
        return 1 if self.placement == "folded" else self.replicas

    def name(self) -> str:
        """Short and stable, for tables: `diloco.M2.H30`, `streaming.M4.H30.int4.folded`; empty without replicas."""
        if self.algorithm == "none":
            return ""
        parts = [self.algorithm, f"M{self.replicas}", f"H{self.sync_every}"]
        parts += [] if self.compression == "none" else [self.compression]
        parts += ["twoshot"] if self.exchange == "twoshot" else []
        parts += [f"q{self.quorum}"] if self.quorum else []
        return ".".join(parts + (["folded"] if self.placement == "folded" else []))

    @property
    def kept_per_block(self) -> int:
        """topk: elements sent of each block."""
        return max(1, round(in_use(self.density) * in_use(self.block_size)))


def allowance(outer: Outer) -> float:
    """ALLOWANCE of the compression; fp32 messages need none."""
    return ALLOWANCE.get(outer.compression, 0.0)
