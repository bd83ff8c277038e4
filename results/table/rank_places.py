"""What `ranks_json` of a row says: which rank ran where. The text may come from anywhere: only valid parts count."""

from __future__ import annotations

from functools import lru_cache

from ..files import parse_json


@lru_cache(maxsize=1024)
def hosts_of(ranks_json: str | None) -> dict[int, str]:
    """The host of each rank, in the order of the text; ranks without one are left out."""
    try:
        entries = parse_json(ranks_json or "[]")
    except ValueError:
        return {}
    if not isinstance(entries, list):
        return {}
    return {one["rank"]: one["host"] for one in entries if _names_a_host(one)}


def _names_a_host(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    rank, host = entry.get("rank"), entry.get("host")
    return type(rank) is int and isinstance(host, str) and host != ""
