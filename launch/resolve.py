"""From a point of a study (values of the keys it names) to the case it means."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

from ..bench.data.spec import DataSpec
from ..bench.flops import flops_per_token
from ..bench.measure import Measure
from ..bench.mistakes import Mistake, Mistakes
from ..bench.recipe import Recipe
from ..bench.shape import SIZES, ModelShape, name_of
from ..parallelism.diloco.config import Outer
from ..parallelism.layout import Layout, canonical
from .case import Case
from .errors import shown, unknown
from .expand import Point
from .here import missing_files
from .schema import BATCH, BUDGET, INT_LIMIT, KEYS, RATE, SECTIONS

SEQ_LEN = 256  # where neither the study nor the size says


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
    Mistakes: the values make no model, no recipe or no layout at all; all that is wrong with them
    """
    parts: dict[str, dict] = {section: {} for section in SECTIONS}
    for key, value in point.items():
        section, dot, name = key.partition(".")
        if dot:
            parts[section][name] = value
    found: list[Mistake] = []
    data = _built(found, DataSpec, **parts["data"])
    measure = _built(found, Measure, **parts["measure"])
    outer = _built(found, Outer, **parts["outer"])
    layout = _built(found, Layout, **parts["layout"])
    values = _shape(parts["model"], found)
    shape = None
    if values is not None:
        values["vocab"] = values.get("vocab") or _vocab(data, vocab_of, found)
        shape = _built(found, ModelShape, **values)
    ranks = layout.ranks * outer.placed_replicas if layout and outer else None
    recipe = _recipe(parts["recipe"], parts["budget"], shape, ranks, found)
    if found:
        raise Mistakes(found)
    name = name_of(shape, parts["model"].get("size", ""))
    return Case(shape, data, recipe, canonical(layout), outer, measure, model_name=name)


def _built(found: list[Mistake], kind: Callable, **values: object) -> Any:
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
    given = {name: value for name, value in keys.items() if name != "size"}
    size = keys.get("size")
    if size is not None and size not in SIZES:
        found.append(Mistake(("model.size",), f"model.size = {shown(size)}: {unknown(size, SIZES, 'size')}"))
        return None
    values = {"seq_len": SEQ_LEN} | (SIZES[size] if size else {}) | given
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
    meant_for = recipe.get("lr_width", 0)
    if meant_for < 0:
        found.append(Mistake(("recipe.lr_width",), f"recipe.lr_width = {meant_for}: must be at least 0"))
    batch = _one(recipe, BATCH, "recipe", found)
    kind = _one(budget, BUDGET, "budget", found)
    if batch and recipe[batch] < 1:
        found.append(Mistake((f"recipe.{batch}",), f"recipe.{batch} = {recipe[batch]}: must be at least 1"))
        batch = None
    if kind and not budget[kind] > 0:
        found.append(Mistake((f"budget.{kind}",), f"budget.{kind} = {budget[kind]}: must be more than 0"))
        kind = None
    if shape is None or batch is None:
        return None
    count = recipe[batch]
    if batch == "batch_tokens":
        if count % shape.seq_len:
            near = max(1, round(count / shape.seq_len)) * shape.seq_len
            line = f"recipe.batch_tokens = {count}: must be a multiple of model.seq_len = {shape.seq_len}"
            found.append(Mistake(("recipe.batch_tokens", "model.seq_len"), f"{line}, the nearest is {near}"))
            return None
        count //= shape.seq_len
    elif batch == "batch_per_rank":
        if ranks is None:
            return None
        count *= ranks
    if count * shape.seq_len >= INT_LIMIT:
        line = f"recipe.{batch} = {recipe[batch]}: more tokens in a step than 2**63"
        found.append(Mistake((f"recipe.{batch}", "model.seq_len"), line))
        return None
    steps = _steps(kind, budget, shape, count, found) if kind else None
    if found or steps is None:
        return None
    if meant_for:
        rest["lr"] = rest.get("lr", Recipe.lr) * meant_for / shape.width
    return _built(found, Recipe, global_batch=count, steps=steps, **rest)


def _steps(kind: str, budget: dict, shape: ModelShape, global_batch: int, found: list[Mistake]) -> int | None:
    """Steps of the budget, rounded up."""
    amount = budget[kind]
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
        found.append(Mistake((f"budget.{kind}",), f"budget.{kind} = {amount}: more than 2**63 tokens"))
        return None
    return steps


def _one(table: dict, names: tuple[str, ...], section: str, found: list[Mistake]) -> str | None:
    given = [name for name in names if name in table]
    if len(given) == 1:
        return given[0]
    said = f"found {' and '.join(given)}" if given else "found none"
    line = f"{section}: give exactly one of {', '.join(names)}; {said}"
    found.append(Mistake(tuple(f"{section}.{name}" for name in given or names), line))
    return None
