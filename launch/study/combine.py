"""A study file's sections as lists that multiply, and the cases that they make, each once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

from ...bench.data.spec import DataSpec
from ...bench.mistakes import Mistake, Mistakes
from ...results.wording import count_of
from .case import Case
from .errors import SHOWN, dotted, nearest
from .expand import MOST_RUNS, Axis, Point, Tables, axes_of, expand, point_of, too_many, too_many_runs
from .parse import Contents, wrong_value
from .resolve import Resolver, value_of
from .schema import ALTERNATIVES, KEYS, MODELS, Key, Run, check_many

Pairs = dict[str, list]  # dotted key -> its values


def combine(contents: Contents, run: Run, problems: list[str], vocab_of: Callable[[DataSpec], int]) -> tuple[Case, ...]:
    """The cases of a study file, in the order of its sections; what is wrong with it is added to `problems`.

    vocab_of: tokens that a data source knows
    """
    unsure = set(contents.unsure)
    zips = _zips(contents, problems, unsure)
    rules = _rules(contents, problems, unsure)
    tables = _tables(contents)
    if run.seeds:
        if "recipe.seed" in tables["recipe"][0]:
            problems.append("run.seeds and recipe.seed: give one of them")
        tables["recipe"][0] |= {"recipe.seed": list(run.seeds)}
    problems += _twice(zips, tables)
    if "zip" in unsure:
        zips, unsure = [], unsure | set(MODELS)
    zips = [pairs for pairs in zips if pairs]
    limit = run.max_runs if 0 < run.max_runs <= MOST_RUNS else MOST_RUNS  # else a problem already
    axes = _axes(zips, tables, limit, problems)
    cases = _build(axes, rules, unsure, problems, vocab_of) if axes else ()
    if cases and (message := too_many_runs(len(cases), run.repeats, limit)):
        problems.append(message)
    return cases


def _tables(contents: Contents) -> dict[str, list[dict]]:
    """Section -> its tables, one but for those of ALTERNATIVES, with dotted keys."""
    tables = {}
    for section in MODELS:
        if section != "run":
            content = getattr(contents.file, section)
            alternatives = content if section in ALTERNATIVES else [content]
            tables[section] = [_dotted(section, given(table)) for table in alternatives]
    return tables


def _dotted(section: str, table: Mapping[str, object]) -> dict[str, object]:
    return {f"{section}.{key}": value for key, value in table.items()}


def given(table: BaseModel) -> dict[str, Any]:
    """What the file sets in a section, in the order of the section's keys, so that the cases' order is one."""
    return {key: getattr(table, key) for key in type(table).model_fields if key in table.model_fields_set}


def _at(section: str, index: int, single: set[str]) -> str:
    return section if section in single else f"{section}[{index}]"


def _zips(contents: Contents, problems: list[str], unsure: set[str]) -> list[Pairs]:
    """The `zip` tables; with a problem in one of them the section is unsure."""
    before, zips = len(problems), []
    for index, table in enumerate(contents.file.zip):
        where = _at("zip", index, contents.single)
        pairs = _pairs(table, where, problems, _list_of)
        lengths = {key: len(values) for key, values in pairs.items()}
        if len(set(lengths.values())) > 1:
            each = ", ".join(f"{key} has {length}" for key, length in lengths.items())
            problems.append(f"{where}: lists must be of equal length; {each}")
        zips.append(pairs)
    if len(problems) > before:
        unsure.add("zip")
    return zips


def _rules(contents: Contents, problems: list[str], unsure: set[str]) -> list[Pairs]:
    """The `exclude` tables, in which a single value is a list of one; none of them where one has a problem."""
    before = len(problems)
    rules = [
        _pairs(table, _at("exclude", index, contents.single), problems, _one_or_many)
        for index, table in enumerate(contents.file.exclude)
    ]
    if len(problems) > before:
        unsure.add("exclude")
    return [] if "exclude" in unsure else rules


def _pairs(table: Mapping, where: str, problems: list[str], values_of: Callable[[Key, object], list]) -> Pairs:
    """A table as dotted key -> values."""
    pairs: Pairs = {}
    for name, value in _flat(table).items():
        at = f"{where}.{dotted([name]) if name not in KEYS else name}"
        key = KEYS.get(name)
        if key is None:
            near = nearest(name, _several()) if len(problems) < SHOWN else None  # the rest is counted, not printed
            hint = f"did you mean {near}?" if near else 'keys are dotted, as in "layout.tp"'
            problems.append(f"{at}: unknown key; {hint}")
        elif key.one_value:
            problems.append(f"{at}: [run] is one for the whole study")
        else:
            try:
                pairs[name] = values_of(key, value)
            except PydanticCustomError as error:
                problems.append(wrong_value(at, value, error.message(), error.context))
    if not table:
        problems.append(f"{where}: must not be empty")
    return pairs


def _several() -> list[str]:
    """Keys that may have several values."""
    return [name for name, key in KEYS.items() if not key.one_value]


def _list_of(key: Key, value: object) -> list:
    """Raises PydanticCustomError: no list, or a wrong value in it."""
    if not isinstance(value, list):
        raise PydanticCustomError("value", "must be a list")
    return check_many(key, value)


def _one_or_many(key: Key, value: object) -> list:
    """Raises PydanticCustomError: a wrong value."""
    checked = check_many(key, value)
    return checked if isinstance(checked, list) else [checked]


def _flat(table: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested tables (unquoted dotted keys) as dotted names."""
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _twice(zips: list[Pairs], tables: dict[str, list[dict]]) -> list[str]:
    seen, problems = {key for section in tables.values() for table in section for key in table}, []
    for pairs in zips:
        twice = [key for key in pairs if key in seen]
        problems += [f"{key}: set twice, the second time in zip" for key in twice]
        seen |= set(pairs)
        for key in twice:
            del pairs[key]
    return problems


def _axes(zips: list[Pairs], tables: dict[str, list[dict]], limit: int, problems: list[str]) -> list[Axis]:
    """What multiplies, slowest first; nothing is built where there would be too many."""
    alternatives = {section: Tables(section, tuple(tables[section] or [{}])) for section in ALTERNATIVES}
    single = {key: value for section, (table, *_) in _single(tables) for key, value in table.items()}
    counts = {" + ".join(pairs): len(next(iter(pairs.values()))) for pairs in zips}
    counts |= {key: len(value) for key, value in single.items() if isinstance(value, list)}
    counts |= {section: len(found) for section, found in alternatives.items()}
    message = too_many(counts, limit)
    if message:
        problems.append(message)
        return []
    zipped = [
        Axis("zip", tuple(dict(zip(pairs, values, strict=True)) for values in zip(*pairs.values(), strict=True)))
        for pairs in zips
    ]
    axes = zipped + axes_of(single) + [found.axis() for found in alternatives.values()]
    assert prod(len(axis.points) for axis in axes) == prod(counts.values())
    return axes


def _single(tables: dict[str, list[dict]]) -> list[tuple[str, list[dict]]]:
    return [(section, found) for section, found in tables.items() if section not in ALTERNATIVES]


def _build(
    axes: list[Axis], rules: list[Pairs], unsure: set[str], problems: list[str], vocab_of: Callable[[DataSpec], int]
) -> tuple[Case, ...]:
    """The cases of all combinations, each once. A value that makes no case at all is the file's mistake.

    unsure: sections of which something could not be read: a mistake that hangs on a key which is not given there, or
    which a rule might have excluded, is not reported
    """
    cases: dict[str, Case] = {}
    wrong: Counter[tuple[str, bool]] = Counter()  # (line, is in one table of an array) -> cases
    made, points = Resolver(axes, vocab_of), 0
    for combination in expand(axes, rules, value_of):
        points += 1
        try:
            case = made.case_of(combination)
        except Mistakes as error:
            point = point_of(axes, combination)
            sure = [
                mistake
                for mistake in error.found
                if all(key in point or key.partition(".")[0] not in unsure for key in mistake.keys)
            ]
            wrong.update(dict.fromkeys((_numbered(mistake, point) for mistake in sure), 1))
        else:
            cases.setdefault(case.case_id, case)
    for (line, in_table), count in wrong.items():
        if count == points or in_table:
            problems.append(line)
        elif "exclude" not in unsure:
            problems.append(f"{line} (in {count} of {count_of(points, 'case')}; drop these with [[exclude]])")
    if not points and not problems:
        problems.append("exclude leaves no case")
    return tuple(cases.values())


def _numbered(mistake: Mistake, point: Point) -> tuple[str, bool]:
    """`layout.tp = 0: ...` with the number of the table it is in, and whether it is in one of several."""
    section = mistake.keys[0].partition(".")[0]
    number = point.get(f"{section}#")
    return (mistake.line, False) if number is None else (f"{section}[{number}]{mistake.line[len(section) :]}", True)
