"""What a budget buys, as lines for a person and as JSON for a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ...results.terminal import aligned
from ...results.wording import count_of
from .budget import Market, Purchase, flop_optimal, smaller_batch
from .report import shares

FAR = 1.0  # times outside of the law's table, beyond which a line says so


def choose(found: Sequence[Purchase]) -> Purchase:
    """The lowest loss."""
    return min(found, key=lambda each: each.loss)


def to_dict(market: Market, found: Sequence[Purchase], refused: Mapping[str, str]) -> dict[str, Any]:
    best = choose(found)
    by_flops = flop_optimal(market, best, found)
    return {
        "budget": market.budget.amount,
        "unit": market.budget.unit,
        "machine": market.machine.name,
        "devices": market.devices,
        "law": {"name": market.law.law.name, "unit": market.law.unit, "file": str(market.law.path)},
        "best": _purchase(smaller_batch(market, best)),
        "flop_optimal": None if by_flops is None else _purchase(by_flops),
        "purchases": [_purchase(each) for each in sorted(found, key=lambda each: each.loss)],
        "refused": dict(refused),
    }


def _purchase(each: Purchase) -> dict[str, Any]:
    return {
        "model": each.name,
        "shape": asdict(each.shape),
        "params": each.shape.params_total,
        "tokens": each.tokens,
        "tokens_per_param": each.tokens / each.shape.params_total,
        "flops_6nd": 6.0 * each.shape.params_total * each.tokens,
        "how": each.how,
        "layout": each.candidate.layout.name(),
        "devices": each.devices,
        "global_batch": each.global_batch,
        "steps": each.steps,
        "step_time_s": each.step_time_s,
        "step_time_low_s": each.candidate.low_s,
        "step_time_high_s": each.candidate.high_s,
        "days": each.days,
        "loss": each.loss,
        "loss_low": each.low,
        "loss_high": each.high,
        "outside_of_law": each.beyond,
        "mfu_causal": _busy(each),
        "why": shares(each.candidate),
    }


def to_text(market: Market, found: Sequence[Purchase], refused: Mapping[str, str]) -> list[str]:
    best = choose(found)
    smaller = smaller_batch(market, best)
    lines = [
        f"{market.budget.amount:,g} {market.budget.unit} on {count_of(market.devices, 'device')} of "
        f"{market.machine.name}; law {market.law.law.name} of {market.law.path.name}, loss in {market.law.unit}",
        "",
        *_table(found, best),
        "",
        f"best: {_told(best)}",
        f"smallest batch within 2% of its speed: {smaller.global_batch:,} sequences "
        f"({smaller.candidate.layout.name()}), loss {smaller.loss:.4f}; the law does not know what a batch costs",
        *_flops(market, best, found),
    ]
    far = {role: times for role, times in best.beyond.items() if times > FAR}
    if far:
        said = ", ".join(f"{role} {times:.3g} times" for role, times in far.items())
        lines.append(f"outside of what the law was fitted on: {said}; its interval does not hold its form")
    if not len(market.law.resamples):
        lines.append("the law's file has no resamples: the interval is of the speed alone (scalade fit --bootstrap)")
    return lines + [f"not possible: {name}: {reason}" for name, reason in refused.items()]


def _table(found: Sequence[Purchase], best: Purchase) -> list[str]:
    rows = [["model", "N", "D", "D/N", "how", "layout", "batch", "days", "MFU", "loss", "90 %", ""]]
    for each in found:
        rows.append(
            [
                each.name,
                f"{each.shape.params_total:.3g}",
                f"{each.tokens:.3g}",
                f"{each.tokens / each.shape.params_total:.3g}",
                each.how,
                each.candidate.layout.name(),
                f"{each.global_batch:,}",
                f"{each.days:.3g}",
                f"{_busy(each):.1%}",
                f"{each.loss:.4f}",
                f"{each.low:.4f} to {each.high:.4f}",
                "<- best" if each is best else "",
            ]
        )
    return aligned(rows, left=(0, 4, 5, 11))


def _told(each: Purchase) -> str:
    return (
        f"{each.name}, N = {each.shape.params_total:.4g}, D = {each.tokens:.4g}, {each.how}, "
        f"{each.candidate.layout.name()}, {each.global_batch:,} sequences a step: "
        f"loss {each.loss:.4f} ({each.low:.4f} to {each.high:.4f})"
    )


def _flops(market: Market, best: Purchase, found: Sequence[Purchase]) -> list[str]:
    other = flop_optimal(market, best, found)
    if other is None or other.name == best.name:
        return ["the law alone takes the same model at the FLOPs that this spends"]
    return [
        f"at the FLOPs that this spends the law alone takes {other.name} (N = {other.shape.params_total:.4g}): within "
        f"the budget that one reaches {other.loss:.4f}, {other.loss - best.loss:+.4f}, for it runs at "
        f"{_busy(other):.1%} MFU, not {_busy(best):.1%}"
    ]


def _busy(each: Purchase) -> float:
    """MFU (causal), what crosses between sites counted in its time."""
    return each.mfu_alone * each.candidate.step_time_s / each.step_time_s
