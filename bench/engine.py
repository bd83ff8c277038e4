"""What an engine is: whatever computes one training step of a given batch. The loop and the table know only this.

An engine is built in every rank by `parallelism`, from (shape, recipe, layout), after the process group stands.
All ranks call the same methods in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from .checkpoint_files import Outgoing, Saved
    from .device import Mark


@dataclass(frozen=True)
class StepOutput:
    """What one step gives. Tensors stay on the device; nothing here forces the device to finish."""

    loss: torch.Tensor  # 0-dim fp32: this rank's share; the sum over all ranks is the mean over the global batch
    grad_norm: torch.Tensor  # 0-dim fp32: global L2 norm before clipping, the same on every rank
    extra: dict[str, float | torch.Tensor] = field(default_factory=dict)  # more columns of `steps`
    update_began: Mark | None = None  # between backward and update
    update_ended: Mark | None = None  # between the update and an outer step


@dataclass(frozen=True)
class LocalParameter:
    """The part of one parameter that this rank holds and updates (fp32 master weights)."""

    name: str  # as in the single-process model: `blocks.3.attention.wq.weight`
    data: torch.Tensor  # local storage; writing it changes the model
    layer: int | None  # block it belongs to; None: embedding, final norm, head
    replicated: int = 1  # ranks of this replica that hold this same part (1: this rank alone)


Evaluation = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""(tokens, counted) -> loss. tokens: this rank's rows of one batch, (rows, seq_len + 1) int64; counted: (rows,) bool,
false for the rows that only fill the batch up. loss: 0-dim fp32, this rank's share; the sum over all ranks is the sum
over the counted rows of each row's mean over its tokens, in nats, without z-loss. Collective."""


class Engine(Protocol):
    """What all engines have. One whose waits are all timed by bench.host_waits sets waits_on_host = True."""

    def rows(self) -> tuple[int, int]:
        """First and one past the last row of the global batch that this rank reads."""

    def train_step(self, tokens: torch.Tensor, lr: float) -> StepOutput:
        """Forward, backward, clip and update on this rank's rows. tokens: (rows, seq_len + 1) int64 on the device."""

    def evaluations(self) -> dict[str, Evaluation]:
        """Named ways to evaluate (`model`; with replicas `outer`, `inner`), the one that counts first.

        The rows they are given are those of `rows`, or of `eval_rows` where an engine has that.
        """

    def local_parameters(self) -> Iterator[LocalParameter]:
        """Every parameter part this rank updates, in one order on all ranks that share a layout position.

        Code that writes into them (DiLoCo's outer step, an evaluation on other weights) calls `parameters_written`.
        """

    def parameters_written(self) -> None:
        """The local parameters were written from outside: the engine updates its other copies of them. Collective."""

    def weights(self) -> dict[str, torch.Tensor]:
        """The whole model as full fp32 tensors under the single-process model's names, on the CPU of the first rank
        of this replica; elsewhere empty. Collective over the replica."""

    def set_weights(self, weights: dict[str, torch.Tensor] | None) -> None:
        """Load what `weights` returned, from any engine; the argument of the replica's first rank counts. Optimizer
        state is left alone. Collective over the replica.

        Raises
        ------
        ValueError: they are not the whole weights of such a model
        """

    def talks(self) -> dict[str, tuple[int, ...]]:
        """Ranks that this rank communicates with, by mesh dimension (`tp`, `dp_shard`, ...): for the accounting.

        An engine with an outer loop also has `count_round() -> CommProbe`: what this rank passes to collectives in all
        outer steps of a round of H inner steps. Collective; nothing is exchanged.
        """

    def save(self, out: Outgoing) -> None:
        """Write weights and optimizer state; collective. The torch engine's are loadable under any other layout."""

    def load(self, saved: Saved) -> None:
        """Read into this rank what `save` wrote. Not collective, so that the ranks can agree before they go on, with
        `parameters_written`; then the next step is bitwise the one that would have followed. After a failure the
        engine may hold a part of it and cannot be used.

        Raises
        ------
        ValueError: a file is missing or damaged, or of another layout or model
        """

    def close(self) -> None:
        """Release what the engine holds; the process group stays."""
