"""What tells cases apart, for people: model and layout, and where several share these, the fields in which they differ.

tiny-100k fsdp2 lr=0.001 seed=3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from .case import PARTS, Case

PREFIX = {"shape": "model_", "data": "data_", "outer": "outer_", "measure": "measure_"}  # as columns of the table

Field = tuple[str, str]  # part, its field


def labels(cases: Sequence[Case]) -> list[str]:
    """One for each case, in order."""
    names = [f"{case.model_name or 'model'} {case.layout_name}" for case in cases]
    for part, field in _needed(cases, names):
        column = PREFIX.get(part, "") + field
        names = [
            f"{name} {column}={_value(getattr(getattr(case, part), field))}"
            for name, case in zip(names, cases, strict=True)
        ]
    return names


def _needed(cases: Sequence[Case], names: Sequence[str]) -> list[Field]:
    """The fields that tell apart what the names do not, none that another has said already."""
    keys: list[tuple] = [(name,) for name in names]
    distinct, needed = len(set(keys)), []
    for part, field in _differing(cases, names):
        if distinct == len(cases):
            break
        more = [(*key, getattr(getattr(case, part), field)) for key, case in zip(keys, cases, strict=True)]
        if (count := len(set(more))) > distinct:
            keys, distinct = more, count
            needed.append((part, field))
    return needed


def _differing(cases: Sequence[Case], names: Sequence[str]) -> list[Field]:
    """Fields that differ among cases of one name, in the order of the parts."""
    first: dict[str, Case] = {}
    found: set[Field] = set()
    names_of = {part: [field.name for field in fields(kind)] for part, kind in PARTS.items()}
    for name, case in zip(names, cases, strict=True):
        other = first.setdefault(name, case)
        for part, its_fields in names_of.items():
            one, two = getattr(case, part), getattr(other, part)
            if one is not two and one != two:
                found |= {(part, field) for field in its_fields if getattr(one, field) != getattr(two, field)}
    order = [(part, field) for part, its_fields in names_of.items() for field in its_fields]
    return [each for each in order if each in found]


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
