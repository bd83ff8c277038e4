"""The recipe: how a model is optimised, whatever the layout. Each field is a column of the table.

The learning rate at step t (0-based) of S: linear warm-up over `warmup_steps`, then, from the peak that ends it,
cosine to `min_lr_ratio` (Loshchilov & Hutter, arXiv 1608.03983), constant, or WSD: constant, then linear to
`min_lr_ratio` over the last `decay_fraction` of the steps, warm-up left out (Hägele et al., arXiv 2405.18392). Cosine
and WSD reach `min_lr_ratio` exactly at the last step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .mistakes import Finder

OPTIMIZERS = ("adamw", "sgd", "muon", "deepspeed-cpu-adam", "deepspeed-fused-adam")  # its own two: AdamW in its code
LR_SCHEDULES = ("cosine", "wsd", "constant")
PRECISIONS = ("fp32", "bf16")  # bf16: compute in bf16; master weights, reductions, norms and loss in fp32


@dataclass(frozen=True)
class Recipe:
    global_batch: int  # sequences per step, over all ranks and replicas
    steps: int  # optimizer steps of the run
    lr: float = 1e-3  # peak
    optimizer: str = "adamw"  # muon: of the blocks' matrices, AdamW of the rest; deepspeed-...: AdamW in its code
    beta1: float = 0.9  # sgd: the momentum; muon: also the momentum, 0.95 in its papers
    beta2: float = 0.95  # not sgd
    eps: float = 1e-8  # not sgd
    weight_decay: float = 0.1  # decoupled; on matrices only, not on norms
    lr_schedule: str = "cosine"
    warmup_steps: int = 0  # of the learning rate, linear
    decay_fraction: float = 0.2  # wsd only
    min_lr_ratio: float = 0.1  # where cosine and wsd end, over lr
    clip_norm: float = 1.0  # global L2 norm of the gradient; 0: no clipping
    z_loss: float = 0.0  # weight of mean(logsumexp(logits)^2), PaLM arXiv 2204.02311
    precision: str = "fp32"  # bf16: master weights, reductions and loss stay fp32
    init_std: float = 0.02  # residual outputs: divided by sqrt(2 layers), GPT-2
    seed: int = 0  # of the weights and of the order of the data
    start_weights: str = ""  # a weights.npz (measure.keep_weights) of any engine to start from; empty: init_std, seed

    def __post_init__(self) -> None:
        find = Finder("recipe")
        for name, allowed in (("optimizer", OPTIMIZERS), ("lr_schedule", LR_SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                find.add(name, f"{name} = {getattr(self, name)!r}: allowed are {', '.join(allowed)}")
        for name, low, high in (
            ("global_batch", 1, 2**53),
            ("steps", 1, 2**53),
            ("lr", 0, math.inf),
            ("beta1", 0, 1),
            ("beta2", 0, 1),
            ("eps", 0, math.inf),
            ("weight_decay", 0, math.inf),
            ("warmup_steps", 0, 2**53),
            ("decay_fraction", 0, 1),
            ("min_lr_ratio", 0, 1),
            ("clip_norm", 0, math.inf),
            ("z_loss", 0, math.inf),
            ("init_std", 0, math.inf),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high or value == math.inf:  # also refuses NaN
                find.add(name, f"{name} = {value}: must be between {low} and {high}")
        for name in ("beta1", "beta2"):
            if getattr(self, name) == 1 and self.optimizer != "sgd":
                find.add(f"{name} optimizer", f"{name} = 1: {self.optimizer} needs less than 1")
        find.done()

    def lr_at(self, step: int) -> float:
        """Learning rate of step `step` (0-based)."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.lr_schedule == "constant":
            return self.lr
        floor = self.lr * self.min_lr_ratio
        if self.lr_schedule == "cosine":
            span = max(1, self.steps - self.warmup_steps)
            progress = min(1.0, (step + 1 - self.warmup_steps) / span)
            return floor + (self.lr - floor) * 0.5 * (1 + math.cos(math.pi * progress))
        span = max(1, min(round(self.decay_fraction * self.steps), self.steps - self.warmup_steps))
        return self.lr + (floor - self.lr) * max(0.0, (step + 1 - (self.steps - span)) / span)
