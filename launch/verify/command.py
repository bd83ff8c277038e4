"""`scalade verify`: whether each layout of a study trains, on this machine, as one process does.

Every layout takes 10 steps in fp32; the loss and the gradient norm of each step are compared with those of one process
that starts from the same weights and sees the same batches. Replicas are compared with the same replicas folded into
one process. Compressed messages are rounded block by block, and the blocks end where a rank's part of a parameter ends:
the reference takes its parameters apart as the layout cuts them, so that both round alike. Where only the engine knows
how it cuts (DeepSpeed's ZeRO, Megatron), the messages are verified in bf16, which has no blocks. It is an ordinary
sweep over cases made for it: what is compared is what `scalade run` computes.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from functools import cache
from itertools import chain
from operator import attrgetter
from pathlib import Path

from ...bench.measure import Measure
from ...bench.recipe import Recipe
from ...parallelism.diloco.config import Outer, allowance
from ...parallelism.layout import Layout
from ...results.store.store import RunStore
from ..process.supervisor import RANK_COMMAND, Signals
from ..study.case import Case
from ..study.study import Study, load_study
from ..study.unmet import refuse_here
from ..sweep.display import make_display
from ..sweep.local import LocalExecutor
from ..sweep.plan import PlannedRun, make_plan
from ..sweep.summary import Summary
from ..sweep.sweep import Sweep

STEPS = 10
TOLERANCE = 1e-4  # relative; measured of sums in another order: at most 1e-5, AdamW with lr from 1e-4 to 5e-2
WARMUP_STEPS = 2  # of the learning rate at most: ten steps of a long warm-up would barely train
SYNC_EVERY = 4  # inner steps between outer ones at most: ten steps hold at least two outer steps
MEASURE = Measure(warmup_steps=0, eval_sequences=0, log_every=STEPS, probe_comm=False)
ALONE = Layout()
BUT_SEED = attrgetter(*(field.name for field in fields(Recipe) if field.name != "seed"))
COMPARED = {"loss": "loss", "grad_norm": "gradient norm"}  # columns of `steps`

Series = Mapping[str, Sequence[float]]  # by column, one value a step


@dataclass(frozen=True)
class Check:
    """A layout of the study, made ready to be verified, and what it is compared with."""

    case: Case
    reference: Case


class Kind(StrEnum):
    """Of a verdict."""

    PASS = "pass"
    FAIL = "fail"
    REFERENCE = "reference"  # itself: nothing to compare
    SKIPPED = "skipped"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Verdict:
    """What became of one layout. A difference is the worst of all steps, relative; None: not compared."""

    check: Check
    verdict: Kind
    reason: str | None = None
    loss: float | None = None
    grad_norm: float | None = None


@dataclass(frozen=True)
class Verification:
    study: Study
    tolerance: float
    verdicts: tuple[Verdict, ...]
    results: Path | None  # where the runs are; None: not kept
    interrupted: str | None = None

    @property
    def counts(self) -> Counter[Kind]:
        return Counter(verdict.verdict for verdict in self.verdicts)

    @property
    def passed(self) -> bool:
        """Nothing failed, and not everything was skipped: a check that checked nothing is no pass."""
        return (
            not self.interrupted
            and not self.counts[Kind.FAIL]
            and self.counts[Kind.PASS] + self.counts[Kind.REFERENCE] > 0
        )


def verify_study(
    path: Path,
    results: Path | None = None,
    *,
    tolerance: float = TOLERANCE,
    quiet: bool = False,
    command: Sequence[str] = RANK_COMMAND,
) -> tuple[Verification, int]:
    """Verify every layout of a study. Gives the verdicts and the exit status.

    results: a folder to keep the runs in; None: a temporary one, kept only where a layout failed
    tolerance: of the relative differences

    Raises
    ------
    ValueError: the study is wrong, the results folder holds runs, or the tolerance is no positive number
    OSError: the results folder takes no more
    """
    if not 0 < tolerance < math.inf:
        raise ValueError(f"--tolerance {tolerance:g}: must be a number above 0, such as {TOLERANCE:g}")
    study = load_study(path)
    kept = results is not None
    if results is not None and _holds_runs(results):
        raise ValueError(f"{results} holds runs already: verify what is there now into a new folder")
    folder = results or Path(tempfile.mkdtemp(prefix="scalade-verify-"))
    try:
        checks = checks_of(study)
        skipped, runnable = prepare(study, checks)
        refuse_here(path, study.run.device, [check.case for check in checks])
        summary = _sweep(runnable, folder, quiet, command)
        verdicts = judge_all(checks, skipped, folder, tolerance)
        kept = kept or any(verdict.verdict is Kind.FAIL for verdict in verdicts)
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
    done = Verification(study, tolerance, verdicts, folder if kept else None, summary.interrupted)
    return done, summary.exit_code if summary.interrupted else int(not done.passed)


def _holds_runs(folder: Path) -> bool:
    return any(any(os.scandir(folder / name)) for name in ("runs", "table") if (folder / name).is_dir())


def checks_of(study: Study) -> list[Check]:
    """One for each distinct model, data, recipe and layout of the study, with one seed."""
    seeds: dict[tuple, int] = {}
    checks: dict[str, Check] = {}
    made, same = Shortened(), dict[object, object]()
    for case in map(made.case, study.all_cases):
        parts = case.shape, case.data, case.layout, case.outer
        key = (*(id(same.setdefault(part, part)) for part in parts), BUT_SEED(case.recipe))
        if seeds.setdefault(key, case.recipe.seed) == case.recipe.seed and case.case_id not in checks:
            checks[case.case_id] = Check(case, made.reference(case))
    return list(checks.values())


class Shortened:
    """Cases as they are verified, with their references; they share their parts as those of a study do."""

    def __init__(self) -> None:
        self._recipe, self._outer, self._alone = cache(_recipe), cache(_outer), cache(_alone)

    def case(self, case: Case) -> Case:
        """The case with few steps, fp32, and nothing measured but the steps themselves."""
        outer = self._outer(case.outer, case.layout)
        return Case(case.shape, case.data, self._recipe(case.recipe), case.layout, outer, MEASURE, case.model_name)

    def reference(self, case: Case) -> Case:
        """The same training in one process."""
        outer, borders = self._alone(case.outer, case.layout)
        return replace(case, layout=ALONE, outer=outer, borders=borders)


def _recipe(recipe: Recipe) -> Recipe:
    return replace(recipe, steps=STEPS, precision="fp32", warmup_steps=min(WARMUP_STEPS, recipe.warmup_steps))


def _outer(outer: Outer, layout: Layout) -> Outer:
    if outer.algorithm == "none":
        return outer
    assert outer.sync_every is not None  # only `none` has no period
    sync_every = min(SYNC_EVERY, outer.sync_every)
    overlap = None if outer.overlap_steps is None else min(outer.overlap_steps, sync_every - 1)
    # With a quorum a run reports one replica's losses: what is verified are the same replicas without.
    outer = replace(outer, sync_every=sync_every, overlap_steps=overlap, quorum=None, quorum_timeout_s=None)
    return replace(outer, compression="bf16") if outer.block_size and not cuts_known(layout) else outer


def _alone(outer: Outer, layout: Layout) -> tuple[Outer, Layout | None]:
    """(outer step with all replicas in one process, layout whose cuts that process makes)."""
    if outer.algorithm != "none":
        outer = replace(outer, placement="folded", offload=False)
    return outer, layout.cuts if outer.block_size and layout.cuts.ranks > 1 else None


def cuts_known(layout: Layout) -> bool:
    """Whether a layout's ranks hold the parts of each parameter that parallelism.diloco.borders makes."""
    return layout.engine == "torch" or (layout.engine == "deepspeed" and layout.dp_shard == 1)


def prepare(study: Study, checks: Sequence[Check]) -> tuple[dict[str, str], Study]:
    """(case_id -> why it cannot be verified here, a study of the runs that the others need, references first)."""
    local = replace(study, run=replace(study.run, launcher="local", repeats=1))

    def planned(checks: Iterable[Check]) -> Study:
        cases = chain.from_iterable((check.reference, check.case) for check in checks)
        return replace(local, all_cases=tuple({case.case_id: case for case in cases}.values()))

    why = {plan.case.case_id: plan.skip_reason for plan in planned(checks).cases()}
    skipped = {}
    for check in checks:
        if reason := why[check.case.case_id]:
            skipped[check.case.case_id] = reason
        elif reason := why[check.reference.case_id]:
            skipped[check.case.case_id] = f"one process cannot be the reference (verify a smaller size): {reason}"
    return skipped, planned(check for check in checks if check.case.case_id not in skipped)


def _sweep(study: Study, folder: Path, quiet: bool, command: Sequence[str]) -> Summary:
    store = RunStore(folder)
    with Signals() as signals:
        executor = LocalExecutor(signals, command)
        try:
            return Sweep(study, store, executor, make_display(quiet), signals).run(make_plan(study, store))
        finally:
            executor.close()


def judge_all(
    checks: Sequence[Check], skipped: Mapping[str, str], folder: Path, tolerance: float
) -> tuple[Verdict, ...]:
    """The verdicts, from the rows and steps in a results folder."""
    store, steps = RunStore(folder), _steps_in(folder)

    def ran(case: Case) -> tuple[str | None, str | None]:
        row = store.row(PlannedRun(case, 0).run_id) or {}
        return row.get("status"), row.get("reason")

    def judged(check: Check) -> Verdict:
        case, reference = check.case, check.reference
        if reason := skipped.get(case.case_id):
            return Verdict(check, Kind.SKIPPED, reason)
        for one, what in ((case, ""), (reference, "its reference, one process: ")):
            status, reason = ran(one)
            if status in (None, "cancelled"):
                return Verdict(check, Kind.NOT_RUN, f"{what}{reason or 'not started'}")
            if status != "ok":
                return Verdict(check, Kind.FAIL, f"{what}{status}: {reason}")
        if case.case_id == reference.case_id:
            return Verdict(check, Kind.REFERENCE)
        allowed = tolerance + allowance(case.outer)
        return compared(check, steps.get(reference.case_id, {}), steps.get(case.case_id, {}), allowed)

    return tuple(judged(check) for check in checks)


def compared(check: Check, reference: Series, steps: Series, tolerance: float) -> Verdict:
    """The verdict on a layout that ran, from the steps of its reference and its own."""
    worst: dict[str, float] = {}
    first: dict[str, int | None] = {}  # step that differs
    for column, name in COMPARED.items():
        there, here = reference.get(column, ()), steps.get(column, ())
        if not len(there) == len(here) == STEPS:
            return Verdict(check, Kind.FAIL, f"the {name} is known of {len(here)} of {STEPS} steps, {len(there)} there")
        off = [difference(a, b) for a, b in zip(there, here, strict=True)]
        worst[column] = max(off)
        first[column] = next((step for step in range(STEPS) if off[step] > tolerance), None)
    parts = [
        f"{COMPARED[column]} {steps[column][at]:.6g} instead of {reference[column][at]:.6g} at step {at}"
        for column, at in first.items()
        if at is not None
    ]
    if not parts:
        return Verdict(check, Kind.PASS, None, worst["loss"], worst["grad_norm"])
    reason = f"{'; '.join(parts)}: {_what_differs(first['loss'], first['grad_norm'])}"
    return Verdict(check, Kind.FAIL, reason, worst["loss"], worst["grad_norm"])


def difference(reference: float | None, value: float | None) -> float:
    """|value - reference| / |reference|; infinite where one of them is missing or not finite."""
    if reference is None or value is None or not (math.isfinite(reference) and math.isfinite(value)):
        return math.inf
    if reference == 0:
        return 0.0 if value == 0 else math.inf
    return abs(value - reference) / abs(reference)


def _what_differs(loss: int | None, grad_norm: int | None) -> str:
    """Where to look, given the first step at which each leaves the reference."""
    if loss == 0:
        return "the first forward pass differs already"
    if grad_norm == 0:
        return "the first loss agrees, its gradient does not"
    return "the first loss and gradient agree: look at the update, or at a recipe so unstable that rounding grows"


def _steps_in(folder: Path) -> dict[str, dict[str, list[float]]]:
    """case_id -> the compared columns, by step."""
    from ...results.table.read import rows_table

    table = rows_table(folder, "steps").sort_by([("run_id", "ascending"), ("step", "ascending")])
    series: dict[str, dict[str, list[float]]] = {}
    for run_id, *values in zip(*(table[name].to_pylist() for name in ("run_id", *COMPARED)), strict=True):
        for column, value in zip(COMPARED, values, strict=True):
            series.setdefault(run_id.rpartition("-r")[0], {}).setdefault(column, []).append(value)
    return series
