"""What `scalade predict TABLE` prints: figures beside both naive predictions, and what was left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from ....results.wording import count_of
from .judge import Figures, Verdict
from .metrics import TimeFigures

NAMED = 8  # rows that are named for each reason
COLUMNS = ("n", "MAPE", "median", "bias", "pairs", "order", "groups", "regret", "worst", "in 90%")


def to_dict(verdict: Verdict) -> dict[str, Any]:
    """Everything, with a record for each judged row; shares, seconds and bytes, null where there is none."""
    table = verdict.split.table
    return {
        "table": str(table.path),
        "map": table.map.name,
        "rows": len(table.frame),
        "left_out": [{"row": row, "reason": reason} for row, reason in sorted(table.refused.items())],
        "assumed": _assumed(verdict),
        "calibrated": [
            {"machine": pair[0], "stack": pair[1], "rows": n, "how": calibration.how}
            for pair, (n, calibration) in verdict.calibrations.items()
        ],
        "calibration_rows": [run.row for run in verdict.split.calibration],
        "judged": len(verdict.split.judged),
        "figures": asdict(verdict.figures),
        "by": {name: asdict(each) for name, each in verdict.parts.items()},
        "predictions": list(_records(verdict)),
    }


def _records(verdict: Verdict) -> Iterator[dict[str, Any]]:
    p = verdict.predicted
    for i, run in enumerate(verdict.split.judged):
        yield {
            "row": run.row,
            "model": run.model,
            "machine": run.machine,
            "stack": run.stack,
            "gpus": run.gpus,
            "status": run.status,
            "step_time_s": _known(run.step_time_s),
            "predicted_step_time_s": _known(p.step_time_s[i]),
            "predicted_step_time_low_s": _known(p.low_s[i]),
            "predicted_step_time_high_s": _known(p.high_s[i]),
            "refused": p.refused[i],
            "constant_mfu_step_time_s": _known(p.constant_mfu_s[i]),
            "smallest_scale_step_time_s": _known(p.smallest_scale_s[i]),
            "memory_bytes": _known(run.memory_bytes),
            "predicted_memory_bytes": _known(p.memory_bytes[i]),
            "predicted_not_to_fit": bool(p.over[i]),
            "assumed": list(run.assumed),
            "approximated": run.active or None,
        }


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _assumed(verdict: Verdict) -> dict[str, int]:
    runs = (*verdict.split.calibration, *verdict.split.judged)
    said = Counter(each for run in runs for each in run.assumed)
    said.update(f"mixture of experts by its active parameters: {run.active}" for run in runs if run.active)
    return dict(said.most_common())


def to_text(verdict: Verdict) -> Iterator[str]:
    table, judged = verdict.split.table, verdict.split.judged
    yield f"{table.path.name} by map {table.map.name}: {len(table.runs)} of {count_of(len(table.frame), 'row')} usable"
    for reason, n in table.reasons().items():
        rows = [row for row, said in table.refused.items() if said == reason]
        named = ", ".join(map(str, rows[:NAMED])) + (", ..." if n > NAMED else "")
        yield f"  {count_of(n, 'row')} left out: {reason} (row {named})"
    for said, n in _assumed(verdict).items():
        yield f"  {count_of(n, 'row')} with {said}"
    yield from _calibrated(verdict)
    refused = Counter(each for each in verdict.predicted.refused if each)
    yield f"judged on {count_of(len(judged), 'row')}, {sum(refused.values())} of them refused"
    for said, n in refused.most_common(NAMED):
        yield f"  {count_of(n, 'row')} refused: {said}"
    yield ""
    yield from _grid("", verdict.figures)
    for name, figures in verdict.parts.items():
        yield from _grid(name, figures)
    yield ""
    yield "errors relative to what was measured; pairs: of one group whose times differ, each of the same weight;"
    yield f"regret: of the layout chosen in each group ({', '.join(table.map.compete) or 'all rows'}); rows from 0"


def _calibrated(verdict: Verdict) -> Iterator[str]:
    if not verdict.calibrations:
        yield "not calibrated: the profiles' own numbers; without a calibration there is no naive prediction either"
    for (machine, stack), (n, calibration) in verdict.calibrations.items():
        yield f"calibrated on {count_of(n, 'row')} of {machine} under {stack}: {calibration.how}"


def _grid(name: str, figures: Figures) -> Iterator[str]:
    if figures.model.n:
        yield f"{name:22}"[:22] + "".join(f"{each:>8}" for each in COLUMNS)
        yield _line("model", figures.model)
        yield _line("constant MFU", figures.constant_mfu)
        yield _line("as at smallest scale", figures.smallest_scale)
    memory = figures.memory
    if memory.n or memory.failures:
        yield (
            f"{'memory':22}{memory.n:8}{_percent(memory.mape)}{'':8}{_percent(memory.bias)}   "
            f"out of memory: {memory.failures} failed, flagged {_percent(memory.flagged).strip()}; "
            f"{memory.good} good, flagged {_percent(memory.false).strip()}"
        )


def _line(name: str, f: TimeFigures) -> str:
    errors = "".join(map(_percent, (f.mape, f.median, f.bias)))
    regret = "".join(map(_percent, (f.regret_mean, f.regret_max)))
    return f"{name:22}{f.n:8}{errors}{f.pairs:8}{_percent(f.order)}{f.groups:8}{regret}{_percent(f.coverage)}"


def _percent(share: float | None) -> str:
    return f"{'-' if share is None else f'{100 * share:.2f}%':>8}"
