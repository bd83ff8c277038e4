"""What `scalade efficiency` says: a dictionary for programs, lines of text for people."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median as middle

from ..aligned import aligned, listed
from ..published import Against, against
from ..stats.rank_intervals import Estimate
from ..wording import count_of
from .fastest import Fastest, tokens_text
from .series import Options, Point, Refusal, Series
from .system_laws import Fitted, LawFit
from .workload import Group, varying

PARTS = ("compute", "exposed comm", "bubble", "data", "optimizer", "outer", "residual")
OF_BUBBLE = ("of f+b", "by formula")
SERIES, LINES = 20, 60
MORE = "--json has all, --filter keeps a part"


@dataclass(frozen=True)
class Compared:
    """One group beside the published rows."""

    group: Group
    against: tuple[Against, ...]


def compared(found: Sequence[Group], convention: str) -> tuple[Compared, ...]:
    """Each group's median measurement beside every published row."""
    result = []
    for group in found:
        told = [row[convention] for row in group.rows if row.get(convention) is not None]
        ours = ChainMap({convention: middle(told) if len(told) == len(group.rows) else None}, group.rows[0])
        result.append(Compared(group, tuple(against(ours, convention))))
    return tuple(result)


@dataclass(frozen=True)
class EfficiencyReport:
    """Series of efficiencies, refusals, notes, and the published rows where asked."""

    path: str
    options: Options
    series: tuple[Series, ...]
    refused: tuple[Refusal, ...]
    notes: tuple[str, ...]
    published: tuple[Compared, ...] = ()
    fastest: tuple[Fastest, ...] = ()  # of workloads with more than one layout

    @property
    def exit_code(self) -> int:
        """1 where nothing could be compared."""
        return 0 if any(len(one.points) > 1 for one in self.series) else 1

    def to_dict(self) -> dict:
        options = self.options
        return {
            "path": self.path,
            "mode": options.mode,
            "form": options.form,
            "target_loss": options.target_loss,
            "level": options.level,
            "interval": "Hodges-Lehmann ratio, exact Mann-Whitney, over runs",
            "series": [one.to_dict() for one in self.series],
            "refused": [one.to_dict() for one in self.refused],
            "notes": list(self.notes),
            "fastest": [one.to_dict() for one in self.fastest],
            "published": [
                {"layout": one.group.label, "devices": one.group.devices, **each.to_dict()}
                for one in self.published
                for each in one.against
            ],
        }

    def to_text(self) -> str:
        options = self.options
        goal = f", time to loss {options.target_loss:g}" if options.form == "loss" else f", {options.form}"
        lines = [
            f"{options.mode} scaling{goal}; intervals {options.level:.0%} over runs (exact, rank-based), "
            "[least .. most] where runs are too few"
        ]
        told = varying([one.base.group for one in self.series])
        shown = _largest(self.series)
        for one in shown:
            lines += ["", *_series_lines(one, options, told)]
        if len(shown) < len(self.series):
            lines += ["", f"{len(shown)} of {len(self.series)} series are shown, those of most layouts: {MORE}"]
        if self.fastest:
            lines += ["", "fastest layout of each workload"]
            lines += _few([f"  {one.line(_work_name, options.level)}" for one in self.fastest[:LINES]], self.fastest)
        if self.published:
            lines += ["", *_published_lines(self.published)]
        if self.refused:
            lines += ["", "not compared"]
            said = [f"  {one.what} ({listed(one.run_ids)}): {one.why}" for one in self.refused[:LINES]]
            lines += _few(said, self.refused)
        return "\n".join(lines + ["", *self.notes] if self.notes else lines)


def _largest(series: Sequence[Series]) -> list[Series]:
    """SERIES of them, those of most points, in their order."""
    kept = sorted(range(len(series)), key=lambda at: -len(series[at].points))[:SERIES]
    return [series[at] for at in sorted(kept)]


def _few(lines: list[str], every: Sequence) -> list[str]:
    """The lines, and how many more there are."""
    return lines if len(lines) == len(every) else [*lines, f"  and {len(every) - len(lines)} more: {MORE}"]


def _work_name(group: Group) -> str:
    return f"{group['model'] or 'model unnamed'}, {tokens_text(group)}"


def _series_lines(series: Series, options: Options, varies: Sequence[str] = ()) -> list[str]:
    """varies: columns by which one series is told from another of the same name."""
    base = series.base.group
    absolute, unit = _absolute(series.base, options)
    settings = [f"{name} {_setting(base[name])}" for name in varies]
    lines = [
        ", ".join([series.engine or "engine unknown", series.family, base["model"] or "model unnamed", *settings]),
        f"  base: {base.where}{', ' + str(base['engine']) if base['engine'] != series.engine else ''}: "
        f"{_number(absolute.value)} {unit} {_interval(absolute)}, {count_of(absolute.runs, 'run')}",
    ]
    if len(series.points) == 1:
        return lines + ["  nothing to compare with it"]
    rows = [("ranks", "layout", "runs", unit, "", "ideal", "speedup", "efficiency", "")]
    for point in series.points:
        absolute, _ = _absolute(point, options)
        ideal = _ideal(series, point, options)
        cells = (
            str(point.group.devices),
            point.group.label,
            str(absolute.runs),
            _number(absolute.value),
            _interval(absolute),
            _number(ideal),
        )
        if point.is_base:
            rows.append((*cells, "1", "1", "base"))
        else:
            rows.append(
                (
                    *cells,
                    f"{point.speedup.value:.2f}",
                    f"{point.efficiency.value:.3f}",
                    _interval(point.efficiency, digits=3),
                )
            )
    lines += aligned(rows, left=(1,), indent="  ")
    few = [point.group.where for point in series.points if point.tokens_per_s.note]
    lines += [f"  too few runs (under 6) for an interval: {', '.join(few)}"] if few else []
    for point in series.points:
        lines += [f"  {point.group.where}: allowed to differ: {', '.join(point.allowed)}"] if point.allowed else []
        if point.group.work.varies or base.work.varies:
            mean = f"{point.group.work.over(1)} tokens a step on average"
            lines.append(f"  {point.group.where}: steps differ in tokens: {mean}")
        if point.group.not_ok:
            count = len(point.group.not_ok)
            lines.append(f"  {point.group.where}: {count} more run{'s are' if count > 1 else ' is'} not ok (below)")
    lines += _part_lines(series)
    for fit in series.laws:
        lines += ["  " + line for line in _law_lines(fit)]
    return lines


def _setting(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def _part_lines(series: Series) -> list[str]:
    rows = [("ranks", "layout", "step ms", *PARTS, *OF_BUBBLE)]
    for point in series.points:
        b = point.breakdown
        values = (b.compute_s, b.exposed_comm_s, b.bubble_s, b.data_s, b.optimizer_s, b.outer_s, b.residual_s)
        shares = [_percent(value, b.step_s) for value in values]
        shares[-1] += " !" if b.residual_flagged else ""
        shares[1] += f" ({_percent(b.exposed_comm_min_s, b.step_s)})" if b.exposed_comm_min_s else ""
        of_bubble = (_percent(b.bubble_share), _percent(b.bubble_share_theory))
        rows.append((str(point.group.devices), point.group.label, f"{b.step_s * 1e3:.1f}", *shares, *of_bubble))
    if all(cell == "-" for row in rows[1:] for cell in row[3:]):
        return ["  where the step went: no part of it was measured"]
    pipelined = any(row[-1] != "-" or row[-2] != "-" for row in rows[1:])
    rows = rows if pipelined else [row[: -len(OF_BUBBLE)] for row in rows]
    flagged = any(point.breakdown.residual_flagged for point in series.points)
    flag = ["  ! more than 5% of the step is in no part that was measured"] if flagged else []
    bubble = "  of f+b: the bubble in forward and backward as measured; by formula (p-1)/(vm+p-1)"
    return [
        "  where the step went, % (-: not measured, left in compute or residual; in brackets: the least of any rank)",
        *aligned(rows, left=(1,), indent="  "),
        *([bubble] if pipelined else []),
        *flag,
    ]


def _percent(value: float | None, whole: float = 1.0) -> str:
    return "-" if value is None else f"{100 * value / whole:.1f}"


def _law_lines(fit: LawFit) -> list[str]:
    if fit.refused:
        return [f"{fit.law.name}: not fitted: {fit.refused}"]
    parts = [f"{name} {_fitted(value)}" for name, value in fit.parameters.items()]
    points = [f"peak at {_devices(fit.peak, fit)}"] if fit.law.name == "usl" else []
    points.append(f"half efficiency at {_devices(fit.half, fit)}")
    return [
        f"{fit.law.name}: {', '.join(parts)}, rms error {fit.rms_relative_error:.1%}"
        + (f" ({fit.note})" if fit.note else ""),
        *(f"  {point}" for point in points),
    ]


def _devices(value: Fitted, fit: LawFit) -> str:
    if value.value is None:
        return "no device count"
    beyond = f" (beyond the {fit.measured_to} measured)" if value.value > fit.measured_to else ""
    return f"{_fitted(value)} devices{beyond}"


def _fitted(value: Fitted) -> str:
    if value.low is None:
        return _number(value.value)
    return f"{_number(value.value)} [{_number(value.low)}, {'no end' if value.high is None else _number(value.high)}]"


def _published_lines(groups: Sequence[Compared]) -> list[str]:
    lines = [f"published, {groups[0].against[0].convention}: same device, precision and convention, or refused"]
    for one in groups:
        lines.append(f"  {one.group.where}")
        refused: dict[str, int] = {}
        for each in one.against:
            if each.refused:
                short = re.sub(r" \(ours [^)]*\)", "", each.refused)  # the values are in the dictionary
                refused[short] = refused.get(short, 0) + 1
            else:
                derived = ", derived" if each.derived else ""
                lines.append(f"    {each.percent:.0f}% of {_number(each.theirs)}{derived}: {each.label}")
        for why, count in sorted(refused.items(), key=lambda item: -item[1]):
            lines.append(f"    {count} refused: {why}")
    return lines


def _absolute(point: Point, options: Options) -> tuple[Estimate, str]:
    if options.form == "loss":
        return point.time_to_loss_s, "s to loss"
    if options.form == "step_time":
        return point.step_time_s.scaled(1e3), "step ms"
    return point.tokens_per_s, "tokens/s"


def _ideal(series: Series, point: Point, options: Options) -> float:
    """The absolute figure at efficiency 1."""
    base, _ = _absolute(series.base, options)
    more = point.group.devices / series.base.group.devices
    if options.form == "throughput":
        return base.value * more
    return base.value if options.form == "step_time" and options.mode == "weak" else base.value / more


def _interval(estimate: Estimate, digits: int | None = None) -> str:
    def said(value: float) -> str:
        return _number(value) if digits is None else f"{value:.{digits}f}"

    if estimate.low is None:
        return f"[{said(estimate.least)} .. {said(estimate.most)}]"
    return f"[{said(estimate.low)}, {said(estimate.high)}]"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
