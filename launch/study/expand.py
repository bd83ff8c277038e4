"""From a study's lists to its points: lists multiply, `zip` walks several together, `exclude` drops combinations.

A point is one value for each dotted key that the study names. Everything else has its default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import filterfalse, product
from math import prod
from operator import itemgetter

from ...results.wording import count_of

MOST_RUNS = 1_000_000  # that run.max_runs may ask for: some 2 KB and 50 us each

Point = dict[str, object]
Combination = tuple[int, ...]  # of each axis, the number of one of its points


@dataclass(frozen=True)
class Axis:
    """Alternatives that multiply with those of every other axis; each sets one or several keys."""

    label: str  # for messages
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Tables:
    """Alternative tables of one section (`[[layout]]`): the lists within each multiply, the tables add up."""

    section: str
    tables: tuple[Mapping[str, object], ...]

    def __len__(self) -> int:
        return sum(prod(len(_many(value)) for value in table.values()) for table in self.tables)

    def axis(self) -> Axis:
        points = []
        for number, table in enumerate(self.tables):
            where = {f"{self.section}#": number} if len(self.tables) > 1 else {}  # for messages
            points += [where | dict(zip(table, values, strict=True)) for values in product(*map(_many, table.values()))]
        return Axis(self.section, tuple(points))


def axes_of(table: Mapping[str, object]) -> list[Axis]:
    """One axis for each key of a table whose keys are dotted names."""
    return [Axis(key, tuple({key: one} for one in _many(value))) for key, value in table.items()]


def too_many(counts: Mapping[str, int], limit: int) -> str | None:
    """What to say where the product of the counts (by label) is over the limit; computed before anything is built."""
    total = prod(counts.values())
    if total <= limit:
        return None
    largest = sorted(((n, label) for label, n in counts.items() if n > 1), key=lambda item: -item[0])[:8]
    product_of = " x ".join(f"{label} {n}" for n, label in largest)
    return f"the lists multiply to {count_of(total, 'case')}: {product_of}; {limit_is(limit, total)}"


def too_many_runs(cases: int, repeats: int, limit: int) -> str | None:
    """Likewise of repeats, which are counted and not built."""
    total = cases * repeats
    if total <= limit:
        return None
    fewer = f"; set run.repeats to at most {limit // cases}" if cases <= limit else ""
    made = f"{count_of(cases, 'case makes', 'cases make')} {count_of(total, 'run')}"
    return f"run.repeats = {repeats}: {made}; {limit_is(limit, total)}{fewer}"


def limit_is(limit: int, wanted: int) -> str:
    line = f"the limit is run.max_runs = {limit}"
    return f"{line}, which may be set to {wanted}" if wanted <= MOST_RUNS else f"{line}, at most {MOST_RUNS} can be set"


def expand(
    axes: Sequence[Axis], excluded: Sequence[Mapping[str, list]], value_of: Callable[[Point, str], object]
) -> Iterator[Combination]:
    """All combinations, the last axis fastest, without those that an exclusion matches in all of its keys.

    value_of: the value of a key at a point, its default where the point does not name it.
    """
    combinations = product(*(range(len(axis.points)) for axis in axes))
    return filterfalse(Exclusions(axes, excluded, value_of).match, combinations) if excluded else combinations


def point_of(axes: Sequence[Axis], combination: Combination) -> Point:
    point: Point = {}
    for axis, index in zip(axes, combination, strict=True):
        point |= axis.points[index]
    return point


def chooser(axes: Sequence[Axis], wanted: Callable[[str], bool]) -> tuple[list[int], Callable[[Combination], object]]:
    """Which axes set a key that is wanted; and of a combination its part on those axes, as something to look up by."""
    found = [at for at, axis in enumerate(axes) if any(wanted(key) for point in axis.points for key in point)]
    return found, itemgetter(*found) if found else lambda combination: None


class Exclusions:
    """Which combinations the rules drop. A rule is a bit of an integer, a key's value has the bits of the rules that
    let it pass: a combination costs one look-up for each key that the rules name, however many rules there are."""

    def __init__(
        self, axes: Sequence[Axis], rules: Sequence[Mapping[str, list]], value_of: Callable[[Point, str], object]
    ) -> None:
        self.axes, self.value_of, self.all = axes, value_of, (1 << len(rules)) - 1
        self.keys = [self._key(key, rules) for key in dict.fromkeys(key for rule in rules for key in rule)]

    def _key(self, key: str, rules: Sequence[Mapping[str, list]]) -> tuple:
        silent, by_value = self.all, dict[object, int]()
        for number, rule in enumerate(rules):
            if key in rule:
                silent ^= 1 << number
                for value in rule[key]:
                    by_value[value] = by_value.get(value, 0) | 1 << number
        size = "model.size" if key.startswith("model.") else key  # a size has values for the model's keys
        return key, silent, by_value, chooser(self.axes, lambda name: name in (key, size))[1], dict[object, int]()

    def match(self, combination: Combination) -> bool:
        left = self.all
        for key, silent, by_value, chosen, known in self.keys:
            at = chosen(combination)
            if at not in known:
                value = self.value_of(point_of(self.axes, combination), key)
                known[at] = silent | by_value.get(value, 0)
            left &= known[at]
            if not left:
                return False
        return True


def _many(value: object) -> list:
    return value if isinstance(value, list) else [value]
