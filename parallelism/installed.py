"""Whether an engine's package is there, without importing it."""

from __future__ import annotations

import importlib.util


def missing(module: str, extra: str) -> str | None:
    """One line that says which extra brings the module; None where it is there."""
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:  # no such parent package
        spec = None
    return None if spec else f"{extra} is not installed: pip install 'scalade[{extra}]'"
