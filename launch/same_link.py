"""One results folder, one link: a case's id does not know over what its ranks talk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..results.store import RunStore
from .environment import link_columns
from .lab.link import Link

ASKED = ("link_rate_asked_bits_per_s", "link_rtt_asked_s")


def refuse_another_link(store: RunStore, run_ids: Iterable[str]) -> None:
    """Runs over another link than the one here are not kept as if they were these.

    Raises
    ------
    ValueError: one of these runs has a row that another link gave
    """
    here = _link(link_columns())
    for run_id in run_ids:
        if (there := _link(store.row(run_id) or {})) != here:
            raise ValueError(
                f"{store.folder}: run {run_id} was made over {_text(there)}, this would be over {_text(here)}: "
                "give each link its own --results"
            )


def _link(row: Mapping[str, object]) -> Link | None:
    rate, rtt = (row.get(name) for name in ASKED)
    return Link(rate or None, rtt or None) if row.get("lab") else None


def _text(link: Link | None) -> str:
    return f"a lab's link of {link.text()}" if link else "the machine's own link"
