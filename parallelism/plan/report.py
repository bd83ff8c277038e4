"""What a plan found, as lines for a person and as JSON for a program: the best and why, the front, the refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ...bench.flops import flops_per_token
from ...results.terminal import aligned
from ...results.wording import count_of
from .question import Question
from .search import Candidate, Plan
from .space import LEFT_OUT

LABELS = {
    "compute_time_s": "compute",
    "bubble_time_s": "bubble",
    "comm_tp_s": "tp",
    "comm_cp_s": "cp",
    "comm_pp_s": "pp messages",
    "comm_dp_s": "dp",
    "optimizer_time_s": "optimizer",
    "outer_exposed_s": "outer step",
    "data_time_s": "data",
}
MOST_REASONS = 8  # that are printed
LEAST_SHARE = 0.02  # of a step that is worth a word


def to_dict(plan: Plan) -> dict[str, Any]:
    question = plan.question
    return {
        "model": question.name,
        "shape": asdict(question.shape),
        "devices": question.devices,
        "machine": question.machine.name,
        "engine": question.engine,
        "stack": question.model_stack.name,
        "precision": question.precision,
        "global_batch": question.global_batch,
        "seq_len": question.shape.seq_len,
        "layouts": {
            "looked_at": plan.looked_at,
            "refused": plan.refusals.total,
            "too_big": plan.too_big,
            "outside_of_calibration": plan.outside,
            "ranked": plan.fitting,
            "timed": plan.timed,
            "left_out": LEFT_OUT,
        },
        "seconds": plan.seconds,
        "refused": [{"reason": reason, "layouts": count} for reason, count in plan.refusals.counts()],
        "best": [_candidate(each, plan) for each in plan.best],
        "front": [_candidate(each, plan) for each in plan.front],
    }


def _candidate(each: Candidate, plan: Plan) -> dict[str, Any]:
    question = plan.question
    return {
        "layout": each.layout.name(),
        "settings": asdict(each.layout),
        "step_time_s": each.step_time_s,
        "step_time_low_s": each.low_s,
        "step_time_high_s": each.high_s,
        "parts": each.parts,
        "bound_time_s": each.bound_time_s,
        "memory_bytes": each.memory_bytes,
        "tokens_per_s": question.tokens / each.step_time_s,
        "mfu_causal": mfu(question, each.step_time_s),
        "why": shares(each),
        "behind_best": behind(each, plan.best[0]),
        "constant_mfu_step_time_s": each.constant_mfu_s,
        "smallest_scale_step_time_s": each.smallest_scale_s,
    }


def mfu(question: Question, step_time_s: float) -> float:
    """Model FLOPs utilisation, causal convention."""
    flops = flops_per_token(question.shape)["causal"] * question.tokens
    return flops / (step_time_s * question.machine.peak(question.precision) * question.devices)


def shares(each: Candidate) -> str:
    """What bounds a layout: the parts of its step by size, `compute 78%, bubble 12%, tp 6%`."""
    parts = sorted(each.parts.items(), key=lambda part: -part[1])
    said = [f"{LABELS[name]} {seconds / each.step_time_s:.0%}" for name, seconds in parts]
    large = sum(seconds / each.step_time_s >= LEAST_SHARE for _, seconds in parts)
    return ", ".join(said[: max(1, min(4, large))])


def behind(each: Candidate, best: Candidate) -> str:
    """By which parts a layout is slower than the best, and faster; empty for the best."""
    least = LEAST_SHARE / 4 * best.step_time_s
    more = {name: each.parts[name] - best.parts[name] for name in each.parts}
    told = sorted((item for item in more.items() if abs(item[1]) >= least), key=lambda item: -abs(item[1]))
    return ", ".join(f"{LABELS[name]} {seconds:+.3g} s" for name, seconds in told[:3])


def to_text(plan: Plan) -> list[str]:
    question = plan.question
    lines = [
        f"{question.name or 'model'}: {question.shape.params_total / 1e9:.4g}B parameters on "
        f"{count_of(question.devices, 'device')} of {question.machine.name} ({question.engine}, {question.precision}); "
        f"{count_of(question.global_batch, 'sequence')} of {question.shape.seq_len:,} tokens a step",
        f"{plan.looked_at:,} layouts in {plan.seconds:.1f} s: {plan.refusals.total:,} refused, "
        f"{plan.too_big:,} over {question.machine.memory_bytes / 1e9:.1f} GB, {plan.fitting:,} ranked "
        f"({plan.timed:,} timed: the lower bound of the others is beaten)",
        "",
        f"the best {len(plan.best)}; of those that differ in schedule, stages a rank or sharding alone, the fastest",
    ]
    lines += _table(plan, plan.best)
    lines += ["", "time against memory: nothing else is better in both", *_table(plan, plan.front)]
    lines += _refused(plan)
    lines += _notes(plan)
    return lines


def _table(plan: Plan, candidates: Sequence[Candidate]) -> list[str]:
    head = ["", "layout", "step s", "90 %", "bound s", "tokens/s", "MFU", "GB", "const. MFU s", "smallest s"]
    rows = [[*head, "time goes to", "against the best"]]
    for place, each in enumerate(candidates, 1):
        rate = plan.question.tokens / each.step_time_s
        rows.append(
            [
                str(place),
                each.layout.name(),
                f"{each.step_time_s:.4g}",
                _interval(each),
                f"{each.bound_time_s:.3g}",
                f"{rate:,.0f}",
                f"{mfu(plan.question, each.step_time_s):.1%}",
                f"{each.memory_bytes / 1e9:.3g}",
                "-" if each.constant_mfu_s is None else f"{each.constant_mfu_s:.4g}",
                f"{each.smallest_scale_s:.4g}",
                shares(each),
                behind(each, plan.best[0]) or "-",
            ]
        )
    return aligned(rows, left=(1, 10, 11))


def _interval(each: Candidate) -> str:
    return f"{each.low_s:.3g} to {each.high_s:.3g}"


def _refused(plan: Plan) -> list[str]:
    counts = plan.refusals.counts()
    if not counts:
        return []
    lines = [
        "",
        f"refused ({plan.refusals.splits:,} of them splits with all their settings), one layout's reason for all",
    ]
    lines += aligned([[f"{count:,}", reason] for reason, count in counts[:MOST_REASONS]], left=(1,))
    more = sum(count for _, count in counts[MOST_REASONS:])
    return lines + ([f"{more:,} for {len(counts) - MOST_REASONS} other reasons"] if more else [])


def _notes(plan: Plan) -> list[str]:
    lines = ["", f"not searched: {LEFT_OUT}"]
    if plan.outside:
        lines.append(f"{plan.outside:,} outside of what the calibration covers: {plan.outside_reason}")
    lines.append("naive, to be compared with step: constant MFU, and what the layout takes without data parallelism")
    return lines
