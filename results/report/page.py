"""The page: one HTML file that opens offline. All that comes from the table is text there, never markup.

Figures are images with their SVG in a data URI, in which a browser runs nothing and whose names do not meet those of
other figures. The content security policy forbids every request and every script but ours, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from ..check.command import beyond, findings
from ..gate.compare import Comparison
from ..gate.formats import summary
from ..table.read import printable
from . import gate, parts, published, tables
from .checklist import checklist
from .drawing import Drawn, Undrawn
from .source import Source, work_name

HERE = Path(__file__).parent
RUNS_NAMED = 200  # of those that break a rule
MOST = 20  # workloads whose fastest layout is named at the top


@dataclass(frozen=True)
class _Picture:
    name: str
    title: str
    facts: tuple[tuple[str, str], ...]
    reading: str
    image: str  # data URI


def rendered(
    source: Source,
    drawn: Sequence[tuple[Drawn, bytes]],
    undrawn: Sequence[Undrawn],
    title: str | None,
    verdict: Comparison | None = None,
) -> str:
    """The HTML of the whole report."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    script, css = _asset("page.js"), _asset("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    studies = sorted({row["study"] for row in source.rows if row["study"]})
    kinds = (
        tables.layouts,
        parts.table,
        published.table,
        tables.refusals,
        tables.failures,
        tables.environment,
        tables.runs,
    )
    every = gate.tables(verdict) if verdict is not None else []
    every += [table for kind in kinds if (table := kind(source)) is not None]
    counts = Counter(row["status"] for row in source.rows)
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    return environment.get_template("page.html").render(
        title=title or ", ".join(studies) or source.path.name,
        path=str(source.path),
        where=source.where,
        notes=source.notes,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        statuses=counts.most_common(),
        runs=len(source.rows),
        layouts=len(source.groups),
        fastest=fastest_lines(source),
        gate=verdict and summary(verdict),
        baseline=verdict and verdict.base,
        passed=verdict and verdict.passed,
        failing=gate.failing(verdict) if verdict is not None else [],
        pictures=[_picture(one, svg) for one, svg in drawn],
        undrawn=undrawn,
        tables={table.name: table for table in every},
        named=RUNS_NAMED,
        items=checklist(source),
        rules=[*findings(source.rows), beyond(source.rows)],
        script=Markup(script),
        css=Markup(css),
        digest=digest,  # noqa: S704  our own files
    )


def _picture(one: Drawn, svg: bytes) -> _Picture:
    facts = (("Runs", f"{one.runs:,}"), ("Interval", one.interval or "none"), ("Convention", one.convention))
    image = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
    return _Picture(one.name, one.title, facts, one.reading, image)


def fastest_lines(source: Source) -> list[str]:
    """The fastest layout of each workload, or those that are not told apart."""
    found = source.fastest
    lines = [one.line(work_name, source.level) for one in found[:MOST]]
    return lines if len(found) <= MOST else [*lines, f"and {len(found) - MOST} more workloads (Layouts)"]


@cache
def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
