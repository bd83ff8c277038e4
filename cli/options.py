"""What the commands share: common options, option objects, and how results are named and printed.

A command with many options takes them as objects: a parameter annotated with a frozen dataclass whose fields are
`Annotated[..., typer.Option(...)]` stands for one option for each field. `option_objects` shows typer the fields in
place of the parameter and hands the command the object.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..results.terminal import printable

Json = Annotated[bool, typer.Option("--json", help="Print a JSON object for programs, and nothing else.")]
FoundResults = Annotated[
    Path | None,
    typer.Argument(
        help="Results folder, run, exported file, study file or study name; default: the newest in ./scalade-results.",
        metavar="RESULTS",
        show_default=False,
    ),
]
Filter = Annotated[str | None, typer.Option("--filter", help="As 'status == ok and tp >= 2'.", metavar="CLAUSES")]
Everything = Annotated[bool, typer.Option("--all", help="Also the earlier attempts of each run.")]
Metrics = Annotated[list[str] | None, typer.Option("--metric", help="A column; again for more.", metavar="COLUMN")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def option_objects(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer is to see it: each field of an option object is an option, in the order of the fields."""
    hints = get_type_hints(command, include_extras=True)
    shown: list[inspect.Parameter] = []
    objects: dict[str, type] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if isinstance(kind, type) and is_dataclass(kind):
            objects[name] = kind
            shown += _as_parameters(kind)
        else:
            shown.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def with_objects(**values: Any) -> None:
        for name, kind in objects.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        command(**values)

    with_objects.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # inspect.signature reads it
    with_objects.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    del with_objects.__wrapped__  # typer would read the hints of the command itself
    return with_objects


def _as_parameters(kind: type) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(kind)
    ]


def say(content: dict[str, Any] | Iterable[str]) -> None:
    """Print a JSON object, or lines in which no character acts on the terminal."""
    text = json.dumps(content, indent=1) if isinstance(content, dict) else printable("\n".join(content))
    print(text, flush=True)


def located(results: Path | None) -> Path:
    """The results folder or file that `results` names; one that the user did not name is printed to standard error."""
    from .locate import locate

    path = locate(results)
    if results != path:
        print(f"reading {printable(str(path))}", file=sys.stderr, flush=True)
    return path
