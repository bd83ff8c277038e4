"""The page: one HTML file that opens offline. Everything that comes from the table is text there, never markup.

Figures are images with their SVG in a data URI, where a browser runs no script and names do not clash with those of
other figures. The content security policy forbids every request, and every script but ours, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from ..check.command import beyond, findings
from ..gate.compare import Comparison
from ..gate.formats import summary
from ..schema.rows import distinct, values_in
from ..table.read import printable
from . import gate, parts, published, tables
from .checklist import checklist
from .drawing import Drawn, Undrawn
from .source import Source, work_name

HERE = Path(__file__).parent
RUNS_NAMED = 200  # runs listed of those that break a rule
MOST = 20  # workloads whose fastest layout is named at the top


TABLES: tuple[Callable[[Source], tables.Table | None], ...] = (
    tables.layouts,
    parts.table,
    published.table,
    tables.refusals,
    tables.failures,
    tables.environment,
    tables.runs,
)


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
    gate_result: Comparison | None = None,
) -> str:
    """The HTML of the whole report."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    script, css = _asset("page.js"), _asset("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    studies = sorted(filter(None, distinct(source.rows, "study")))
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
        statuses=Counter(values_in(source.rows, "status")).most_common(),
        runs=len(source.rows),
        layouts=len(source.groups),
        fastest=fastest_lines(source),
        **_gate_fields(gate_result),
        pictures=[_picture(one, svg) for one, svg in drawn],
        undrawn=undrawn,
        tables={table.name: table for table in _tables(source, gate_result)},
        named=RUNS_NAMED,
        items=checklist(source),
        rules=[*findings(source.rows), beyond(source.rows)],
        script=Markup(script),
        css=Markup(css),
        digest=digest,  # noqa: S704  our own files
    )


def _gate_fields(result: Comparison | None) -> dict[str, Any]:
    if result is None:
        return {"gate": None, "baseline": None, "passed": None, "failing": []}
    return {"gate": summary(result), "baseline": result.base, "passed": result.passed, "failing": gate.failing(result)}


def _tables(source: Source, gate_result: Comparison | None) -> list[tables.Table]:
    of_gate = [] if gate_result is None else gate.tables(gate_result)
    return [*of_gate, *(table for draw in TABLES if (table := draw(source)) is not None)]


def _picture(one: Drawn, svg: bytes) -> _Picture:
    facts = (("Runs", f"{one.runs:,}"), ("Interval", one.interval or "none"), ("Convention", one.convention))
    image = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
    return _Picture(one.name, one.title, facts, one.reading, image)


def fastest_lines(source: Source) -> list[str]:
    """The fastest layout of each workload, or those that may be."""
    workloads = source.fastest
    lines = [one.line(work_name, source.level) for one in workloads[:MOST]]
    return lines if len(workloads) <= MOST else [*lines, f"and {len(workloads) - MOST} more workloads (Layouts)"]


@cache
def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
