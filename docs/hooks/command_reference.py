"""The reference of commands, from the command line itself: what `scalade COMMAND --help` prints, as a page.

docs/reference/commands.md holds a mark; at build time the mark becomes a section for each command.
"""

from __future__ import annotations

import inspect
import re
from typing import get_args

MARK = "<!-- commands: made from the command line when the site is built -->"
NAMES = {str: "TEXT", int: "INTEGER", float: "NUMBER"}


def all_commands() -> str:
    """A section for each command that the help lists, in its order."""
    import typer

    from scalade.cli.app import app

    return "\n".join(_sections(typer.main.get_command(app), "scalade", 2))


def _sections(group, path: str, level: int):
    for name, command in group.commands.items():
        if not command.hidden:
            yield from _section(command, f"{path} {name}", level)
            if hasattr(command, "commands"):
                yield from _sections(command, f"{path} {name}", level + 1)


def _section(command, path: str, level: int):
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
    yield f"{'#' * level} {path} {{#{path.replace(' ', '-')}}}\n"
    yield f"{paragraphs(command.help)}\n"
    if not hasattr(command, "commands"):
        used = " ".join([path, *(["[OPTIONS]"] if options else []), *(metavar_of(one) for one in arguments)])
        yield f"```text\n{used}\n```\n"
    if arguments or options:
        yield "| argument or option | default | meaning |\n|---|---|---|"
        for one in [*arguments, *options]:
            yield f"| {shown_name(one)} | {shown_default(one)} | {escaped(one.help or '')} |"
        yield ""
    if command.epilog:
        yield "Example:\n\n```sh\n" + command.epilog.removeprefix("Example: ").strip() + "\n```\n"


def paragraphs(text: str | None) -> str:
    """A docstring as Markdown: lines of a paragraph joined, up to click's mark that ends the printed help."""
    cleaned = inspect.cleandoc(text or "").partition("\f")[0]
    return "\n\n".join(escaped(part) for part in re.split(r"\n\s*\n", cleaned))


def metavar_of(parameter) -> str:
    name = parameter.metavar or parameter.human_readable_name.upper()
    name = f"{name}..." if parameter.nargs == -1 else name
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def shown_name(parameter) -> str:
    if parameter.param_type_name == "argument":
        return f"`{metavar_of(parameter)}`"
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    values = "" if parameter.is_flag else f" {value_name(parameter)}"
    again = ", repeatable" if parameter.multiple else ""
    return f"{names}{values}{again}"


def value_name(parameter) -> str:
    """What stands for an option's value: its metavar, or its type in capitals."""
    if parameter.metavar:
        return f"`{parameter.metavar}`"
    if hasattr(parameter, "type"):  # typer before 0.26 has click's types, later versions descriptors of their own
        return f"`{parameter.type.name.upper()}`"
    annotation = parameter.type_descriptor.annotation
    (annotation, *_) = get_args(annotation) or (annotation,)
    return f"`{NAMES.get(annotation, annotation.__name__.upper())}`"


def shown_default(parameter) -> str:
    value = parameter.default() if callable(parameter.default) else parameter.default
    none = value is None or value is False or value in ((), []) or "UNSET" in repr(value)
    if parameter.param_type_name == "argument" or none:
        return ""
    return f"`{value}`"


def escaped(text: str) -> str:
    """The text as one cell of a table, or as one paragraph."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def on_page_markdown(markdown: str, page, config, files) -> str:
    return markdown.replace(MARK, all_commands()) if MARK in markdown else markdown
