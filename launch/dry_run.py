"""`scalade run --dry-run`: what a study would run, for a person or a program. Nothing is started, nothing written."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..parallelism.predict.memory import GIB
from ..results.store.store import RunStore
from ..results.terminal import print_grid, say
from ..results.wording import count_of
from .predict.rows import predicted_columns
from .run import counted
from .study.study import load_study
from .study.unmet import refuse_here
from .sweep.forecast import Forecast, Predicted
from .sweep.plan import Plan, PlannedRun, make_plan

if TYPE_CHECKING:
    from rich.console import Console

    from .study.case import Case

ROWS = 40  # cases that are shown


@dataclass(frozen=True)
class DryRun:
    results: Path
    plan: Plan
    warnings: tuple[str, ...]
    predicted: Predicted = field(default_factory=dict)

    @property
    def forecast(self) -> Forecast:
        return Forecast(self.predicted)

    @property
    def cases(self) -> dict[str, list[PlannedRun]]:
        """case_id -> the runs of it that are missing, in the order in which a sweep runs them."""
        runs: dict[str, list[PlannedRun]] = {}
        for run in self.plan.pending:
            runs.setdefault(run.case.case_id, []).append(run)
        return runs


def dry_run(path: Path, results: Path | None, *, retry_failed: bool = False) -> DryRun:
    """
    Raises
    ------
    ValueError: as run_study
    """
    study = load_study(path)
    folder = results or study.results
    with tempfile.TemporaryDirectory() as nothing:
        there = (folder / "runs").is_dir()
        plan = make_plan(study, RunStore(folder if there else nothing), retry_failed=retry_failed)
    refuse_here(study.path, study.run.device, plan.unfinished)
    predicted = predicted_columns(study) if plan.pending else {}
    plan = Forecast(predicted).ordered(plan, study.run.isolation)
    return DryRun(folder, plan, tuple(study.warnings()), predicted)


def to_dict(dry: DryRun) -> dict[str, Any]:
    plan = dry.plan
    cases = [
        {
            "case_id": case_id,
            "model": runs[0].case.model_name,
            "layout": runs[0].case.layout_name,
            "ranks": runs[0].case.ranks,
            "predicted_memory_bytes": runs[0].predicted_memory_bytes,
            "predicted_step_time_s": dry.predicted.get(case_id, {}).get("predicted_step_time_s"),
            "predicted_duration_s": (duration := dry.forecast.duration(runs[0])) and asdict(duration),
            "run_ids": [run.run_id for run in runs],
        }
        for case_id, runs in dry.cases.items()
    ]
    return {
        "results": str(dry.results),
        "runs": len(plan.pending),
        "cases": cases,
        "kept": len(plan.kept),
        "failed_before": len(plan.failed),
        "skipped": plan.skipped,
        "skip_reasons": plan.skip_reasons,
        "warnings": list(dry.warnings),
        "exit_code": 0,
    }


def print_dry_run(dry: DryRun, console: Console, limit: int = ROWS) -> None:
    """limit: cases that are shown; 0: all"""
    cases, plan = list(dry.cases.values()), dry.plan
    shown = cases[:limit] if limit else cases
    if shown:
        texts = differences([runs[0].case for runs in shown])
        headers = ("case", "model", "layout", ">ranks", ">runs", ">MiB a rank", "and")
        print_grid(console, headers, [_line(runs, more) for runs, more in zip(shown, texts, strict=True)])
    if len(cases) > len(shown):
        say(console, f"and {count_of(len(cases) - len(shown), 'case')} more: --limit 0 shows all, --json gives them")
    had = f"; {len(plan.kept)} had been done before" if plan.kept else ""
    say(console, f"would run: {count_of(len(plan.pending), 'run')} of {count_of(len(cases), 'case')}{had}")
    if line := dry.forecast.left(plan.pending):
        say(console, line)
    if plan.failed:
        say(console, f"{count_of(len(plan.failed), 'run')} had failed before: --retry-failed runs again what can run")
    if plan.skipped:
        say(console, f"{count_of(plan.skipped, 'case')} skipped:")
        for line in counted(plan.skip_reasons):
            say(console, line)
    for line in dry.warnings:
        say(console, f"warning: {line}")
    say(console, f"table: {dry.results}")


def _line(runs: Sequence[PlannedRun], more: str) -> tuple[str, ...]:
    case, need = runs[0].case, runs[0].predicted_memory_bytes
    memory = "" if need is None else f"{need / (GIB / 1024):,.1f}"
    return case.case_id, case.model_name, case.layout_name, str(case.ranks), str(len(runs)), memory, more


def differences(cases: Sequence[Case]) -> list[str]:
    """In what each of these cases differs from the others, beside the names of its model and its layout."""
    from .study.case import PARTS

    texts: list[list[str]] = []  # of each column that differs
    for part in (name for name in PARTS if name not in ("shape", "layout", "outer")):
        parts = [vars(getattr(case, part)) for case in cases]
        for key in type(getattr(cases[0], part)).__dataclass_fields__:
            values = [settings[key] for settings in parts]
            if len(set(values)) > 1:
                texts.append([f"{key}={value}" for value in values])
    return list(map(" ".join, zip(*texts, strict=True))) or [""] * len(cases)
