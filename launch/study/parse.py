"""A study file's text as a validated StudyFile, whatever the text is: size, encoding, depth, keys and types."""

from __future__ import annotations

import codecs
import errno
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...results import files
from .errors import SHOWN, StudyError, dotted, nearest, shown, unknown
from .schema import ALTERNATIVES, FILE_MODEL, KEYS, MODELS, StudyFile, study_file

MAX_BYTES = 2**20
MAX_DEPTH = 8  # tables and lists inside each other
MAX_DOTS = 200  # dots of one key; tomllib takes time and memory with their square
ARRAYS = (*ALTERNATIVES, "zip", "exclude")  # may be one table or an array of them


@dataclass(frozen=True)
class Contents:
    """A study file as far as it can be read: what is wrong is left out, so that the rest is looked at, too."""

    file: StudyFile
    single: set[str]  # which of ARRAYS it holds as a single table (a list of one in `file`)
    problems: tuple[str, ...] = ()  # unknown keys and wrong types
    unsure: frozenset[str] = frozenset()  # sections of which something was left out: a key that is missing may be it


def read(path: Path) -> Contents:
    """
    Raises
    ------
    StudyError: no file, or no TOML
    """
    raw = _parse(path)
    single = {section for section in ARRAYS if isinstance(raw.get(section), dict)}
    raw |= {section: [raw[section]] for section in single}
    try:
        return Contents(study_file(raw), single)
    except ValidationError as error:
        problems, unsure = _problems(error, single), _leave_out(raw, error)
    return Contents(study_file(raw), single, tuple(problems), frozenset(unsure))


def _leave_out(raw: dict, error: ValidationError) -> set[str]:
    """Take what is wrong out of the file's content; gives the sections that it was in, or may have been meant for."""
    unsure: set[str] = set()
    for finding in error.errors(include_url=False):
        section, *inside = str(finding["loc"][0]), *finding["loc"][1:]
        if inside and section not in ("zip", "exclude"):
            _remove(raw[section], inside)
            unsure.add(section)
            continue
        raw.pop(section, None)
        if section in (*MODELS, "zip", "exclude"):
            unsure.add(section)
        elif section != "name":
            unsure |= set(MODELS) - set(raw)  # a section whose name is misspelt
    return unsure


def _remove(table: Any, place: Sequence[Any]) -> None:
    """Take a key out of nested tables; a list keeps an empty table in its place: the others keep their numbers."""
    for part in place[:-1]:
        table = table[part]
    if isinstance(table, list):
        table[place[-1]] = {}
    else:
        table.pop(place[-1], None)


def text_of(path: Path) -> str:
    """The text of a TOML file that the user named, without a byte-order mark.

    Raises
    ------
    StudyError: it cannot be read, is a folder, a pipe or a device, is too large, or is not UTF-8
    """
    try:
        content = files.read_named(path, MAX_BYTES)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise StudyError(path, [f"larger than {MAX_BYTES} bytes: not a study file"]) from None
        raise StudyError(path, [f"cannot be read: {error.strerror}"]) from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise StudyError(path, ["UTF-16: TOML is UTF-8, save it so"])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StudyError(path, [f"not UTF-8 at byte {error.start}: not a TOML file"]) from None


def _parse(path: Path) -> dict:
    text = text_of(path)
    too_deep = StudyError(path, [f"tables or lists nested more than {MAX_DEPTH} deep: not a study file"])
    try:
        if any(piece.count(".") > MAX_DOTS for piece in re.split(r"[,=\[\]{}\n#]", text)):
            raise too_deep
        raw = tomllib.loads(text)
    except RecursionError:
        raise too_deep from None
    except tomllib.TOMLDecodeError as error:  # says line and column
        raise StudyError(path, [f"not valid TOML: {error}"]) from None
    except StudyError:
        raise
    except ValueError as error:  # an integer of more than 4,300 digits
        raise StudyError(path, [f"not valid TOML: {str(error).split(';')[0]}"]) from None
    level: list = [raw]
    for _ in range(MAX_DEPTH):
        level = [part for value in level for part in _parts(value) if isinstance(part, dict | list)]
    if level:
        raise too_deep
    return raw


def _parts(value: dict | list) -> list:
    return list(value.values()) if isinstance(value, dict) else value


def _problems(error: ValidationError, single: set[str]) -> list[str]:
    """pydantic's findings in the words of the study file."""
    problems: list[str] = []
    for found in error.errors(include_url=False):
        loc = list(found["loc"])
        section = loc[0]
        if section in single and len(loc) > 1:
            del loc[1]
        where, value = dotted(loc), shown(found["input"])
        if found["type"] == "extra_forbidden":
            hint = _unknown_key(loc) if len(problems) < SHOWN else "unknown key"  # finding the nearest takes a while
            problems.append(f"{where}: {hint}")
        elif found["type"] == "value":
            problems.append(wrong_value(where, found["input"], found["msg"], found.get("ctx")))
        else:
            several = section in ARRAYS and len(loc) == 1
            problems.append(f"{where} = {value}: must be a table" + (" or an array of tables" if several else ""))
    return problems


def wrong_value(where: str, value: object, message: str, context: Mapping | None) -> str:
    """`layout.tp[1] = "4": must be an integer`; context: of the error of schema.check_many."""
    if context and "index" in context:
        where, value = f"{where}[{context['index']}]", context["item"]
    return f"{where} = {shown(value)}: {message}"


def _unknown_key(loc: list) -> str:
    if len(loc) == 1:
        return unknown(loc[0], FILE_MODEL.model_fields)
    section, word = loc[0], loc[-1]
    known = MODELS[section].model_fields
    if (section, word) == ("recipe", "steps"):
        return "unknown key; steps are set in [budget]"
    if not nearest(word, known):
        elsewhere = [key.dotted for key in KEYS.values() if key.name == word]
        if elsewhere:
            return f"unknown key; did you mean {elsewhere[0]}?"
    return unknown(word, known)
