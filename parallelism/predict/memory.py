"""Peak memory of one rank by part, for all configurations at once, before anything is run.

    allocated = state + copies + max(activations + logits, optimizer's temporaries)
    reserved  = allocated + what the allocator cannot use
    total     = reserved + what no allocator counts: the device's context, buffers of the collective library

State is in `states`, activations in `activations`, what a rank holds and keeps alive in `stages`; the factors of the
allocator are the stack's (`MemoryTuning`), or calibrated (`memory_fit`), else the machine's share of fragmentation.
Of a CPU process the last line is what the interpreter and its libraries need, and what threads and messages add.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from ...bench.recipe import Recipe
from ...bench.shape import ModelShape
from ..diloco.config import Outer
from ..layout import Layout
from .activations import Activation
from .configs import Configs, from_cases
from .machine import Machine
from .process import ARENAS, collective_bytes, process_bytes
from .stack import STACKS, MemoryTuning, Stack
from .stages import candidates, held, lost_loss
from .states import State

GIB = 2**30
COMMUNICATOR_BYTES = 0.4 * GIB  # NCCL's channels and buffers for each group of ranks on a GPU; starting value
UNCALIBRATED = (0.8, 1.25)  # measured over predicted, at the ends of the interval of a model without measured peaks


@dataclass(frozen=True)
class MemoryParts:
    """Bytes on the rank that needs most, (n,) each; of one case, numbers."""

    weights: np.ndarray  # fp32, this rank's part
    gradients: np.ndarray
    optimizer: np.ndarray
    outer: np.ndarray  # DiLoCo: outer parameters and momentum, messages, compression's residuals
    copies: np.ndarray  # whole layers gathered, bf16 copies of weights, flat buffers
    activations: np.ndarray
    logits: np.ndarray
    temporaries: np.ndarray  # of the update; activations are gone by then
    library: np.ndarray  # device context, collective library; on a CPU the interpreter and its libraries
    fragmentation: np.ndarray  # reserved by the allocator over what is allocated
    host: np.ndarray  # offloaded: in host memory, not on the device

    @property
    def state(self) -> np.ndarray:
        return self.weights + self.gradients + self.optimizer + self.outer

    @property
    def allocated(self) -> np.ndarray:
        return self.state + self.copies + np.maximum(self.activations + self.logits, self.temporaries)

    @property
    def reserved(self) -> np.ndarray:
        return self.allocated + self.fragmentation

    @property
    def total(self) -> np.ndarray:
        return self.reserved + self.library

    def rows(self, index: np.ndarray) -> MemoryParts:
        """Of parts (r, n): those at index (n,) along the first axis."""
        columns = np.arange(index.shape[-1])
        return MemoryParts(**{each.name: getattr(self, each.name)[index, columns] for each in fields(self)})


def predict_memory(
    configs: Configs, machine: Machine | None, stack: Stack, tuning: MemoryTuning | None = None
) -> MemoryParts:
    """Bytes by part on the rank that needs most. machine: None counts neither the library nor the allocator."""
    parts = memory_by_rank(configs, machine, stack, tuning)
    return parts.rows(np.argmax(parts.total, axis=0))


def reported_memory(
    configs: Configs, machine: Machine | None, stack: Stack, tuning: MemoryTuning | None = None
) -> np.ndarray:
    """Bytes (n,) that the program reports as its peak: of its rank and counter (`Keeps`); on a CPU the process's."""
    parts = memory_by_rank(configs, machine, stack, tuning)
    counted = parts.total if machine and machine.device == "cpu" else getattr(parts, stack.keeps.counter)
    return counted[0] if stack.keeps.reports == "first" else counted.max(axis=0)


def memory_by_rank(
    configs: Configs, machine: Machine | None, stack: Stack, tuning: MemoryTuning | None = None
) -> MemoryParts:
    """Bytes by part on each of the candidate ranks, (r, n): the first, the second, the last but one, the last."""
    cpu = bool(machine and machine.device == "cpu")
    factors = tuning or default_tuning(machine, stack)
    parts = _by_rank(configs, stack, cpu, factors, _library(configs, machine, stack))
    if not cpu:
        return parts
    return replace(parts, library=parts.library + collective_bytes(configs, stack.name, parts.activations))


def _by_rank(configs: Configs, stack: Stack, cpu: bool, factors: MemoryTuning, library: np.ndarray) -> MemoryParts:
    held_by = held(configs, candidates(configs), stack.keeps.stages_by_cost)
    state = State(configs, stack, cpu).of(held_by)
    activation = Activation(configs, stack, cpu).of(held_by)
    kept = activation.layers + activation.gathered + activation.stream
    zero = np.zeros((len(held_by.rank), len(configs)))
    own = {each.name: getattr(state, each.name) for each in fields(state)}
    parts = MemoryParts(
        **{name: value + zero for name, value in own.items()},
        activations=kept + zero,
        logits=activation.logits + zero,
        library=library + zero,
        fragmentation=zero,
    )
    scaled = (
        factors.state * (parts.state + parts.copies)
        + np.maximum(
            factors.activations * activation.layers
            + factors.gathered * activation.gathered
            + factors.stream * activation.stream
            + factors.logits * parts.logits,
            factors.state * parts.temporaries,
        )
        + factors.constant_bytes
    )
    return replace(parts, fragmentation=scaled - parts.allocated)


def default_tuning(machine: Machine | None, stack: Stack) -> MemoryTuning:
    """The stack's, else the machine's share of fragmentation on everything."""
    if stack.keeps.tuning:
        return stack.keeps.tuning
    if machine is None:
        return MemoryTuning()
    share = 1 + (machine.fragmentation or (ARENAS if machine.device == "cpu" else 0.0))
    return MemoryTuning(0.0, share, share, share, share, share)


def _library(configs: Configs, machine: Machine | None, stack: Stack) -> np.ndarray:
    if machine is None:
        return np.zeros(())
    if machine.device == "cpu":
        return process_bytes(configs, stack.name, machine.reserved_bytes)
    degrees = (configs.dp_replicate, configs.dp_shard, configs.tp, configs.pp, configs.cp, configs.placed_replicas)
    groups = sum((np.asarray(each) > 1) * 1 for each in degrees)
    made = groups + (groups > 1)  # and one of all ranks
    return np.asarray(machine.reserved_bytes + COMMUNICATOR_BYTES * made)


def fits(configs: Configs, machine: Machine, stack: Stack, tuning: MemoryTuning | None = None) -> np.ndarray:
    """Whether the rank that needs most has room on the device, (n,)."""
    return predict_memory(configs, machine, stack, tuning).total <= machine.memory_bytes


def cannot_run(configs: Configs, machine: Machine, stack: Stack, tuning: MemoryTuning | None = None) -> np.ndarray:
    """Whether no run is to be expected, (n,): the device is too small, or stages leave the last rank no loss."""
    over = ~fits(configs, machine, stack, tuning)
    return over | lost_loss(configs) if stack.keeps.stages_by_cost else over


CaseParts = tuple[ModelShape, Recipe, Layout, Outer]


def memory_of_cases(cases: Sequence[CaseParts], fused_norm: bool = True) -> list[MemoryParts]:
    """Of each case of a study, in bytes: what torch's allocator holds, without the interpreter and its libraries.

    The layouts must be such that `refuse` lets pass. fused_norm: RMSNorm is one kernel (CUDA); else the ranks compute
    on a CPU, where what is offloaded is still the process's.
    """
    found: dict[int, MemoryParts] = {}
    for engine in {layout.engine for _, _, layout, _ in cases}:
        places = [place for place, (_, _, layout, _) in enumerate(cases) if layout.engine == engine]
        configs = from_cases([cases[place] for place in places])
        parts = _by_rank(configs, STACKS[engine], not fused_norm, MemoryTuning(), np.zeros(()))
        worst = parts.rows(np.argmax(parts.total, axis=0))
        columns = {each.name: getattr(worst, each.name).astype(int).tolist() for each in fields(worst)}
        found |= {place: MemoryParts(**{k: v[i] for k, v in columns.items()}) for i, place in enumerate(places)}
    return [found[place] for place in range(len(cases))]


def memory_of_case(
    shape: ModelShape, recipe: Recipe, layout: Layout, outer: Outer | None = None, fused_norm: bool = True
) -> MemoryParts:
    """`memory_of_cases` of one."""
    return memory_of_cases([(shape, recipe, layout, outer or Outer())], fused_norm)[0]
