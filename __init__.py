"""Scalade measures how training scales: one study file, any parallel layout, one tidy table."""

from __future__ import annotations

_READERS = ("read_runs", "read_steps", "read_evals", "read_comm", "read_ops")
__all__ = [*_READERS, "record", "val_hash", "__version__"]


def __getattr__(name: str) -> object:
    # On first use: neither torch nor pandas is paid for by who only asks for `scalade --help`.
    if name in _READERS:
        from .results.table import read

        return getattr(read, name)
    if name == "record":
        from .results.table.recorder import record

        return record
    if name == "val_hash":
        from .results.table.held_out import val_hash

        return val_hash
    if name == "__version__":
        from importlib.metadata import version

        return version("scalade")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
