"""What one rank keeps, as a file: nested dicts and lists, of tensors, which lie there as such, and of plain values.

For state that is loaded under the layout that wrote it: DeepSpeed's, Megatron-Core's, the outer algorithms'.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from ..bench.checkpoint_files import Outgoing, Saved
from ..bench.tensor_file import Tensors
from ..results.files import parse_json

STATE = "state"


def write_state(out: Outgoing, name: str, state: Any) -> None:
    """state: Tensor | dict with str keys | list or tuple (read as a list) | str | int | float | bool | None, nested"""
    tensors: dict[str, Tensor] = {}
    plain = _plain(state, tensors)
    out.tensors(name, tensors, {STATE: json.dumps(plain)})


def read_state(saved: Saved, name: str, device: torch.device | str = "cpu") -> Any:
    """
    Raises
    ------
    ValueError: the file is missing or damaged, or holds no state
    """
    with saved.tensors(name) as tensors:
        try:
            return _whole(_parsed(tensors.about[STATE]), tensors, device)
        except (LookupError, TypeError, AttributeError, RecursionError) as error:
            lines = str(error).splitlines() or [""]
            raise ValueError(f"{name} holds no state: {type(error).__name__} {lines[0][:100]}") from None


def _parsed(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise TypeError(error) from None


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    """As JSON: a dict is {"of": ...} and a tensor {"tensor": its name in the file}."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value), list(value)
        return {"of": {key: _plain(each, tensors) for key, each in value.items()}}
    if isinstance(value, list | tuple):
        return [_plain(each, tensors) for each in value]
    assert value is None or isinstance(value, str | int | float), type(value)
    return value


def _whole(plain: Any, tensors: Tensors, device: torch.device | str) -> Any:
    if isinstance(plain, dict):
        if "tensor" in plain:
            return tensors.get(plain["tensor"]).to(device, copy=True)  # the file is mapped, and goes
        return {key: _whole(each, tensors, device) for key, each in plain["of"].items()}
    if isinstance(plain, list):
        return [_whole(each, tensors, device) for each in plain]
    return plain
