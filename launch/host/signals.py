"""The signals by which a scheduler warns a job that its time is up."""

from __future__ import annotations

SIGNALS = ("USR1", "USR2", "TERM")  # that may warn


def signal_names(text: str) -> tuple[str, ...]:
    """`USR1, TERM` as names of signals.

    Raises
    ------
    ValueError: a word that is not one of SIGNALS
    """
    words = [word.strip().upper().removeprefix("SIG") for word in text.split(",")] if text.strip() else []
    if wrong := [word for word in words if word not in SIGNALS]:
        raise ValueError(f"{wrong[0] or 'nothing'!r} is not one of {', '.join(SIGNALS)}, separated by commas")
    return tuple(f"SIG{word}" for word in words)
