"""From a point of a study (values of the keys it names) to the case it means."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, fields

from ..bench.data.spec import DataSpec
from ..bench.flops import flops_per_token
from ..bench.measure import Measure
from ..bench.recipe import Recipe
from ..bench.shape import SIZES, ModelShape
from ..parallelism.diloco.config import Outer
from ..parallelism.layout import Layout, canonical
from .case import Case
from .errors import shown, unknown
from .expand import Point
from .schema import BATCH, BUDGET, INT_LIMIT, KEYS, RATE, SECTIONS

SEQ_LEN = 256  # where neither the study nor the size says
NAMING = ("layers", "heads", "kv_heads", "width", "ffn", "mlp", "qk_norm")  # what makes a size another model


def value_of(point: Point, key: str) -> object:
    """The value of a key at a point: as written, else the named size's, else the default; None where it has none."""
    if key in point:
        return point[key]
    section, name = key.split(".")
    size = SIZES.get(point.get("model.size"), {}) if section == "model" else {}
    return size.get(name, SEQ_LEN if key == "model.seq_len" else KEYS[key].default)


def case_of(point: Point, vocab_of: Callable[[DataSpec], int]) -> Case:
    """The case that a point means.

    Raises
    ------
    ValueError: one line per problem; the values make no model, no recipe or no layout at all
    """
    parts: dict[str, dict] = {section: {} for section in SECTIONS}
    for key, value in point.items():
        section, dot, name = key.partition(".")
        if dot:
            parts[section][name] = value
    problems: list[str] = []

    def build(kind: Callable, **values: object) -> object | None:
        try:
            return kind(**values)
        except ValueError as error:
            problems.append(str(error))
            return None

    data = build(DataSpec, **parts["data"])
    measure = build(Measure, **parts["measure"])
    outer = build(Outer, **parts["outer"])
    layout = build(Layout, **parts["layout"])
    name, values = None, None
    try:
        name, values = _shape(parts["model"])
    except ValueError as error:
        problems.append(str(error))
    shape = None
    if values is not None and data is not None:
        try:
            values.setdefault("vocab", 0) or values.update(vocab=vocab_of(data))
        except ValueError as error:
            problems.append(str(error))
        else:
            shape = build(ModelShape, **values)
    recipe = None
    if shape and layout and outer:
        try:
            recipe = _recipe(parts["recipe"], parts["budget"], shape, layout.ranks * outer.placed_replicas)
        except ValueError as error:
            problems.append(str(error))
    else:  # say what is wrong with the recipe itself in the same breath
        own = {name: value for name, value in parts["recipe"].items() if name not in BATCH + RATE}
        build(Recipe, **{"global_batch": 1, "steps": 1} | own)
    if problems:
        raise ValueError("\n".join(problems))
    return Case(shape, data, recipe, canonical(layout), outer, measure, model_name=name)


def _shape(keys: dict) -> tuple[str, dict]:
    """Name and arguments of ModelShape; without `vocab` where the data decides it."""
    given = {name: value for name, value in keys.items() if name != "size"}
    size = keys.get("size")
    if size is not None and size not in SIZES:
        raise ValueError(f"model.size = {shown(size)}: {unknown(size, SIZES, 'size')}")
    values = {"seq_len": SEQ_LEN} | (SIZES[size] if size else {}) | given
    if "heads" in values:
        values.setdefault("kv_heads", values["heads"])
    needed = [f.name for f in fields(ModelShape) if f.default is MISSING and f.name not in ("kv_heads", "vocab")]
    missing = [name for name in needed if name not in values]
    if missing:
        raise ValueError(f"model: set size to a named size, or say the shape; missing: {', '.join(missing)}")
    if not size:
        return f"{values['layers']}x{values['width']}", values
    changed = [name for name in NAMING if name in given and given[name] != SIZES[size].get(name)]
    return ",".join([size, *(f"{name}={given[name]}" for name in changed)]), values


def _recipe(recipe: dict, budget: dict, shape: ModelShape, ranks: int) -> Recipe:
    batch = _one(recipe, BATCH, "recipe")
    count = recipe[batch]
    if count < 1:
        raise ValueError(f"recipe.{batch} = {count}: must be at least 1")
    if batch == "batch_tokens":
        if count % shape.seq_len:
            near = max(1, round(count / shape.seq_len)) * shape.seq_len
            raise ValueError(
                f"recipe.batch_tokens = {count}: must be a multiple of model.seq_len = {shape.seq_len}, "
                f"the nearest is {near}"
            )
        count //= shape.seq_len
    elif batch == "batch_per_rank":
        count *= ranks
    if count * shape.seq_len >= INT_LIMIT:
        raise ValueError(f"recipe.{batch} = {recipe[batch]}: more tokens in a step than 2**63")
    rest = {name: value for name, value in recipe.items() if name not in BATCH + RATE}
    meant_for = recipe.get("lr_width", 0)
    if meant_for < 0:
        raise ValueError(f"recipe.lr_width = {meant_for}: must be at least 0")
    if meant_for:
        rest["lr"] = rest.get("lr", Recipe.lr) * meant_for / shape.width
    return Recipe(global_batch=count, steps=_steps(budget, shape, count), **rest)


def _steps(budget: dict, shape: ModelShape, global_batch: int) -> int:
    """Steps of the budget, rounded up."""
    kind = _one(budget, BUDGET, "budget")
    amount = budget[kind]
    if not amount > 0:
        raise ValueError(f"budget.{kind} = {amount}: must be more than 0")
    tokens_per_step = global_batch * shape.seq_len
    if kind == "steps":
        steps = amount
    else:
        per_token = {
            "tokens": 1, "tokens_per_param": 1 / shape.params_total, "flops": flops_per_token(shape)["6n"],
        }[kind]  # fmt: skip
        steps = math.ceil(amount / per_token / tokens_per_step * (1 - 1e-12))  # division may land a hair above a whole
    steps = max(1, steps)
    if steps * tokens_per_step >= INT_LIMIT:
        raise ValueError(f"budget.{kind} = {amount}: more than 2**63 tokens")
    return steps


def _one(table: dict, names: tuple[str, ...], section: str) -> str:
    given = [name for name in names if name in table]
    if len(given) == 1:
        return given[0]
    found = f"found {' and '.join(given)}" if given else "found none"
    raise ValueError(f"{section}: give exactly one of {', '.join(names)}; {found}")
