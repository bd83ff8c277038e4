"""A sweep over collectives as something to run: what is measured, over what, along which dimensions of a mesh."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from typing import TypedDict

from ...parallelism.diloco.config import Outer
from ...results.schema.columns import MESH_DIMS
from ...results.wording import count_of

BACKENDS = ("gloo", "nccl", "mpi")
KEY = "collectives"  # of the JSON, by which it is told from a training case


class SweepSettings(TypedDict):
    """The fields of bench.comm_sweep.CommSweep, whose module imports torch, as JSON holds them."""

    collectives: list[str]
    sizes_bytes: list[int]
    dtype: str
    iterations: int
    warmup: int
    seconds_per_size: float


@dataclass(frozen=True)
class CommCase:
    """`sizes`: ranks along each dimension; empty: all ranks as one."""

    asked: SweepSettings
    backend: str
    ranks: int
    sizes: Mapping[str, int] = field(default_factory=dict)
    model_name: str = "comm"

    outer = Outer()  # no replicas of anything, no quorum

    @property
    def case_id(self) -> str:
        from .case import content_id

        return content_id({KEY: asdict(self) | {"model_name": ""}})

    @property
    def steps(self) -> int:
        """Sizes to measure, at most."""
        dimensions = sum(n > 1 for n in self.sizes.values()) or 1
        return dimensions * len(self.asked["collectives"]) * len(self.asked["sizes_bytes"])

    @property
    def layout_name(self) -> str:
        return ".".join(f"{dim}{n}" for dim, n in self.sizes.items() if n > 1) or "world"

    def refusal(self) -> str | None:
        """Why this cannot run anywhere, or None."""
        if self.ranks < 2:
            return f"{self.ranks} rank has nobody to talk to: give at least 2"
        if self.sizes and prod(self.sizes.values()) != self.ranks:
            dims = " x ".join(f"{dim} {n}" for dim, n in self.sizes.items())
            return f"the layout {dims} has {count_of(prod(self.sizes.values()), 'rank')}, the world {self.ranks}"
        return None

    def columns(self) -> dict[str, object]:
        """Columns of `runs`."""
        row: dict[str, object] = {dim: n for dim, n in self.sizes.items() if dim != "replicas"}
        row |= {"outer_replicas": self.sizes["replicas"]} if "replicas" in self.sizes else {}
        return row | {
            "case_id": self.case_id,
            "layout": self.layout_name,
            "comm_sweep_json": json.dumps(dict(self.asked)),
            "backend": self.backend,
        }

    def to_json(self) -> str:
        return json.dumps({KEY: asdict(self)})

    @staticmethod
    def is_json(text: str) -> bool:
        return text.startswith(f'{{"{KEY}"')

    @classmethod
    def from_json(cls, text: str) -> CommCase:
        return cls(**json.loads(text)[KEY])


def parse_layout(text: str) -> dict[str, int]:
    """Ranks by dimension, outermost first: of `dp_shard=2,tp=2`.

    Raises
    ------
    ValueError: not that; names what is allowed
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, degree = (piece.strip() for piece in part.partition("="))
        if name not in MESH_DIMS or name in found or not degree.isascii() or not degree.isdigit() or int(degree) < 1:
            dims = ", ".join(MESH_DIMS)
            raise ValueError(f"--layout {text!r}: write dimension=ranks with commas, as dp_shard=2,tp=2, out of {dims}")
        found[name] = int(degree)
    return {dim: found[dim] for dim in MESH_DIMS if dim in found}


def parse_bytes(option: str, text: str) -> int:
    """Of 4096, 64k, 4M, 1G (powers of 1024).

    Raises
    ------
    ValueError: not that
    """
    units = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
    number = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = number[-1:] if number[-1:].isalpha() else ""
    digits = number.removesuffix(unit)
    if unit not in units or not digits.isascii() or not digits.isdigit() or not int(digits):
        raise ValueError(f"{option} {text!r}: write a number of bytes, as 4096, 64k or 4M")
    return int(digits) * units[unit]
