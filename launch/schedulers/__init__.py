"""Schedulers by name, one file each; and the table of what each can do, for the docs.

Importing this package imports every file in it, and so registers every scheduler: a new one needs no entry anywhere.
`python -m scalade.launch.schedulers docs/clusters.md` writes the table anew.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from .base import REGISTERED, Scheduler

for _module in iter_modules(__path__):
    if not _module.name.startswith("_"):
        import_module(f"{__name__}.{_module.name}")

SCHEDULERS: dict[str, Scheduler] = dict(sorted(REGISTERED.items(), key=lambda entry: (entry[1].place, entry[0])))
BEGIN, END = "<!-- schedulers: generated, see launch/schedulers/__init__.py -->\n", "<!-- end of schedulers -->\n"


def job_columns(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The job that this process is part of; of schedulers inside one another, the inner one's. Empty outside a job."""
    for name, scheduler in sorted(SCHEDULERS.items(), key=lambda entry: -entry[1].nesting):
        job_id = scheduler.own_id(env)
        if job_id:
            return {"scheduler": name, "job_id": job_id}
    return {}


def capability_table() -> str:
    """All schedulers as one Markdown table."""
    rows = [
        "| scheduler | launchers | one job per case | many cases in one job | before the time limit | back into "
        "the queue | state and reason from | tried on |",
        "|---" * 8 + "|",
    ]
    for name, scheduler in SCHEDULERS.items():
        its = scheduler.capabilities
        rows.append(
            f"| `{name}` | {', '.join(its.launchers)} | {its.array} | {its.packed or 'no'} | {its.signal or 'no'} "
            f"| {its.requeue or 'no'} | {its.states} | {its.tried} |"
        )
    return "\n".join(rows) + "\n"


def renewed(document: str) -> str:
    """The document with the part between the marks written anew."""
    head, _, rest = document.partition(BEGIN)
    return head + BEGIN + capability_table() + END + rest.partition(END)[2]
