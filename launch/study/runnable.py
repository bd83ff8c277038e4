"""What a sweep asks of that which it runs: the cases of a study file, or the one case of `scalade comm`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .case import Case
from .comm_case import CommCase
from .schema import Run

AnyCase = Case | CommCase


@dataclass(frozen=True, slots=True)
class PlannedCase:
    case: AnyCase
    skip_reason: str | None = None  # None: it can run
    predicted_memory_bytes: int | None = None  # of the rank that needs most, without its process; None: not predicted


class Runnable(Protocol):
    """A Study, or a CommStudy."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> Path: ...  # for messages

    @property
    def run(self) -> Run: ...

    @property
    def results(self) -> Path: ...  # folder of the table

    @property
    def device(self) -> str: ...  # cpu or cuda

    def threads_per_rank(self, one_host: bool = True) -> int: ...

    def cases(self, world_size: int | None = None) -> Sequence[PlannedCase]: ...

    def warnings(self) -> list[str]: ...
