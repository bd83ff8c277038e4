"""Shared parts of the commands: common options, option objects, naming and printing of results.

A command with many options takes them as objects: a parameter annotated with a `NamedTuple` whose fields are
`Annotated[..., typer.Option(...)]` stands for one option for each field. `option_objects` shows typer the fields in
place of the parameter and passes the command the object. (Named tuples, for a frozen dataclass takes three times as
long to define, and every `scalade --help` defines all of them.)
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterable
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
Filter = Annotated[
    str | None, typer.Option("--filter", help="Rows to read, as 'status == ok and tp >= 2'.", metavar="CLAUSES")
]
Everything = Annotated[bool, typer.Option("--all", help="Include the earlier attempts of each run.")]
Metrics = Annotated[
    list[str] | None, typer.Option("--metric", help="Metric column; repeat the option for several.", metavar="COLUMN")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def option_objects(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer is to see it: each field of an option object is an option, in the order of the fields."""
    hints = get_type_hints(command, include_extras=True)
    shown: list[inspect.Parameter] = []
    objects: dict[str, Any] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if hasattr(kind, "_field_defaults"):
            objects[name] = kind
            shown += _as_parameters(kind)
        else:
            shown.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def with_objects(**values: Any) -> None:
        for name, kind in objects.items():
            values[name] = kind(**{field: values.pop(field) for field in kind._fields})
        command(**values)

    with_objects.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # inspect.signature reads it
    with_objects.__annotations__ = {}  # typer asks for those too, and needs the signature's only
    del with_objects.__wrapped__
    return with_objects


def _as_parameters(kind: Any) -> list[inspect.Parameter]:
    hints, defaults = get_type_hints(kind, include_extras=True), kind._field_defaults
    return [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name, inspect.Parameter.empty), annotation=hint
        )
        for name, hint in hints.items()
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
