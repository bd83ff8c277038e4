"""The command that looks after a results folder: compact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_read import FoundResults, Json, _located, say

app = typer.Typer()


@app.command(epilog="Example: scalade compact scalade-results/ladder")
def compact(
    results: FoundResults = None,
    undo: Annotated[bool, typer.Option("--undo", help="Put every run back into a folder of its own.")] = False,
    as_json: Json = False,
) -> None:
    """Move the finished runs of a results folder into a few files that are read by column; nothing is lost."""
    from .results.packing import compact as pack
    from .results.packing import unpack

    path: Path = _located(results)
    if not (path / "runs").is_dir():
        raise ValueError(f"{str(path)!r} is not a results folder: only such is packed")
    if undo:
        count = unpack(path)
        say({"unpacked": count, "results": str(path)} if as_json else [f"{count} attempts have folders again: {path}"])
        return
    done = pack(path)
    parts = f"{done.parts} part{'' if done.parts == 1 else 's'}"
    told = f"{done.packed} attempts moved, {done.left} stay in their folders, {parts}: {path / 'table'}"
    say({"packed": done.packed, "left": done.left, "parts": done.parts, "results": str(path)} if as_json else [told])
