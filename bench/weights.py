"""Canonical weights: full fp32 tensors under the single-process model's names, whatever engine and layout hold them.

They go between engines through the first rank of a replica: each engine knows which part of which tensor it holds. As
a file they are numpy's .npz, which holds arrays and no code.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .shape import ModelShape

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

Weights = dict[str, "torch.Tensor"]


@lru_cache
def shapes_of(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Size of every parameter of the whole model by its name, in the model's order."""
    import torch

    from .model import Decoder

    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in Decoder(shape).named_parameters()}


def problem_with(weights: Mapping[str, torch.Tensor], shape: ModelShape) -> str | None:
    """Why these are not the whole weights of a model of that shape, in one line, or None."""
    wanted, sizes = shapes_of(shape), {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = [name for name in (*wanted, *sizes) if wanted.get(name) != sizes.get(name)]
    if not wrong:
        return None
    name, more = wrong[0], f" ({len(set(wrong))} differ)" if len(set(wrong)) > 1 else ""
    difference = f"is {sizes[name]}" if name in sizes else "is missing"
    return f"weights of another model: {name} {difference}, wanted {wanted.get(name, 'nothing of that name')}{more}"


def gathered(mine: Weights, group: dist.ProcessGroup | None) -> Weights:
    """What the ranks of a group hold together, on its first rank; elsewhere empty. Collective."""
    import torch.distributed as dist

    if group is None:
        return mine
    if dist.get_rank(group) != 0:
        dist.gather_object(mine, None, group=group, group_dst=0)
        return {}
    parts: list[Any] = [None] * dist.get_world_size(group)
    dist.gather_object(mine, parts, group=group, group_dst=0)
    return {name: tensor for part in parts for name, tensor in part.items()}


def handed_out(
    weights: Weights | None, shape: ModelShape, group: dist.ProcessGroup | None, device: torch.device
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, whole fp32 tensor on the device) of every parameter, on every rank of the group. Collective.

    weights: those of the group's first rank count. group: None, this process alone

    Raises
    ------
    ValueError: they are not the whole weights of such a model; on every rank
    """
    import torch
    import torch.distributed as dist

    first = group is None or dist.get_rank(group) == 0
    own = weights or {}
    problem = [problem_with(own, shape) if first else None]
    if group is not None:
        dist.broadcast_object_list(problem, group=group, group_src=0)
    if problem[0]:
        raise ValueError(problem[0])
    for name, size in shapes_of(shape).items():
        whole = own[name].to(device, torch.float32).contiguous() if first else torch.empty(size, device=device)
        if group is not None:
            dist.broadcast(whole, group=group, group_src=0)
        yield name, whole


def write(file: Path, weights: Weights) -> None:
    """Write them whole or not at all, on the disk when this returns."""
    import numpy as np

    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(aside, "wb") as out:
            arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in weights.items()}
            np.savez(out, **arrays)
            out.flush()
            os.fsync(out.fileno())
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def read(file: Path) -> Weights:
    """Inverse of `write`.

    Raises
    ------
    ValueError: it is no such file, or damaged
    """
    import numpy as np
    import torch

    try:
        with np.load(file, allow_pickle=False) as arrays:
            weights = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file} holds no weights: {reason}") from None
    wrong = [name for name, array in weights.items() if array.dtype != np.float32]
    if wrong:
        raise ValueError(f"{file} holds no weights: {wrong[0]} is {weights[wrong[0]].dtype}, wanted float32")
    return {name: torch.from_numpy(array) for name, array in weights.items()}
