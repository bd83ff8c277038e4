"""The fp32 weights that this rank updates, wherever DeepSpeed keeps them, and the way in and out of them.

ZeRO 0: the parameters themselves. ZeRO 1 and 2: a flat partition of all parameters, which cuts them anywhere; the
parameters follow by a cast and an all-gather. ZeRO 3: an equal piece of every parameter, the last one padded, perhaps
on disk. Their names in DeepSpeed are attributes of its optimizers; tests/parallelism/test_deepspeed.py pins them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Masters:
    """parameters: by canonical name. whole_shapes: of the whole model. tp: group and rank along it, or None.

    DeepSpeed is not typed: its optimizers, and the parameters with the attributes that it gives them, are Any here.
    """

    def __init__(
        self,
        optimizer: Any,
        stage: int,
        parameters: dict[str, nn.Parameter],
        whole_shapes: dict[str, tuple[int, ...]],
        tp: dist.ProcessGroup | None,
    ) -> None:
        self.optimizer, self.stage, self.whole_shapes = optimizer, stage, whole_shapes
        self.parameters: dict[str, Any] = dict(parameters)
        self.tp = tp
        self.tp_rank, self.ways = (dist.get_rank(tp), dist.get_world_size(tp)) if tp else (0, 1)

    # What the tensor-parallel rank has of a parameter.

    def shape(self, name: str) -> tuple[int, ...]:
        parameter = self.parameters[name]
        return tuple(parameter.ds_shape if self.stage == 3 else parameter.shape)

    def cut_dimension(self, name: str) -> int | None:
        """Along which a parameter is cut over tp, None where every rank has the whole."""
        pairs = enumerate(zip(self.shape(name), self.whole_shapes[name], strict=True))
        return next((dimension for dimension, (own, whole) in pairs if own != whole), None)

    def _own_cut(self, name: str, whole: Tensor) -> Tensor:
        cut = self.cut_dimension(name)
        return whole if cut is None else whole.chunk(self.ways, cut)[self.tp_rank]

    # In and out.

    @torch.no_grad()
    def local(self) -> Iterator[tuple[str, Tensor]]:
        """(name, flat view of this rank's piece of it); of what is not on disk."""
        for name, parameter in self.parameters.items():
            if self.stage == 0:
                yield name, parameter.detach().view(-1)
            elif self.stage == 3:
                group, offset, count = self._piece(parameter)
                real = min(count, max(0, parameter.ds_numel - self._index(parameter) * count))
                if real:
                    yield name, self.optimizer.fp32_partitioned_groups_flat[group].detach()[offset : offset + real]
            elif parameter._hp_mapping is not None:
                yield name, parameter._hp_mapping.hp_fragment.detach()

    def _piece(self, parameter: Any) -> tuple[int, int, int]:
        """ZeRO 3: (sub-group, offset in it, elements) of this rank's piece, padding included."""
        return self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]

    def _index(self, parameter: nn.Parameter) -> int:
        return self.optimizer._get_param_partition_rank(parameter)

    @torch.no_grad()
    def put(self, name: str, whole: Tensor) -> None:
        """Write this rank's piece of a whole parameter; the parameters follow with `refresh`."""
        parameter, flat = self.parameters[name], self._own_cut(name, whole).reshape(-1)
        if self.stage == 0:
            parameter.view(-1).copy_(flat)
        elif self.stage == 3:
            _, _, count = self._piece(parameter)
            begin = self._index(parameter) * count
            piece = torch.zeros(count, device=flat.device)
            mine = flat[begin : begin + count]
            piece[: mine.numel()] = mine
            self.optimizer.set_local_hp_param(piece, parameter)
        elif parameter._hp_mapping is not None:
            at = parameter._hp_mapping.lp_fragment_address
            parameter._hp_mapping.hp_fragment.copy_(flat[at.start : at.start + at.numel])

    @torch.no_grad()
    def whole(self, name: str) -> Tensor:
        """The whole parameter in fp32; collective over the data-parallel and the tensor-parallel ranks."""
        from deepspeed.utils import safe_get_full_fp32_param

        parameter = self.parameters[name]
        own = parameter.detach() if self.stage == 0 else safe_get_full_fp32_param(parameter).view(self.shape(name))
        cut = self.cut_dimension(name)
        if cut is None:
            return own
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(self.ways)]
        dist.all_gather(parts, own.contiguous(), group=self.tp)
        return torch.cat(parts, cut)

    @torch.no_grad()
    def refresh(self) -> None:
        """After the masters were written: the parameters follow. Collective over the data-parallel ranks."""
        if self.stage in (1, 2):
            self.optimizer.update_lp_params()
        elif self.stage == 3:
            self.optimizer._partition_all_parameters()
            for i, _ in self._on_hand():
                self.optimizer._reassign_or_swap_out_partitioned_parameters(i)
            whole = self.optimizer.persistent_parameters
            if whole:
                whole[0].all_gather(whole)
            self.optimizer.invalidate_secondary_tensor()

    # The tensors that the inner optimizer steps, and its state of them.

    def _on_hand(self, write: bool = False) -> Iterator[tuple[int, Tensor]]:
        """(number, tensor) one after the other; what is on disk is read first, and written back after with `write`."""
        optimizer = self.optimizer
        for i, tensor in enumerate(self._stepped()):
            on_disk = self.stage == 3 and optimizer._swappable_optimizer_subgroup(i)
            if on_disk:
                optimizer._optimizer_states_and_gradient_swap_in(i)
            yield i, tensor
            if on_disk and write:
                optimizer._optimizer_states_and_gradient_swap_out(i)
            elif on_disk:
                optimizer._release_swap_buffers(i)

    def _stepped(self) -> Sequence[Tensor]:
        optimizer = self.optimizer
        if self.stage == 0:
            return [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if self.stage == 3:
            return optimizer.fp32_partitioned_groups_flat
        if hasattr(optimizer, "single_partition_of_fp32_groups"):
            return optimizer.single_partition_of_fp32_groups
        return optimizer.fp32_groups_flat_partition  # ZeRO 1 with bf16 is a class of its own

    @property
    def _inner(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer if self.stage else self.optimizer

    def optimizer_state(self) -> Iterator[Tensor]:
        return (t for state in self._inner.state.values() for t in state.values() if torch.is_tensor(t))

    @torch.no_grad()
    def state(self) -> list[dict[str, object]]:
        """Copies, on the host, of all that the next step depends on."""
        return [
            {"master": tensor.detach().cpu().clone()} | {k: _copied(v) for k, v in self._inner.state[tensor].items()}
            for _, tensor in self._on_hand()
        ]

    @torch.no_grad()
    def load_state(self, states: list[dict[str, Any]]) -> None:
        """Inverse of `state`; the parameters follow with `refresh`.

        Raises
        ------
        ValueError: it is of another layout
        """
        if len(states) != sum(1 for _ in self._on_hand()):
            raise ValueError("the checkpoint was written under another layout")
        for i, tensor in self._on_hand(write=True):
            state = dict(states[i])
            master = state.pop("master")
            if master.shape != tensor.shape:
                raise ValueError("the checkpoint was written under another layout")
            tensor.copy_(master)
            self._inner.state[tensor] = {key: _placed(value, tensor) for key, value in state.items()}


def _copied(value: object) -> object:
    return value.cpu().clone() if torch.is_tensor(value) else value


def _placed(value: object, like: Tensor) -> object:
    return value.to(like.device) if torch.is_tensor(value) else value
