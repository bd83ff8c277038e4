"""The study that measures the best layouts of a plan, as the text of a TOML file: the choice is by measurement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from ...bench.data.spec import DataSpec
from ...bench.recipe import PRECISIONS, Recipe
from ...bench.shape import SIZES
from .question import Question
from .search import Candidate

STEPS, WARM_UP, REPEATS = 24, 4, 2
SLACK, LEAST_LIMIT_S = 20.0, 300.0  # a run may take so many times its prediction, and this at least


def study_text(
    question: Question,
    candidates: Sequence[Candidate],
    name: str,
    recipe: Recipe | None = None,
    data: DataSpec | None = None,
) -> str:
    """recipe, data: of the study that the model is from; default: Scalade's.

    Raises
    ------
    ValueError: nothing runs in the precision of the plan
    """
    if question.precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise ValueError(f"--write: a study runs in {known}, not in {question.precision}: plan with one of these")
    slowest = max(each.step_time_s for each in candidates)
    settings = _given(
        recipe or Recipe(global_batch=1, steps=1), skip=("steps", "global_batch", "precision", "optimizer")
    )
    settings |= {
        "global_batch": question.global_batch,
        "precision": question.precision,
        "optimizer": question.optimizer,
    }
    lines = [
        f"# The best {len(candidates)} layouts of `scalade plan` for {question.name or 'a model'} on "
        f"{question.devices} devices of {question.machine.name}, to be measured.",
        "# What was predicted of each stands beside it; the rows will hold both.",
        "",
        f"name = {_value(name)}",
        *_section("model", _model(question)),
        *(_section("data", _given(data)) if data else ()),
        *_section("recipe", settings),
        *_section("budget", {"steps": STEPS}),
    ]
    for each in candidates:
        lines += ["", f"# {each.step_time_s:.4g} s a step, {each.memory_bytes / 1e9:.3g} GB", "[[layout]]"]
        lines += _pairs(_given(each.layout))
    lines += _section("measure", {"warmup_steps": WARM_UP})
    run: dict[str, Any] = {"repeats": REPEATS, "max_ranks": question.devices}
    run |= {"device": "cpu", "threads_per_rank": 1} if question.machine.device == "cpu" else {}
    return "\n".join([*lines, *_section("run", run | {"time_limit_s": _limit(slowest)}), ""])


def _limit(step_time_s: float) -> int:
    return round(max(LEAST_LIMIT_S, SLACK * STEPS * step_time_s))


def _model(question: Question) -> dict[str, Any]:
    """The size and what the name does not say, or all numbers of a shape that has no name."""
    shape = question.shape
    given = {each.name: getattr(shape, each.name) for each in fields(shape)}
    if question.name not in SIZES:
        return given
    defaults = {each.name: each.default for each in fields(shape)}
    named = defaults | {"kv_heads": shape.heads} | SIZES[question.name]
    return {"size": question.name} | {key: value for key, value in given.items() if named[key] != value}


def _given(settings: Any, skip: Iterable[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass that are not at their default."""
    there = {each.name: getattr(settings, each.name) for each in fields(settings) if each.name not in tuple(skip)}
    defaults = {each.name: each.default for each in fields(settings)}
    return {name: value for name, value in there.items() if value is not None and value != defaults[name]}


def _section(name: str, settings: dict[str, Any]) -> list[str]:
    return ["", f"[{name}]", *_pairs(settings)] if settings else []


def _pairs(settings: dict[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in settings.items()]


def _value(value: Any) -> str:
    """As TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)
