"""The command that maintains a results folder: compact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..results.wording import count_of
from .options import FoundResults, Json, located, say

app = typer.Typer()


@app.command(epilog="Example: scalade compact scalade-results/ladder")
def compact(
    results: FoundResults = None,
    undo: Annotated[bool, typer.Option("--undo", help="Put every run back into a folder of its own.")] = False,
    as_json: Json = False,
) -> None:
    """Move the finished runs of a results folder into a few files that are read by column; nothing is lost."""
    from ..results.store.packing import compact as pack
    from ..results.store.packing import unpack

    path: Path = located(results)
    if not (path / "runs").is_dir():
        raise ValueError(f"{str(path)!r} is not a results folder: only such is packed")
    if undo:
        count = unpack(path)
        line = f"put back into folders of their own: {count_of(count, 'attempt')}: {path}"
        say({"unpacked": count, "results": str(path)} if as_json else [line])
        return
    done = pack(path)
    stay = count_of(done.left, "stays in its folder", "stay in their folders")
    line = f"{count_of(done.packed, 'attempt')} moved, {stay}, {count_of(done.parts, 'part')}: {path / 'table'}"
    say({"packed": done.packed, "left": done.left, "parts": done.parts, "results": str(path)} if as_json else [line])
