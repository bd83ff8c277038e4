"""Schedulers by name, one file each; and the table of what each can do, for the docs.

`python -m scalade.launch.schedulers docs/clusters.md` writes the table anew.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from .base import Scheduler
from .flux import Flux
from .kubernetes import KubernetesJobs
from .lsf import Lsf
from .pbs import Pbs
from .slurm import Slurm

SCHEDULERS: dict[str, Scheduler] = {each.name: each for each in (Slurm(), Pbs(), Flux(), Lsf(), KubernetesJobs())}
BEGIN, END = "<!-- schedulers: generated, see launch/schedulers/__init__.py -->\n", "<!-- end of schedulers -->\n"


def job_columns(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Whose job this process is part of: of schedulers inside one another, the inner one's. Empty outside of a job."""
    ids = {name: each.own_id(env) for name, each in SCHEDULERS.items()}
    inner_first = sorted(SCHEDULERS, key=lambda name: -SCHEDULERS[name].nesting)
    return next(({"scheduler": name, "job_id": ids[name]} for name in inner_first if ids[name]), {})


def capability_table() -> str:
    """All schedulers as one Markdown table."""
    rows = [
        "| scheduler | launchers | one job per case | many cases in one job | before the time limit | back into "
        "the queue | state and reason from | tried on |",
        "|---" * 8 + "|",
    ]
    for name, each in SCHEDULERS.items():
        can = each.can
        rows.append(
            f"| `{name}` | {', '.join(can.launchers)} | {can.array} | {can.packed or 'no'} | {can.signal or 'no'} "
            f"| {can.requeue or 'no'} | {can.states} | {can.tried} |"
        )
    return "\n".join(rows) + "\n"


def renewed(document: str) -> str:
    """The document with the part between the marks written anew."""
    head, _, rest = document.partition(BEGIN)
    return head + BEGIN + capability_table() + END + rest.partition(END)[2]
