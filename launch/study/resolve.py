"""From a combination of a study's lists (values of the keys it names) to the case it means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import partial
from typing import Any, Generic, TypeVar

from ...bench.data.spec import DataSpec
from ...bench.flops import flops_per_token
from ...bench.measure import Measure
from ...bench.mistakes import Mistake, Mistakes
from ...bench.recipe import Recipe
from ...bench.shape import SIZES, ModelShape, name_of
from ...parallelism.diloco.config import Outer
from ...parallelism.layout import Layout, canonical
from .case import Case
from .errors import shown, unknown
from .expand import Axis, Combination, Point, chooser
from .schema import BATCH, BUDGET, INT_LIMIT, KEYS, RATE, SECTIONS
from .unmet import missing_files

Part = TypeVar("Part")
SEQ_LEN = 256  # where neither the study nor the size says
PLAIN = {"data": DataSpec, "measure": Measure, "outer": Outer, "layout": Layout}  # parts that hang on no other section


@dataclass(frozen=True, slots=True)
class Made(Generic[Part]):
    """A part of a case, None where it cannot be made, and what is wrong with it."""

    part: Part | None
    wrong: tuple[Mistake, ...]
    name: str = ""  # of a model


def value_of(point: Point, key: str) -> object:
    """The value of a key at a point: as written, else the named size's, else the default; None where it has none."""
    if key in point:
        return point[key]
    section, name = key.split(".")
    default = SEQ_LEN if key == "model.seq_len" else KEYS[key].default
    return SIZES.get(str(point.get("model.size")), {}).get(name, default) if section == "model" else default


class Resolver:
    """The cases of combinations. Each part of a case is made, and what is wrong with it found, once for all
    combinations that agree in what it hangs on; the cases share it."""

    def __init__(self, axes: Sequence[Axis], vocab_of: Callable[[DataSpec], int]) -> None:
        self.axes, self.vocab_of = axes, vocab_of
        self.sections = {section: chooser(axes, partial(_in_section, f"{section}.")) for section in SECTIONS}
        self.by_ranks = any("recipe.batch_per_rank" in point for axis in axes for point in axis.points)
        self.parts: dict[object, Made] = {}
        self.shapes: dict[object, Made[ModelShape]] = {}
        self.recipes: dict[object, Made[Recipe]] = {}

    def case_of(self, combination: Combination) -> Case:
        """The case that a combination means.

        Raises
        ------
        Mistakes: the values make no model, no recipe or no layout at all; all that is wrong with them
        """
        at = {section: chosen(combination) for section, (_, chosen) in self.sections.items()}
        data, measure, outer, layout = (
            self._part(kind, section, at[section], combination) for section, kind in PLAIN.items()
        )
        of_shape = at["model"], at["data"]
        shape = self.shapes.get(of_shape)
        if shape is None:
            shape = self.shapes[of_shape] = self._shape(combination, data.part)
        ranks = layout.part.ranks * outer.part.placed_replicas if self.by_ranks and layout.part and outer.part else None
        of_recipe = at["recipe"], at["budget"], of_shape, ranks
        recipe = self.recipes.get(of_recipe)
        if recipe is None:
            recipe = self.recipes[of_recipe] = self._recipe(combination, shape.part, ranks)
        wrong = data.wrong + measure.wrong + outer.wrong + layout.wrong + shape.wrong + recipe.wrong
        if wrong:
            raise Mistakes(wrong)
        # None only where something is wrong with it
        assert shape.part and data.part and recipe.part and layout.part and outer.part and measure.part
        return Case(shape.part, data.part, recipe.part, layout.part, outer.part, measure.part, model_name=shape.name)

    def values(self, section: str, combination: Combination) -> dict[str, Any]:
        """What the combination sets in a section, by the key's own name."""
        values = {}
        for position in self.sections[section][0]:
            for key, value in self.axes[position].points[combination[position]].items():
                of, dot, name = key.partition(".")
                if dot and of == section:
                    values[name] = value
        return values

    def _part(self, kind: type, section: str, at: object, combination: Combination) -> Made:
        made = self.parts.get((section, at))
        if made is None:
            wrong: list[Mistake] = []
            part = _built(wrong, kind, **self.values(section, combination))
            if kind is Layout and part is not None:
                part = canonical(part)
            made = self.parts[section, at] = Made(part, tuple(wrong))
        return made

    def _shape(self, combination: Combination, data: DataSpec | None) -> Made[ModelShape]:
        wrong: list[Mistake] = []
        settings = self.values("model", combination)
        values, shape, name = _shape(settings, wrong), None, ""
        if values is not None:
            values["vocab"] = values.get("vocab") or _vocab(data, self.vocab_of, wrong)
            shape = _built(wrong, ModelShape, **values)
        if shape is not None:
            name = name_of(shape, settings.get("size", ""))
        return Made(shape, tuple(wrong), name)

    def _recipe(self, combination: Combination, shape: ModelShape | None, ranks: int | None) -> Made[Recipe]:
        wrong: list[Mistake] = []
        recipe, budget = self.values("recipe", combination), self.values("budget", combination)
        return Made(_recipe(recipe, budget, shape, ranks, wrong), tuple(wrong))


def _in_section(start: str, key: str) -> bool:
    return key.startswith(start)


def _built(found: list[Mistake], kind: Callable[..., Part], **values: object) -> Part | None:
    """The part, or None where there is something wrong with it."""
    try:
        return kind(**values)
    except Mistakes as error:
        found += error.found
        return None


def _vocab(data: DataSpec | None, vocab_of: Callable[[DataSpec], int], found: list[Mistake]) -> int:
    """The data's; any, where that cannot be told, so that the rest of the shape is looked at all the same."""
    if data is None:
        return 1
    try:
        return vocab_of(data)
    except ValueError as error:
        missing = missing_files(data)
        more = "; and data.vocab is not given, so the tokenizer's size is looked for beside it"
        line = f"{missing[0]}{more}" if missing else str(error)
        found.append(Mistake(("data.path", "data.vocab"), line))
        return 1


def _shape(keys: dict, found: list[Mistake]) -> dict | None:
    """Arguments of ModelShape; without `vocab` where the data decides it."""
    settings = {name: value for name, value in keys.items() if name != "size"}
    size = keys.get("size")
    if size is not None and size not in SIZES:
        found.append(Mistake(("model.size",), f"model.size = {shown(size)}: {unknown(size, SIZES, 'size')}"))
        return None
    values = {"seq_len": SEQ_LEN} | (SIZES[size] if size else {}) | settings
    if "heads" in values:
        values.setdefault("kv_heads", values["heads"])
    needed = [f.name for f in fields(ModelShape) if f.default is MISSING and f.name not in ("kv_heads", "vocab")]
    missing = [name for name in needed if name not in values]
    if missing:
        line = f"model: set size to a named size, or say the shape; missing: {', '.join(missing)}"
        found.append(Mistake(("model.size", *(f"model.{name}" for name in missing)), line))
        return None
    return values


def _recipe(
    recipe: dict, budget: dict, shape: ModelShape | None, ranks: int | None, found: list[Mistake]
) -> Recipe | None:
    """None where something is wrong with it, or with what it hangs on."""
    rest = {name: value for name, value in recipe.items() if name not in BATCH + RATE}
    _built(found, Recipe, **{"global_batch": 1, "steps": 1} | rest)
    lr_width = recipe.get("lr_width", 0)
    if lr_width < 0:
        found.append(Mistake(("recipe.lr_width",), f"recipe.lr_width = {lr_width}: must be at least 0"))
    batch = _one(recipe, BATCH, "recipe", found)
    kind = _one(budget, BUDGET, "budget", found)
    if batch and recipe[batch] < 1:
        found.append(Mistake((f"recipe.{batch}",), f"recipe.{batch} = {recipe[batch]}: must be at least 1"))
        batch = None
    if kind and not budget[kind] > 0:
        found.append(Mistake((f"budget.{kind}",), f"budget.{kind} = {budget[kind]}: must be more than 0"))
        kind = None
    sequences = _global_batch(batch, recipe[batch], shape, ranks, found) if shape and batch else None
    if shape is None or sequences is None:
        return None
    steps = _steps(kind, budget, shape, sequences, found) if kind else None
    if found or steps is None:
        return None
    if lr_width:
        rest["lr"] = rest.get("lr", Recipe.lr) * lr_width / shape.width
    return _built(found, Recipe, global_batch=sequences, steps=steps, **rest)


def _global_batch(key: str, count: int, shape: ModelShape, ranks: int | None, found: list[Mistake]) -> int | None:
    """Sequences of a step, from the one key of BATCH that is given."""
    sequences = count
    if key == "batch_tokens":
        if count % shape.seq_len:
            near = max(1, round(count / shape.seq_len)) * shape.seq_len
            line = f"recipe.batch_tokens = {count}: must be a multiple of model.seq_len = {shape.seq_len}"
            found.append(Mistake(("recipe.batch_tokens", "model.seq_len"), f"{line}, the nearest is {near}"))
            return None
        sequences = count // shape.seq_len
    elif key == "batch_per_rank":
        if ranks is None:
            return None
        sequences = count * ranks
    if sequences * shape.seq_len >= INT_LIMIT:
        line = f"recipe.{key} = {count}: more tokens in a step than 2**63"
        found.append(Mistake((f"recipe.{key}", "model.seq_len"), line))
        return None
    return sequences


def _steps(kind: str, budget: dict, shape: ModelShape, global_batch: int, found: list[Mistake]) -> int | None:
    """Steps of the budget, rounded up."""
    amount = budget[kind]
    tokens_per_step = global_batch * shape.seq_len
    if kind == "steps":
        steps = amount
    else:
        per_token = {"tokens": 1, "tokens_per_param": 1 / shape.params_total, "flops": flops_per_token(shape)["6n"]}[
            kind
        ]
        tokens = amount / per_token if amount < INT_LIMIT * per_token else math.inf
        steps = math.inf if math.isinf(tokens) else math.ceil(tokens / tokens_per_step * (1 - 1e-12))
        # ... since division may land a hair above a whole
    steps = max(1, steps)
    if steps * tokens_per_step >= INT_LIMIT:
        found.append(Mistake((f"budget.{kind}",), f"budget.{kind} = {amount}: more than 2**63 tokens"))
        return None
    return steps


def _one(table: dict, names: tuple[str, ...], section: str, found: list[Mistake]) -> str | None:
    given = [name for name in names if name in table]
    if len(given) == 1:
        return given[0]
    what_is_there = f"found {' and '.join(given)}" if given else "found none"
    line = f"{section}: give exactly one of {', '.join(names)}; {what_is_there}"
    found.append(Mistake(tuple(f"{section}.{name}" for name in given or names), line))
    return None
