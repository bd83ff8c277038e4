"""The progress of a sweep on standard error: bars in a terminal, elsewhere one line per finished run, with --quiet only
for those that failed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..process.diagnosis import tail
from ..process.outcome import Outcome
from ..process.progress import Progress, read_progress
from ..process.scratch import log_file
from ..study.case import Case
from ..study.labels import labels

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from .plan import AnyCase, PlannedRun

REFRESH_S = 0.25


def make_display(quiet: bool) -> Display:
    """The one for this standard error."""
    if quiet:
        return Failures()
    is_interactive = sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"
    return Bars() if is_interactive else Lines()


class Display:
    """Shows nothing: the base of those that do. The sweep calls the methods, in this order."""

    def plan(self, pending: Sequence[PlannedRun[AnyCase]]) -> None:
        """The runs to come. A run's line names in what its case differs from the others."""
        self.total, self.number = len(pending), 0
        cases = {run.case.case_id: run.case for run in pending if isinstance(run.case, Case)}
        self._labels = dict(zip(cases, labels(list(cases.values())), strict=True))

    def left(self, line: str | None) -> None:
        """How long the runs to come will take, as predicted; None: nothing is known."""

    def name(self, run: PlannedRun[AnyCase]) -> str:
        case = self._labels.get(run.case.case_id)  # none of a sweep of collectives
        return run.label if case is None else f"{case} r{run.repeat}"

    def started(self, run: PlannedRun[AnyCase], scratch: Path) -> None:
        """The ranks of `run` have been started. The first heavy import may happen here, not before."""

    def tick(self) -> None:
        """Called often while a run is on; must be cheap."""

    def ended(self, run: PlannedRun[AnyCase], outcome: Outcome, row: Mapping[str, object], scratch: Path) -> None:
        self.number += 1

    def passed_over(self, run: PlannedRun[AnyCase]) -> None:
        self.number += 1

    def close(self) -> None:
        pass


class Failures(Display):
    """One line for each run that failed, and nothing else."""

    def ended(self, run: PlannedRun[AnyCase], outcome: Outcome, row: Mapping[str, object], scratch: Path) -> None:
        super().ended(run, outcome, row, scratch)
        if outcome.bad:
            print(summary_line(self.name(run), outcome, row), file=sys.stderr, flush=True)


class Lines(Display):
    """One plain line for each run that ended; where it failed, also the last lines of the failed rank's log."""

    def left(self, line: str | None) -> None:
        if line:
            print(line, file=sys.stderr, flush=True)

    def ended(self, run: PlannedRun[AnyCase], outcome: Outcome, row: Mapping[str, object], scratch: Path) -> None:
        super().ended(run, outcome, row, scratch)
        self.say(f"[{self.number}/{self.total}] {summary_line(self.name(run), outcome, row)}")
        if row.get("val_warning"):
            self.say(f"    warning: {row['val_warning']}")
        if outcome.bad:
            for line in failed_tail(outcome, scratch):
                self.say(f"    {line}")

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class Bars(Lines):
    """A bar for the study and one for the run, with tokens/s, loss and the time that is left."""

    def plan(self, pending: Sequence[PlannedRun[AnyCase]]) -> None:
        super().plan(pending)
        self._progress: Bar | None = None
        self._next = 0.0

    def started(self, run: PlannedRun[AnyCase], scratch: Path) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        bar = self._progress
        if bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[measured]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            bar = self._progress = Bar(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
            self._study = bar.add_task("study", total=self.total, completed=self.number, measured="runs")
            bar.start()
        self._run = bar.add_task(self.name(run), total=run.case.steps, measured="starting")
        self._scratch = scratch
        bar.refresh()

    def tick(self) -> None:
        now = time.monotonic()
        if self._progress is None or now < self._next:
            return
        self._next = now + REFRESH_S
        if progress := read_progress(self._scratch):
            self._progress.update(self._run, completed=progress.step, measured="  ".join(_measured(progress)))
        self._progress.refresh()

    def ended(self, run: PlannedRun[AnyCase], outcome: Outcome, row: Mapping[str, object], scratch: Path) -> None:
        if self._progress is not None:
            self._progress.remove_task(self._run)
        super().ended(run, outcome, row, scratch)
        if self._progress is not None:
            self._progress.update(self._study, completed=self.number)

    def say(self, line: str) -> None:
        if self._progress is None:
            super().say(line)
        else:
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def _measured(progress: Progress) -> list[str]:
    facts = [] if progress.phase == "training" else [progress.phase]
    if progress.tokens_per_s is not None:
        facts.append(f"{progress.tokens_per_s:,.0f} tokens/s")
    if progress.loss is not None:
        facts.append(f"loss {progress.loss:.3f}")
    return facts


def summary_line(label: str, outcome: Outcome, row: Mapping[str, object]) -> str:
    facts = [outcome.status.ljust(9), label]
    for name, form in (("wall_s", "{:.1f} s"), ("tokens_per_s", "{:,.0f} tokens/s"), ("loss", "loss {:.3f}")):
        value = row.get(name)
        if isinstance(value, int | float):
            facts.append(form.format(value))
    if damaged := row.get("checkpoints_damaged"):
        facts.append(f"{damaged} damaged checkpoint{'' if damaged == 1 else 's'} set aside")
    return "  ".join(facts) + (f": {outcome.reason}" if outcome.reason else "")


def failed_tail(outcome: Outcome, scratch: Path) -> list[str]:
    """The last lines of the log of the failed rank, and where the log is."""
    rank = outcome.rank or 0
    lines = tail(scratch, rank)
    return [*lines, f"(rank {rank}'s log: {log_file(scratch, rank)})"] if lines else []
