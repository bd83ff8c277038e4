"""Every law in the registry: equation, columns it reads, column it predicts, parameters, source."""

from __future__ import annotations

from .base import get_law, law_names


def to_dicts() -> list[dict]:
    """One JSON-ready dict for each law, by name."""
    return [
        {
            "law": law.name,
            "equation": law.equation,
            "reads": list(law.roles),
            "predicts": law.response,
            "needs_run": law.needs_run,
            "parameters": {p.name: p.meaning for p in law.parameters},
            "source": law.source,
        }
        for law in map(get_law, law_names())
    ]


def to_text() -> list[str]:
    """Three lines for each law, for a terminal."""
    lines = []
    for law in to_dicts():
        curves = ", curves: name the run column" if law["needs_run"] else ""
        lines += [
            f"{law['law']}: {law['equation']}",
            f"    reads {', '.join(law['reads'])}; predicts {law['predicts']}{curves}",
            f"    {law['source']}",
        ]
    return lines
