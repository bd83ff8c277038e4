"""What `scalade verify` says: one line for each layout, then why some failed, were skipped or did not run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from ...parallelism.diloco.config import allowance
from ...results.terminal import Cell, print_grid, say
from .command import STEPS, SYNC_EVERY, WARMUP_STEPS, Check, Kind, Shortened, Verdict, Verification, cuts_known

if TYPE_CHECKING:
    from rich.console import Console

    from ..study.case import Case
    from ..study.study import Study

STYLES = {Kind.PASS: "green", Kind.FAIL: "bold red", Kind.SKIPPED: "yellow", Kind.NOT_RUN: "yellow"}
WORDS = {
    Kind.PASS: "passed",
    Kind.FAIL: "failed",
    Kind.REFERENCE: "the reference itself",
    Kind.SKIPPED: "skipped",
    Kind.NOT_RUN: "not run",
}


def print_verification(done: Verification, console: Console) -> None:
    names = labels([verdict.check for verdict in done.verdicts])
    what = f"{STEPS} steps in fp32 against one process, relative tolerance {done.tolerance:g}"
    say(console, f"{done.study.name}: {what}")
    for note in notes(done.study):
        say(console, f"({note})")
    say(console, "")
    named = list(zip(done.verdicts, names, strict=True))
    headers = ("model", "layout", ">ranks", "verdict", ">loss", ">gradient norm")
    print_grid(console, headers, [_line(verdict, *name) for verdict, name in named])
    for kind, (verdict, name) in product((Kind.FAIL, Kind.NOT_RUN, Kind.SKIPPED), named):
        if verdict.verdict is kind and verdict.reason:
            say(console, f"{kind}: {' '.join(name)}: {verdict.reason}", style=STYLES[kind])
    counted = [f"{done.counts[kind]} {WORDS[kind]}" for kind in Kind if done.counts[kind]]
    say(console, f"\n{', '.join(counted)}")
    _print_end(done, console)


def _print_end(done: Verification, console: Console) -> None:
    if done.interrupted:
        say(console, f"ended early: {done.interrupted}")
    elif not done.passed and not done.counts[Kind.FAIL]:
        say(console, "no layout could be verified here")
    if done.results:
        say(console, f"the runs: {done.results}")


def _line(verdict: Verdict, model: str, layout: str) -> list[str | Cell]:
    differences = [_difference(value) for value in (verdict.loss, verdict.grad_norm)]
    judged = Cell(verdict.verdict, STYLES.get(verdict.verdict, ""))
    return [model, layout, str(verdict.check.case.ranks), judged, *differences]


def _difference(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"


def to_dict(done: Verification) -> dict[str, object]:
    """The verification for programs; a difference that is not finite is null, its reason says why."""
    layouts = []
    names = labels([verdict.check for verdict in done.verdicts])
    for verdict, (model, layout) in zip(done.verdicts, names, strict=True):
        case = verdict.check.case
        layouts.append(
            {
                "model": model,
                "layout": layout,
                "ranks": case.ranks,
                "verdict": verdict.verdict,
                "reason": verdict.reason,
                "loss_difference": _finite(verdict.loss),
                "grad_norm_difference": _finite(verdict.grad_norm),
                "case_id": case.case_id,
                "reference_case_id": verdict.check.reference.case_id,
            }
        )
    return {
        "study": done.study.name,
        "passed": done.passed,
        "steps": STEPS,
        "tolerance": done.tolerance,
        "counts": {kind: done.counts[kind] for kind in Kind},
        "notes": notes(done.study),
        "interrupted": done.interrupted,
        "results": None if done.results is None else str(done.results),
        "layouts": layouts,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def notes(study: Study) -> list[str]:
    """What a person has to know of the difference between the study and what was verified."""
    notes_of = (_precision, _warmup, _period, _unknown_cuts, _codecs, _seeds)
    return [note for of_cases in notes_of if (note := of_cases(study.all_cases))]


def _precision(cases: Sequence[Case]) -> str | None:
    if all(case.recipe.precision == "fp32" for case in cases):
        return None
    return "the study's bf16 runs are verified in fp32, too: in bf16 a wrong layout hides in the rounding"


def _warmup(cases: Sequence[Case]) -> str | None:
    if all(case.recipe.warmup_steps <= WARMUP_STEPS for case in cases):
        return None
    return f"the learning rate warms up over {WARMUP_STEPS} steps here"


def _period(cases: Sequence[Case]) -> str | None:
    if all((case.outer.sync_every or 0) <= SYNC_EVERY for case in cases):
        return None
    return f"replicas synchronise every {SYNC_EVERY} steps here"


def _unknown_cuts(cases: Sequence[Case]) -> str | None:
    if all(cuts_known(case.layout) for case in cases if case.outer.block_size):
        return None
    return "DeepSpeed's ZeRO and Megatron cut parameters where only they know: their messages are bf16 here"


def _codecs(cases: Sequence[Case]) -> str | None:
    allowances = sorted({(case.outer.compression, allowance(case.outer)) for case in map(Shortened().case, cases)})
    larger = ", ".join(f"{kind} {share:g}" for kind, share in allowances if share)
    if not larger:
        return None
    return f"a last bit may decide between two codes of a message: the tolerance is larger by {larger}"


def _seeds(cases: Sequence[Case]) -> str | None:
    return "one seed of each case" if len({case.recipe.seed for case in cases}) > 1 else None


def labels(checks: list[Check]) -> list[tuple[str, str]]:
    """(model, layout) of each as a person tells them apart: where two have one name, what differs is added."""
    alike = defaultdict(list)
    for check in checks:
        alike[_name(check.case)].append(check.case.columns())
    named = []
    for check in checks:
        model, layout = name = _name(check.case)
        mine = check.case.columns()
        differs = [key for key in mine if key != "case_id" and len({str(row[key]) for row in alike[name]}) > 1]
        named.append((model, " ".join([layout, *(f"{key}={mine[key]}" for key in differs if mine[key] is not None)])))
    return named


def _name(case: Case) -> tuple[str, str]:
    return case.model_name, case.layout_name
