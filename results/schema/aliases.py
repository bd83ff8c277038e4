"""Short names of columns of `runs`, in the units a person reads; `show` prints them, and filters take them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alias:
    """A column of `runs` times a factor."""

    name: str
    column: str
    factor: float = 1.0


ALIASES = {
    one.name: one
    for one in (
        Alias("ranks", "world_size"),
        Alias("rep", "repeat"),
        Alias("step_ms", "step_time_s", 1e3),
        Alias("peak_mib", "peak_memory_bytes", 2.0**-20),
        Alias("host_mib", "peak_host_memory_bytes", 2.0**-20),
    )
}


def resolved(name: str, table: str = "runs") -> Alias:
    """The column of a table that a name means, and the factor; a column's own name means that column.

    Raises
    ------
    ValueError: neither a short name nor a column; names the nearest
    """
    from .schema import known_column

    short = ALIASES.get(name) if table == "runs" else None
    return short or Alias(name, known_column(table, name).name)
