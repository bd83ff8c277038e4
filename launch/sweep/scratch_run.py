"""Ranks that are started once for what they find out, and leave no row: `doctor` tries with them, `calibrate` measures.

They are started, joined and judged as those of any run; their scratch folder is gone afterwards.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...bench.data.spec import DataSpec
from ...bench.measure import Measure
from ...bench.recipe import Recipe
from ...bench.shape import SIZES, ModelShape
from ...parallelism.diloco.config import Outer
from ...parallelism.layout import Layout
from ..host.clock import Moment
from ..process.outcome import Outcome
from ..process.run_spec import RunSpec
from ..process.supervisor import Signals
from ..study.case import Case
from .local import LocalExecutor


class ScratchRun:
    """`ranks` ranks on `device` (cpu: gloo, cuda: NCCL), each by `command`, for at most `limit_s` seconds.

    name: of the command that asks, for the folder's name and the spec
    """

    def __init__(
        self, name: str, ranks: int, device: str, threads: int, limit_s: float, command: Sequence[str]
    ) -> None:
        self.name, self.ranks, self.device, self.threads = name, ranks, device, threads
        self.limit_s, self.command = limit_s, command

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """The scratch folder, as long as it is needed: `execute` within."""
        with tempfile.TemporaryDirectory(prefix=f"scalade-{self.name}-") as folder:
            yield Path(folder)

    def execute(self, folder: Path) -> Outcome:
        """Raises KeyboardInterrupt where a signal came."""
        with Signals() as signals:
            executor = LocalExecutor(signals, self.command)
            try:
                outcome = executor.execute(self._spec(folder), self.limit_s, lambda: None, lambda: None)
            finally:
                executor.close()
            if signals.received:
                raise KeyboardInterrupt
        return outcome

    def _spec(self, folder: Path) -> RunSpec:
        shape = ModelShape(**SIZES["tiny-100k"], kv_heads=2, vocab=256, seq_len=64)
        recipe, layout = Recipe(global_batch=self.ranks, steps=1), Layout(dp_replicate=self.ranks)
        case = Case(shape, DataSpec(), recipe, layout, Outer(), Measure(), model_name=self.name)
        launched = Moment.now()
        return RunSpec(
            run_id=f"{case.case_id}-r0",
            case=case.to_json(),
            repeat=0,
            study=self.name,
            launcher="local",
            results=str(folder / "results"),
            scratch=str(folder),
            size=self.ranks,
            nonce="",
            address="",
            port=0,
            device=self.device,
            threads=self.threads,
            attempt=1,
            launched_at=launched.at,
            launched_monotonic=launched.monotonic,
            launched_clock=launched.clock,
            join_timeout_s=self.limit_s,
        )
