"""A comparison for a person, for a pull request (Markdown), for a CI (JUnit XML) and for programs (JSON).

Names of models and reasons of failures come from study files and from crashes: here they are text and never markup.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from xml.etree import ElementTree

from ..table.read import printable
from ..terminal import aligned
from .compare import Comparison
from .confirm import JSON_KIND
from .convergence import LossFinding
from .pairs import Finding
from .rule import METRICS, Verdict

MARKDOWN_ROWS = 200  # GitHub cuts a comment at 65,536 characters
CELL = 300  # characters of a name or a reason in Markdown
UNJUDGED = (
    Verdict.NOISY,
    Verdict.NEW,
    Verdict.SKIPPED,
)  # neither passed nor failed, unless the rule fails what is too noisy


def to_dict(comparison: Comparison) -> dict[str, object]:
    """For programs, and for a later comparison's `confirm`. Missing is null."""
    return {
        "kind": JSON_KIND,
        "passed": comparison.passed,
        "base": comparison.base,
        "head": comparison.head,
        "rule": asdict(comparison.rule),
        "verdicts": _counts(comparison),
        "compared": comparison.compared,
        "findings": [asdict(one) | {"fails": one.fails} for one in comparison.findings],
        "losses": [asdict(one) | {"fails": one.fails} for one in comparison.losses],
        "notes": list(comparison.notes),
        "evidence": list(comparison.evidence),
    }


def to_text(comparison: Comparison) -> list[str]:
    """For the terminal: one block of aligned columns, then what needs words."""
    grids = [[HEADER, *map(cells, comparison.findings)]]
    if comparison.losses:
        grids.append([LOSS_HEADER, *map(loss_cells, comparison.losses)])
    lines = []
    for grid in grids:
        lines += [*aligned([[printable(cell) for cell in row] for row in grid], left=range(len(grid[0]))), ""]
    lines += [f"{printable(label)}: {printable(reason)}" for label, reason in _reasons(comparison)]
    lines += [f"note: {printable(note)}" for note in comparison.notes]
    return [*lines, summary(comparison)]


def to_markdown(comparison: Comparison) -> str:
    """For a pull request's comment: what fails in sight, the rest folded away."""
    lines = [f"### {'✅' if comparison.passed else '❌'} {summary(comparison)}", ""]
    lines += [f"BASE {_code(comparison.base)}, HEAD {_code(comparison.head)}", ""]
    lines += _markdown_findings(comparison)
    lines += _markdown_table(LOSS_HEADER, map(loss_cells, comparison.losses))
    reasons = islice(_reasons(comparison), MARKDOWN_ROWS)
    lines += [f"- {_code(label)}: {_code(reason)}" for label, reason in reasons]
    lines += [f"- {_code(note)}" for note in comparison.notes[:MARKDOWN_ROWS]]
    lines += ["", f"<sub>{_method(comparison)}</sub>"]
    return "\n".join(lines) + "\n"


def _markdown_findings(comparison: Comparison) -> list[str]:
    failing = [one for one in comparison.findings if one.fails]
    passing = [one for one in comparison.findings if not one.fails]
    lines = _markdown_table(HEADER, map(cells, failing))
    if passing:
        lines += [f"<details{'' if failing else ' open'}><summary>{len(passing)} that do not fail</summary>", ""]
        lines += [*_markdown_table(HEADER, map(cells, passing)), "</details>", ""]
    return lines


def to_junit(comparison: Comparison) -> str:
    """For a CI's list of tests: one test case for each metric of each case and each group's loss."""
    everything = comparison.everything
    suite = ElementTree.Element(
        "testsuite",
        {
            "name": "scalade compare",
            "tests": str(len(everything) + 1),
            "errors": "0",
            "failures": str(sum(one.fails for one in everything) + (comparison.compared == 0)),
            "skipped": str(sum(map(_unjudged, everything))),
        },
    )
    for one in everything:
        _junit_case(suite, one)
    # Of its own, for no list of tests is green because it is empty.
    case = ElementTree.SubElement(suite, "testcase", {"classname": "scalade.compare", "name": "something was compared"})
    if comparison.compared == 0:
        ElementTree.SubElement(case, "failure", {"type": "missing", "message": summary(comparison)})
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root, " ")
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _junit_case(suite: ElementTree.Element, one: Finding | LossFinding) -> None:
    label, message = _label(one), printable("; ".join(_facts(one)))
    case = ElementTree.SubElement(suite, "testcase", {"classname": "scalade.compare", "name": printable(label)})
    if one.fails:
        ElementTree.SubElement(case, "failure", {"type": one.verdict, "message": message})
    elif _unjudged(one):
        ElementTree.SubElement(case, "skipped", {"message": message})
    else:
        ElementTree.SubElement(case, "system-out").text = message


def _unjudged(one: Finding | LossFinding) -> bool:
    return one.verdict in UNJUDGED and not one.fails


CONFIRMED = {None: "", True: ", confirmed", False: ", to be confirmed"}
HEADER = ["case", "", "metric", "verdict", "base", "head", "head/base", "interval", "p", "could see", "runs"]
LOSS_HEADER = ["case", "", "loss", "verdict", "base", "head", "difference", "tolerance", "seeds"]


def cells(one: Finding) -> list[str]:
    """A row under HEADER."""
    text = METRICS[one.metric].text
    bounds = "-" if one.low is None or one.high is None else f"{one.low:.3f} to {one.high:.3f}"
    return [
        one.name,
        one.case_id,
        one.metric,
        f"{one.verdict}{CONFIRMED[one.confirmed]}",
        _or_dash(one.base, text),
        _or_dash(one.head, text),
        _or_dash(one.ratio, "{:.3f}".format),
        bounds,
        _or_dash(one.p_adjusted, "{:.2g}".format),
        _or_dash(one.smallest_seen, "{:.1%}".format),
        f"{one.base_runs}+{one.head_runs}",
    ]


def loss_cells(one: LossFinding) -> list[str]:
    """A row under LOSS_HEADER."""
    return [
        one.name,
        one.case_ids[0],
        one.loss,
        one.verdict,
        _or_dash(one.base, "{:.4f}".format),
        _or_dash(one.head, "{:.4f}".format),
        _or_dash(one.difference, "{:+.4f}".format),
        _or_dash(one.tolerance, "{:.4f}".format),
        f"{one.base_seeds}+{one.head_seeds}",
    ]


def _or_dash(value: float | None, text: Callable[[float], str]) -> str:
    return "-" if value is None else text(value)


def _label(one: Finding | LossFinding) -> str:
    if isinstance(one, Finding):
        return f"{one.name} {one.case_id} {one.metric}"
    return f"{one.name} {one.case_ids[0]} {one.loss}"


def _facts(one: Finding | LossFinding) -> Iterator[str]:
    header, row = (HEADER, cells(one)) if isinstance(one, Finding) else (LOSS_HEADER, loss_cells(one))
    facts = dict(zip(header, row, strict=True))
    yield facts["verdict"]
    measured = list(facts)[list(facts).index("verdict") + 1 :]
    yield from (f"{name} {facts[name]}" for name in measured if facts[name] != "-")
    if one.reason:
        yield one.reason


def _reasons(comparison: Comparison) -> Iterator[tuple[str, str]]:
    for one in comparison.everything:
        if one.reason:
            yield _label(one), f"{one.verdict}: {one.reason}"


def _counts(comparison: Comparison) -> dict[str, int]:
    return dict(Counter(str(one.verdict) for one in comparison.everything))


def summary(comparison: Comparison) -> str:
    """The verdict of the whole, in one line."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in _counts(comparison).items())
    if comparison.compared == 0:
        return f"gate failed: no case could be compared ({counts})"
    failed_on_noise = any(one.fails and one.verdict == Verdict.NOISY for one in comparison.findings)
    noise = " (--fail-on-noise)" if failed_on_noise else ""
    return f"gate {'passed' if comparison.passed else 'failed'}: {counts}{noise}"


def _method(comparison: Comparison) -> str:
    rule = comparison.rule
    return (
        f"Ratios are Hodges-Lehmann's over runs, intervals hold with {1 - rule.alpha:.3g}, p is exact "
        f"Mann-Whitney's after Holm over all rows: at most {rule.alpha:.3g} for any false verdict. Changes under "
        f"{rule.min_effect:.3g} are `same`; `could see`: the smallest change found {rule.power:.3g} of the time."
    )


def _markdown_table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(map(_code, row)) + " |" for row in rows]
    if not lines:
        return []
    head = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    left = len(lines) - MARKDOWN_ROWS
    return [*head, *lines[:MARKDOWN_ROWS], "", *([f"and {left} more: see the JSON", ""] if left > 0 else [])]


def _code(text: str) -> str:
    """A code span: nothing in it is markup, a link, an @mention or HTML.

    A pipe ends a table's cell even there, and its escape can be undone by a backslash before it: it is shown as ¦.
    """
    text = printable(text)[:CELL].replace("|", "¦").strip() or "-"
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"
