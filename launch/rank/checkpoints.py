"""Where an earlier attempt left off: all ranks load the last checkpoint that is whole on each, and write the next.

One that turns out to be damaged, on whichever rank, is set aside with a line that says why, and the one before it is
tried; where there is none, the run starts from its beginning. The row says how many were.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from ...bench.checkpoint_files import Saved
from ...bench.engine import Engine
from ...bench.loop import Training
from ...bench.messages import at_first, everywhere, from_first
from ...bench.step_record import StepRecord
from ...bench.tensor_file import Digest
from ..process.error_report import one_line
from .checkpoint_folders import Shelf


class Checkpoints:
    """A rank's way to the run's checkpoints; all methods are collective.

    damaged: by step, why that checkpoint was set aside, in this start of the run or in one before it
    """

    def __init__(self, scratch: Path, run_id: str) -> None:
        self.shelf, self.damaged = Shelf(scratch, run_id), {}
        self.first = _rank() == 0

    def resume(self, build: Callable[[], Engine], record: StepRecord) -> tuple[Engine, Training, int]:
        """Engine, what was done, and its steps.

        build: makes the engine with its start values; called again where a checkpoint could be read in part only
        """
        left = from_first(self.shelf.clear() if self.first else None)
        engine = build()
        while True:
            found = from_first(self._newest() if self.first else None)
            if found is None:
                break
            step, content, problem = found
            if problem is None:
                saved = Saved(
                    self.shelf.path(step),
                    self.shelf.scratch,
                    {name: Digest(*told) for name, told in content["files"].items()},
                )
                problem = _load(engine, saved)
                if problem is None:
                    self.damaged = dict(content["damaged"]) | _earlier(left) | self.damaged
                    engine.parameters_written()
                    record.rows = content["steps"]
                    return engine, Training(record, content["evals"]), step
                engine.close()
                engine = build()
            self.damaged[step] = problem
            if self.first:
                self._set_aside(step, problem)
        self.damaged = _earlier(left) | self.damaged
        return engine, Training(record), 0

    def _newest(self) -> tuple | None:
        found = self.shelf.newest()
        if found is None:
            return None
        if found.content and (extra := found.content.pop("extra")):
            more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
            print(
                f"warning: {self.shelf.path(found.step)} holds {extra[0]!r:.100}{more}, of which its index does not "
                "know: not read",
                file=sys.stderr,
            )
        return found.step, found.content, found.problem

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
            digests = {name: Digest(*told) for each in written for name, told in each.items()}
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


def _earlier(steps: list[int]) -> dict[int, str]:
    return dict.fromkeys(steps, "an earlier start of the run found it damaged")


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
    return next(
        (
            f"rank {rank}: {each}" if len(problems) > 1 else each
            for rank, each in enumerate(problems)
            if each is not None
        ),
        None,
    )
