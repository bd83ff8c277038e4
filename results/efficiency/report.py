"""The output of `scalade efficiency`: a dictionary for programs, lines of text for people."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median as middle

from ..published import COMPARED_BY, Against, against
from ..stats.rank_intervals import Estimate
from ..terminal import aligned, listed
from ..wording import count_of
from .breakdown import Breakdown
from .fastest import Fastest, tokens_text
from .series import Options, Point, Refusal, Series
from .system_laws import Fitted, LawFit, LawRefused
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


def compared(groups: Sequence[Group], convention: str) -> tuple[Compared, ...]:
    """The median measurement of each group beside every published row."""
    result = []
    for group in groups:
        values = [row[convention] for row in group.rows if row.get(convention) is not None]
        known = middle(values) if len(values) == len(group.rows) else None
        ours = {name: group[name] for name in COMPARED_BY} | {convention: known}
        result.append(Compared(group, tuple(against(ours, convention))))
    return tuple(result)


@dataclass(frozen=True)
class EfficiencyReport:
    """Series of efficiencies, refusals, notes, and the published rows if requested."""

    path: str
    options: Options
    series: tuple[Series, ...]
    refused: tuple[Refusal, ...]
    notes: tuple[str, ...]
    published: tuple[Compared, ...] = ()
    fastest: tuple[Fastest, ...] = ()  # of workloads with more than one layout

    @property
    def exit_code(self) -> int:
        """1 if nothing could be compared."""
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
        header = (
            f"{options.mode} scaling{goal}; intervals {options.level:.0%} over runs (exact, rank-based), "
            "[least .. most] where runs are too few"
        )
        sections = [
            *self._series_sections(),
            self._fastest_lines(),
            _published_lines(self.published),
            self._refused_lines(),
            self.notes,
        ]
        return "\n".join([header, *(line for section in sections if section for line in ("", *section))])

    def _series_sections(self) -> list[list[str]]:
        differ = varying([one.base.group for one in self.series])
        shown = _largest(self.series)
        sections = [_series_lines(one, self.options, differ) for one in shown]
        if len(shown) < len(self.series):
            sections.append([f"{len(shown)} of {len(self.series)} series are shown, those of most layouts: {MORE}"])
        return sections

    def _fastest_lines(self) -> list[str]:
        if not self.fastest:
            return []
        lines = [f"  {one.line(_work_name, self.options.level)}" for one in self.fastest[:LINES]]
        return ["fastest layout of each workload", *_few(lines, self.fastest)]

    def _refused_lines(self) -> list[str]:
        if not self.refused:
            return []
        lines = [f"  {one.what} ({listed(one.run_ids)}): {one.why}" for one in self.refused[:LINES]]
        return ["not compared", *_few(lines, self.refused)]


def _largest(series: Sequence[Series]) -> list[Series]:
    """At most SERIES of them, those with the most points, in their order."""
    kept = sorted(range(len(series)), key=lambda place: -len(series[place].points))[:SERIES]
    return [series[place] for place in sorted(kept)]


def _few(lines: list[str], every: Sequence) -> list[str]:
    """The lines, and the number of those that are left out."""
    return lines if len(lines) == len(every) else [*lines, f"  and {len(every) - len(lines)} more: {MORE}"]


def _work_name(group: Group) -> str:
    return f"{group['model'] or 'model unnamed'}, {tokens_text(group)}"


def _series_lines(series: Series, options: Options, varies: Sequence[str] = ()) -> list[str]:
    """varies: columns that tell one series from another of the same name."""
    base = series.base.group
    absolute, unit = _absolute(series.base, options)
    settings = [f"{name} {_setting(base[name])}" for name in varies]
    engine = f", {base['engine']}" if base["engine"] != series.engine else ""
    lines = [
        ", ".join([series.engine or "engine unknown", series.family, base["model"] or "model unnamed", *settings]),
        f"  base: {base.where}{engine}: {_number(absolute.value)} {unit} {absolute.bounds(_number)}, "
        f"{count_of(absolute.runs, 'run')}",
    ]
    if len(series.points) == 1:
        return [*lines, "  nothing to compare with it"]
    header = ("ranks", "layout", "runs", unit, "", "ideal", "speedup", "efficiency", "")
    rows = [header, *(_point_cells(series, point, options) for point in series.points)]
    lines += aligned(rows, left=(1,), indent="  ")
    few = [point.group.where for point in series.points if point.tokens_per_s.note]
    lines += [f"  too few runs (under 6) for an interval: {', '.join(few)}"] if few else []
    lines += chain.from_iterable(map(_point_notes, series.points))
    lines += _part_lines(series)
    lines += (f"  {line}" for line in chain.from_iterable(map(_law_lines, series.laws)))
    return lines


def _point_cells(series: Series, point: Point, options: Options) -> tuple[str, ...]:
    absolute, _ = _absolute(point, options)
    cells = (
        str(point.group.devices),
        point.group.label,
        str(absolute.runs),
        _number(absolute.value),
        absolute.bounds(_number),
        _number(_ideal(series, point, options)),
    )
    if point.speedup is None or point.efficiency is None:
        return (*cells, "1", "1", "base")
    ratio = point.efficiency
    return (*cells, f"{point.speedup.value:.2f}", f"{ratio.value:.3f}", ratio.bounds("{:.3f}".format))


def _point_notes(point: Point) -> list[str]:
    group, lines = point.group, []
    if point.allowed:
        lines.append(f"  {group.where}: allowed to differ: {', '.join(point.allowed)}")
    if group.work.varies or point.base.work.varies:
        lines.append(f"  {group.where}: steps differ in tokens: {group.work.over(1)} tokens a step on average")
    if group.not_ok:
        count = len(group.not_ok)
        lines.append(f"  {group.where}: {count} more run{'s are' if count > 1 else ' is'} not ok (below)")
    return lines


def _setting(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def _part_lines(series: Series) -> list[str]:
    header: tuple[str, ...] = ("ranks", "layout", "step ms", *PARTS, *OF_BUBBLE)
    rows = [header, *((str(p.group.devices), p.group.label, *_part_cells(p.breakdown)) for p in series.points)]
    if _all_dashes(row[3:] for row in rows[1:]):
        return ["  where the step went: no part of it was measured"]
    pipelined = not _all_dashes(row[-len(OF_BUBBLE) :] for row in rows[1:])
    if not pipelined:
        rows = [row[: -len(OF_BUBBLE)] for row in rows]
    lines = [
        "  where the step went, % (-: not measured, left in compute or residual; in brackets: the least of any rank)",
        *aligned(rows, left=(1,), indent="  "),
    ]
    if pipelined:
        lines.append("  of f+b: the bubble in forward and backward as measured; by formula (p-1)/(vm+p-1)")
    if any(point.breakdown.residual_flagged for point in series.points):
        lines.append("  ! more than 5% of the step is in no part that was measured")
    return lines


def _all_dashes(rows: Iterable[Sequence[str]]) -> bool:
    return set(chain.from_iterable(rows)) <= {"-"}


def _part_cells(b: Breakdown) -> list[str]:
    """The step in ms, its PARTS in percent, and OF_BUBBLE."""
    parts = (b.compute_s, b.exposed_comm_s, b.bubble_s, b.data_s, b.optimizer_s, b.outer_s, b.residual_s)
    compute, exposed, *rest, residual = (_percent(part, b.step_s) for part in parts)
    if b.exposed_comm_min_s:
        exposed += f" ({_percent(b.exposed_comm_min_s, b.step_s)})"
    if b.residual_flagged:
        residual += " !"
    of_bubble = (_percent(b.bubble_share), _percent(b.bubble_share_theory))
    return [f"{b.step_s * 1e3:.1f}", compute, exposed, *rest, residual, *of_bubble]


def _percent(value: float | None, whole: float = 1.0) -> str:
    return "-" if value is None else f"{100 * value / whole:.1f}"


def _law_lines(fit: LawFit | LawRefused) -> list[str]:
    if isinstance(fit, LawRefused):
        return [f"{fit.law.name}: not fitted: {fit.refused}"]
    parts = [f"{name} {_fitted(value)}" for name, value in fit.parameters.items()]
    points = [f"peak at {_devices(fit.peak, fit)}"] if fit.law.name == "usl" else []
    points.append(f"half efficiency at {_devices(fit.half, fit)}")
    return [
        f"{fit.law.name}: {', '.join(parts)}, rms error {fit.rms_relative_error:.1%}"
        + (f" ({fit.note})" if fit.note else ""),
        *(f"  {point}" for point in points),
    ]


def _devices(count: Fitted, fit: LawFit) -> str:
    if count.value is None:
        return "no device count"
    beyond = f" (beyond the {fit.measured_to} measured)" if count.value > fit.measured_to else ""
    return f"{_fitted(count)} devices{beyond}"


def _fitted(figure: Fitted) -> str:
    if figure.low is None:
        return _number(figure.value)
    return f"{_number(figure.value)} [{_number(figure.low)}, {_number(figure.high)}]"


def _published_lines(groups: Sequence[Compared]) -> list[str]:
    if not groups:
        return []
    lines = [f"published, {groups[0].against[0].convention}: same device, precision and convention, or refused"]
    for one in groups:
        lines.append(f"  {one.group.where}")
        lines += [f"    {_share_of_published(each)}: {each.label}" for each in one.against if not each.refused]
        refused = Counter(without_values(each.refused) for each in one.against if each.refused)
        lines += [f"    {count} refused: {why}" for why, count in refused.most_common()]
    return lines


def _share_of_published(each: Against) -> str:
    derived = ", derived" if each.derived else ""
    return f"{each.percent:.0f}% of {_number(each.theirs)}{derived}"


def without_values(refused: str) -> str:
    """A reason to refuse without the values of our row and theirs, which are in the dictionary."""
    return re.sub(r" \(ours [^)]*\)", "", refused)


def _absolute(point: Point, options: Options) -> tuple[Estimate, str]:
    """The measurement that the form compares, and its unit."""
    if options.form == "loss":
        assert point.time_to_loss_s is not None, "groups that miss the target are refused"
        return point.time_to_loss_s, "s to loss"
    if options.form == "step_time":
        return point.step_time_s.scaled(1e3), "step ms"
    return point.tokens_per_s, "tokens/s"


def _ideal(series: Series, point: Point, options: Options) -> float:
    """The same at efficiency 1."""
    base, _ = _absolute(series.base, options)
    growth = point.group.devices / series.base.group.devices
    if options.form == "throughput":
        return base.value * growth
    return base.value if options.form == "step_time" and options.mode == "weak" else base.value / growth


def _number(value: float | None) -> str:
    """A figure, of which None is without end."""
    if value is None:
        return "no end"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
