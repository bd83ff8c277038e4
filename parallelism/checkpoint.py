"""The torch engine's checkpoint: ranks write the boxes of parameters that they hold, any layout reads those it needs.

    boxes.json                  of each parameter: its shape, its optimizer's states, and which file has which box of it
    rank<r>-of<h>.safetensors   written by rank r: boxes that h ranks hold alike; names are the single-process model's,
                                `model.<parameter>` and `optimizer.<state>.<parameter>`

A box is (offset, shape) in the whole parameter. Of the ranks that hold the same box one writes it, so that all write
about equally much; boxes that fewer or more ranks hold are in files of their own, so that under the layout that wrote
it a rank reads, and checks, no more than it needs. Which rank writes which box is agreed on once, at the first
checkpoint. To load, nothing is sent: each rank reads in boxes.json which file holds which part of its own boxes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..bench.checkpoint_files import Outgoing, Saved
from ..bench.engine import LocalParameter
from ..bench.messages import at_first, to_each
from .optimizer import Optimizer
from .sharded import part_and_offset

BOXES = "boxes.json"
Box = tuple[tuple[int, ...], tuple[int, ...]]  # offset, shape


class _Read(NamedTuple):
    """A box of a tensor in a file, all of it where `box` is None, and the local tensor that takes it."""

    name: str
    box: tuple[slice, ...] | None
    into: Tensor


class Checkpoint:
    """group: the ranks of this replica; None: the world."""

    def __init__(self, optimizer: Optimizer, group: dist.ProcessGroup | None) -> None:
        self.optimizer, self.group = optimizer, group
        self._mine: dict[str, list[str]] | None = None  # by file, the parameters that this rank writes
        self._boxes: dict[str, dict] | None = None  # on the first rank: what boxes.json says of the parameters

    @torch.no_grad()
    def save(self, out: Outgoing) -> None:
        """Write this rank's boxes. Collective over the replica the first time."""
        held = dict(self._held())
        mine = self._mine
        if mine is None:
            every = at_first([[name, *each] for name, each in held.items()], self.group)
            self._boxes, orders = (None, None) if every is None else assigned(every)
            mine = self._mine = to_each(orders, self.group)
        tensors = self._tensors()
        for file, names in mine.items():
            out.tensors(file, {key: tensor for name in names for key, tensor in tensors[name].items()})
        if self._boxes is not None:
            out.json(BOXES, {"step": self._step(), "parameters": self._boxes})

    def _held(self) -> Iterator[tuple[str, tuple]]:
        """(name, (whole shape, offset, shape, states)) of each part of this rank that has any element."""
        for parameter, part in self.optimizer.parts:
            if part.data.numel():
                _, offset = part_and_offset(parameter)
                yield part.name, (list(parameter.shape), list(offset), list(part.data.shape), self._states(part.data))

    def _states(self, data: Tensor) -> list[str]:
        return [name for name in self.optimizer.state[data] if name != "step"]

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """By parameter: this rank's tensors under their names in a file."""
        tensors = {}
        for _, part in self.optimizer.parts:
            state = self.optimizer.state[part.data]
            tensors[part.name] = {f"model.{part.name}": part.data} | {
                f"optimizer.{name}.{part.name}": state[name] for name in self._states(part.data)
            }
        return tensors

    def _step(self) -> float:
        return next((float(state["step"]) for state in self.optimizer.state.values() if "step" in state), 0.0)

    @torch.no_grad()
    def load(self, saved: Saved) -> None:
        """Read this rank's boxes, in place, from a checkpoint of any layout. Not collective.

        Raises
        ------
        ValueError: a part of them is missing or damaged, or it is the checkpoint of another model or optimizer
        """
        try:
            self._load(saved, saved.json(BOXES))
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{BOXES} does not say what lies where: {type(error).__name__} {error}") from None

    def _load(self, saved: Saved, index: dict) -> None:
        reads: dict[str, list[_Read]] = {}  # by file
        tensors = self._tensors()
        for parameter, part in self.optimizer.parts:
            entry = self._entry(index, parameter, part)
            _, offset = part_and_offset(parameter)
            mine = (offset, tuple(part.data.shape))
            missing = part.data.numel()
            for file, *corners in entry["boxes"]:
                box = (tuple(corners[0]), tuple(corners[1]))
                common = overlap(mine, box)
                if common is None:
                    continue
                missing -= prod(common[1])
                for name, tensor in tensors[part.name].items():
                    here = tensor[slices(common, offset)] if tensor.ndim else tensor
                    reads.setdefault(file, []).append(_Read(name, _slices_of(box, common), here))
            if missing:
                raise ValueError(f"{BOXES} misses a part of {part.name}")
        for file, wanted in reads.items():
            with saved.tensors(file) as stored:
                for read in wanted:
                    read.into.copy_(_same_type(stored.get(read.name, read.box), read.into, read.name))
        for state in self.optimizer.state.values():
            if "step" in state:
                state["step"].fill_(index["step"])

    def _entry(self, index: dict, parameter: Tensor, part: LocalParameter) -> dict:
        """What boxes.json says of a parameter.

        Raises
        ------
        ValueError: it is the checkpoint of another model or optimizer
        """
        if part.name not in index["parameters"]:
            raise ValueError(f"{BOXES} has no {part.name}: it is the checkpoint of another model")
        entry, states = index["parameters"][part.name], self._states(part.data)
        if entry["shape"] != list(parameter.shape) or entry["states"] != states:
            raise ValueError(
                f"{BOXES} has {part.name} as {entry['shape']} with {entry['states']}, "
                f"here it is {list(parameter.shape)} with {states}"
            )
        return entry


def assigned(every: Sequence[Sequence[Sequence]]) -> tuple[dict[str, dict], list[dict[str, list[str]]]]:
    """What boxes.json says, and of each rank the names it writes, by file.

    every: of each rank what it holds: (name, whole shape, offset, shape, states). A box that several ranks hold goes to
    the one of them that has least to write so far, the first among equals.
    """
    holders: dict[tuple, list[int]] = {}
    wholes: dict[str, tuple[list, list]] = {}
    for rank, held in enumerate(every):
        for name, whole, offset, shape, states in held:
            holders.setdefault((name, tuple(offset), tuple(shape)), []).append(rank)
            wholes.setdefault(name, (whole, states))
    boxes = {name: {"shape": whole, "states": states, "boxes": []} for name, (whole, states) in wholes.items()}
    orders: list[dict[str, list[str]]] = [{} for _ in every]
    loads = [0] * len(every)
    for (name, offset, shape), ranks in holders.items():
        rank = min(ranks, key=lambda rank: (loads[rank], rank))
        loads[rank] += prod(shape) * (1 + len(boxes[name]["states"]))
        file = f"rank{rank}-of{len(ranks)}.safetensors"
        orders[rank].setdefault(file, []).append(name)
        boxes[name]["boxes"].append([file, offset, shape])
    for name, entry in boxes.items():
        held = sum(prod(shape) for _, _, shape in entry["boxes"])
        assert held == prod(entry["shape"]), f"{held} elements of {name} in the checkpoint: {entry}"
    return boxes, orders


def overlap(one: Box, other: Box) -> Box | None:
    """The box that two boxes of the same whole have in common, None where there is none."""
    begins = tuple(max(a, b) for a, b in zip(one[0], other[0], strict=True))
    ends = (min(a + n, b + m) for a, n, b, m in zip(one[0], one[1], other[0], other[1], strict=True))
    shape = tuple(end - begin for begin, end in zip(begins, ends, strict=True))
    return (begins, shape) if all(n > 0 for n in shape) else None


def slices(box: Box, origin: Sequence[int]) -> tuple[slice, ...]:
    """Where a box lies in a tensor that begins at `origin` of the whole."""
    return tuple(slice(begin - o, begin - o + n) for begin, n, o in zip(*box, origin, strict=True))


def _slices_of(box: Box, common: Box) -> tuple[slice, ...] | None:
    """What of the box in a file to read; None: all of it."""
    return None if box[1] == common[1] else slices(common, box[0])


def _same_type(stored: Tensor, wanted: Tensor, name: str) -> Tensor:
    if stored.dtype != wanted.dtype or stored.shape != wanted.shape:
        raise ValueError(f"{name} is {stored.dtype} {list(stored.shape)}, wanted {wanted.dtype} {list(wanted.shape)}")
    return stored
