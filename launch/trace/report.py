"""`scalade predict STUDY --trace`: the model's messages and memory beside those of the traced engine, case by case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...parallelism.predict.memory import memory_of_case
from ...parallelism.predict.messages import step_messages
from ...results.terminal import Cell, print_grid, say
from ...results.wording import count_of
from ..study.case import Case
from ..study.study import load_study

if TYPE_CHECKING:
    from rich.console import Console

    from .trace import RankTrace

EXACT = 1e-9  # relative difference of bytes and calls, which are the same numbers
MEMORY = 0.25  # of peak memory, of which the model leaves out what lives for an instant


@dataclass(frozen=True)
class Comparison:
    """One quantity of one rank of a case. what: `<dimension> bytes`, `<dimension> calls`, `peak memory`; rank: None of
    the rank that needs most."""

    rank: int | None
    what: str
    predicted: float
    traced: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        return abs(self.predicted - self.traced) <= self.tolerance * max(self.traced, 1.0)

    @property
    def ratio(self) -> float | None:
        return self.predicted / self.traced if self.traced else None


@dataclass(frozen=True)
class CaseTrace:
    """reason: why the case could not be traced, or None."""

    case: Case
    comparisons: tuple[Comparison, ...] = ()
    reason: str | None = None

    @property
    def agrees(self) -> bool:
        return all(each.agrees for each in self.comparisons)


def trace_study(path: Path) -> Iterator[CaseTrace]:
    """The cases of a study that could run somewhere, one after the other.

    Raises
    ------
    ValueError: the study is wrong
    """
    for each in load_study(path).cases_elsewhere():
        yield trace_case(each.case)


def trace_case(case: Case) -> CaseTrace:
    """The model held against the engine, on the ranks of `ranks_to_trace`."""
    from .trace import ranks_to_trace, trace_rank, untraceable

    reason = case.refusal() or untraceable(case)
    if reason:
        return CaseTrace(case, reason=reason)
    traces = [trace_rank(case, rank) for rank in ranks_to_trace(case)]
    found = [each for trace in traces for each in _messages(case, trace)]
    peak = max(trace.peak_bytes for trace in traces)
    found.append(Comparison(None, "peak memory", _memory(case), peak, MEMORY))
    return CaseTrace(case, tuple(found))


def _messages(case: Case, trace: RankTrace) -> Iterator[Comparison]:
    model = step_messages(case.shape, case.recipe, case.layout, case.outer, trace.pp_rank).totals()["dim"]
    traced = trace.sums["dim"]
    nothing = {"bytes": 0.0, "calls": 0.0}
    ddp = case.layout.dp_replicate > 1 and not case.layout.sharded
    for name in sorted({*model, *traced}):
        for unit in nothing:
            if ddp and name == "dp_replicate" and unit == "calls":
                continue  # DDP cuts its buckets by values, which a trace has none of
            pair = (model.get(name, nothing)[unit], traced.get(name, nothing)[unit])
            yield Comparison(trace.rank, f"{name} {unit}", *pair, EXACT)


def _memory(case: Case) -> float:
    """What tensors hold on the rank that needs most: a trace has no allocator and no library, and a CPU's kernels."""
    return float(memory_of_case(case.shape, case.recipe, case.layout, case.outer, fused_norm=False).allocated)


def to_dict(traces: Sequence[CaseTrace]) -> dict[str, Any]:
    return {
        "agrees": all(each.agrees for each in traces),
        "cases": [
            {"case_id": each.case.case_id, "model": each.case.model_name, "layout": each.case.layout_name}
            | {"ranks": each.case.ranks, "reason": each.reason, "agrees": each.agrees}
            | {"compared": [asdict(c) | {"ratio": c.ratio, "agrees": c.agrees} for c in each.comparisons]}
            for each in traces
        ],
    }


def print_traces(traces: Sequence[CaseTrace], console: Console) -> None:
    """All that was compared, what disagrees marked; then the cases that could not be traced."""
    rows = [_line(each.case, compared) for each in traces for compared in each.comparisons]
    if rows:
        print_grid(console, ("model", "layout", ">ranks", ">rank", "what", ">predicted", ">traced", ">ratio"), rows)
    for each in traces:
        if each.reason:
            say(console, f"not traced: {each.case.model_name} {each.case.layout_name}: {each.reason}")
    traced = [each for each in traces if not each.reason]
    wrong = sum(not each.agrees for each in traced)
    verdict = f"the model disagrees with the engine in {wrong}" if wrong else "the model agrees with the engine"
    say(console, f"{count_of(len(traced), 'case')} traced; {verdict} (bytes and calls: exact, memory: {MEMORY:.0%})")


def _line(case: Case, each: Comparison) -> list[str | Cell]:
    ratio = "-" if each.ratio is None else f"{each.ratio:.3f}"
    rank = "worst" if each.rank is None else str(each.rank)
    numbers = f"{each.predicted:,.0f}", f"{each.traced:,.0f}"
    style = "" if each.agrees else "red"
    return [
        case.model_name,
        case.layout_name,
        str(case.ranks),
        rank,
        each.what,
        *numbers,
        Cell(ratio if each.agrees else f"{ratio} (!)", style),
    ]
