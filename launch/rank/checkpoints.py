"""Where an earlier attempt left off: all ranks load the last checkpoint that is whole on each, and write the next.

One that turns out to be damaged, on whichever rank, is set aside with a line that says why, and the one before it is
tried; where there is none, the run starts from its beginning. The row says how many were.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...bench.checkpoint_files import Saved
from ...bench.engine import Engine
from ...bench.loop import Training
from ...bench.messages import at_first, everywhere, from_first
from ...bench.step_record import StepRecord
from ...bench.tensor_file import Digest
from ..process.error_report import one_line
from .checkpoint_folders import Candidate, Content, Shelf


class Checkpoints:
    """A rank's way to the run's checkpoints; all methods are collective.

    damaged: by step, why that checkpoint was set aside, in this start of the run or in one before it
    """

    def __init__(self, scratch: Path, run_id: str) -> None:
        self.shelf = Shelf(scratch, run_id)
        self.damaged: dict[int, str] = {}
        self.first = _rank() == 0

    def resume(self, build: Callable[[], Engine], record: StepRecord) -> tuple[Engine, Training, int]:
        """Engine, what was done, and its steps.

        build: makes the engine with its start values; called again where a checkpoint could be read in part only
        """
        set_aside_before = dict.fromkeys(
            from_first(self.shelf.clear() if self.first else None), "an earlier start of the run found it damaged"
        )
        engine = build()
        while candidate := self._newest():
            problem = candidate.problem
            if content := candidate.content:
                problem = _load(engine, Saved(self.shelf.path(candidate.step), self.shelf.scratch, content.files))
                if problem is None:
                    self.damaged = dict(content.damaged) | set_aside_before | self.damaged
                    engine.parameters_written()
                    record.rows = content.steps
                    return engine, Training(record, content.evals), candidate.step
                engine.close()
                engine = build()
            assert problem is not None, "a checkpoint without content has a problem"
            self.damaged[candidate.step] = problem
            if self.first:
                self._set_aside(candidate.step, problem)
        self.damaged = set_aside_before | self.damaged
        return engine, Training(record), 0

    def _newest(self) -> Candidate | None:
        """As rank 0 sees it, on every rank."""
        candidate = self.shelf.newest() if self.first else None
        if candidate and candidate.content:
            self._warn_of_unknown(candidate.step, candidate.content.unknown)
        seen = from_first(_as_json(candidate))
        if seen is None:
            return None
        step, content, problem = seen
        return Candidate(step, None if content is None else Content.from_json(content), problem)

    def _warn_of_unknown(self, step: int, names: list[str]) -> None:
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            folder = self.shelf.path(step)
            print(
                f"warning: {folder} holds {names[0]!r:.100}{more}, of which its index does not know: not read",
                file=sys.stderr,
            )

    def _set_aside(self, step: int, problem: str) -> None:
        aside = self.shelf.set_aside(step)
        before = self.shelf.steps()
        what = f"the one of step {before[0]} is tried" if before else "from step 0 again"
        print(
            f"warning: {self.shelf.path(step)} cannot be read ({problem}): {what}, it is kept as {aside}",
            file=sys.stderr,
        )

    def save(self, engine: Engine, done: int, training: Training) -> None:
        """Write a checkpoint aside, then put it before the last one."""
        out = self.shelf.outgoing(done)
        engine.save(out)
        written = at_first(out.digests)  # comes when all of them have written
        if self.first:
            assert written is not None, "rank 0 gets what all have written"
            digests = {name: Digest(*entry) for of_rank in written for name, entry in of_rank.items()}
            damaged = [[step, why] for step, why in self.damaged.items()]
            history = {"steps": training.steps.rows, "evals": training.evals, "damaged": damaged}
            self.shelf.put(out, done, digests, history)

    def columns(self) -> dict[str, object]:
        """Columns of `runs`."""
        last = f"step {max(self.damaged)}: {self.damaged[max(self.damaged)]}" if self.damaged else None
        return {"checkpoints_damaged": len(self.damaged), "checkpoint_damaged_reason": last}


def _rank() -> int:
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0


def _as_json(candidate: Candidate | None) -> list[Any] | None:
    if candidate is None:
        return None
    return [candidate.step, candidate.content and vars(candidate.content), candidate.problem]


def _load(engine: Engine, saved: Saved) -> str | None:
    """Load it on all ranks, or say why one of them could not."""
    problem = None
    try:
        engine.load(saved)
    except (MemoryError, torch.OutOfMemoryError):
        raise  # the checkpoint is not to blame
    except Exception as error:
        problem = one_line(error).removeprefix("ValueError: ")
    problems = everywhere(problem)  # fails, too, where a rank is gone: the checkpoint then stays
    for rank, each in enumerate(problems):
        if each is not None:
            return f"rank {rank}: {each}" if len(problems) > 1 else each
    return None
