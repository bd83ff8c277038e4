"""What is measured of a run, beside the training itself."""

from __future__ import annotations

from dataclasses import dataclass

from .mistakes import Finder


@dataclass(frozen=True)
class Measure:
    """All counts are in optimizer steps. Warm-up steps are kept in `steps`, marked, and left out of every median."""

    warmup_steps: int = 3  # not timed; the first collectives and allocations fall here
    eval_every: int = 0  # 0: at the end only
    eval_sequences: int = 64  # held-out sequences of one evaluation; 0: no evaluation
    log_every: int = 10  # losses are brought to the host (and checked for NaN) this often
    eval_start: bool = False  # evaluate the start weights, too: step 0 of `evals`
    checkpoint_every: int = 0  # 0: no checkpoints, a killed run starts again from its first step
    keep_weights: bool = False  # the trained weights stay in the run's folder, as weights.npz
    probe_comm: bool = True  # count collectives and bytes on the last warm-up step, from the third on
    profile_steps: int = 0  # so many steps after the last one, not trained on, under torch's profiler: the table `ops`
    peak_matmul: bool = False  # measure the device's peak by matrix products, where no datasheet is known

    def __post_init__(self) -> None:
        find = Finder("measure")
        for name in ("warmup_steps", "eval_every", "eval_sequences", "log_every", "checkpoint_every"):
            low = 1 if name == "log_every" else 0
            if getattr(self, name) < low:
                find.add(name, f"{name} = {getattr(self, name)}: must be at least {low}")
        find.done()
