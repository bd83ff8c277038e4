"""One results folder, one link: a case's id does not know over what its ranks talk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..host.link import Link, link_columns

ASKED = ("link_rate_asked_bits_per_s", "link_rtt_asked_s")


class SameLink:
    """Runs over another link than the one here are not kept as if they were these."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.here = folder, _link(link_columns())

    def refuse(self, run_id: str, row: Mapping[str, Any]) -> None:
        """
        Raises
        ------
        ValueError: another link gave this row
        """
        if (there := _link(row)) != self.here:
            raise ValueError(
                f"{self.folder}: run {run_id} was made over {_text(there)}, this would be over {_text(self.here)}: "
                "give each link its own --results"
            )


def _link(row: Mapping[str, Any]) -> Link | None:
    rate, rtt = (row.get(name) for name in ASKED)
    return Link(rate or None, rtt or None) if row.get("lab") else None


def _text(link: Link | None) -> str:
    return f"a lab's link of {link.text()}" if link else "the machine's own link"
