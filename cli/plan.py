"""The command that chooses: which layout to run on so many devices, or which run a budget buys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from .options import Json, option_objects, say
from .predict import MachineName

if TYPE_CHECKING:
    from ..bench.data.spec import DataSpec
    from ..bench.recipe import Recipe
    from ..bench.shape import ModelShape
    from ..parallelism.plan import Question
    from ..parallelism.plan.search import Candidate

app = typer.Typer()


class ModelOptions(NamedTuple):
    """The model, and the step it is trained with."""

    model: Annotated[
        str | None,
        typer.Option(help="A named size, a study file, or layers=...,heads=...,width=...,vocab=...", metavar="MODEL"),
    ] = None
    devices: Annotated[int | None, typer.Option(help="Devices to fill.", metavar="N")] = None
    global_batch: Annotated[int | None, typer.Option(help="Sequences a step; default: about 4M tokens.")] = None
    seq_len: Annotated[int | None, typer.Option(help="Tokens of a sequence; default: the model's.")] = None
    precision: Annotated[str | None, typer.Option(help="fp32, bf16, fp8 or fp4; default: bf16.")] = None


class ProgramOptions(NamedTuple):
    """The program that trains."""

    engine: Annotated[str, typer.Option(help="torch, deepspeed or megatron: whose layouts are searched.")] = "torch"
    stack: Annotated[str | None, typer.Option(help="The program that is predicted; default: the engine.")] = None
    optimizer: Annotated[str | None, typer.Option(help="Optimizer; default: adamw.")] = None
    recompute: Annotated[
        list[str] | None, typer.Option(help="Kind of recomputation to try; repeatable; default: all.", metavar="KIND")
    ] = None


class OutputOptions(NamedTuple):
    """What is shown and written."""

    top: Annotated[int, typer.Option(help="Layouts to show and to write.", min=1)] = 10
    write: Annotated[Path | None, typer.Option(help="Write the study that measures them.", metavar="STUDY")] = None


@app.command(epilog="Example: scalade plan --model llama3-405b --devices 16384 --machine h100 --write best.toml")
@option_objects
def plan(
    *,
    model: ModelOptions,
    machine: MachineName = None,
    program: ProgramOptions,
    output: OutputOptions,
    as_json: Json = False,
) -> None:
    """Rank every possible layout of a model on so many devices, before anything runs.

    Shows the best with what bounds them, the Pareto front of time and memory, and what was refused and why. --write
    makes the study that measures the best.
    """
    from ..parallelism.plan import report, search

    question, recipe, data = _question(model, machine, program)
    found = search(question, top=output.top)
    if output.write:
        _write(output.write, question, found.best, recipe, data)
    say(report.to_dict(found) if as_json else report.to_text(found))


def _question(
    model: ModelOptions, machine: str | None, program: ProgramOptions
) -> tuple[Question, Recipe | None, DataSpec | None]:
    """What is asked, and recipe and data where the model is a study's."""
    from ..launch.predict.profile import find_machine
    from ..parallelism.layout import RECOMPUTE
    from ..parallelism.plan import Question

    if model.model is None or model.devices is None:
        missing = "--model" if model.model is None else "--devices"
        raise typer.BadParameter(f"{missing} is needed: a model and the devices to fill")
    shape, recipe, data = _model(model.model, model.seq_len)
    own = recipe or None
    question = Question(
        shape,
        model.devices,
        find_machine(machine),
        global_batch=_batch(model.global_batch, own),
        engine=program.engine,
        stack=program.stack or "",
        precision=model.precision or (own.precision if own else "bf16"),
        optimizer=program.optimizer or (own.optimizer if own else "adamw"),
        recompute=tuple(program.recompute or RECOMPUTE),
        name=model.model if recipe is None else Path(model.model).stem,
    )
    return question, recipe, data


def _batch(given: int | None, recipe: Recipe | None) -> int:
    """0: the usual one. Raises ValueError for one that is not positive."""
    if given is not None and given < 1:
        raise ValueError(f"--global-batch {given}: must be at least 1 sequence")
    return given or (recipe.global_batch if recipe else 0)


def _model(text: str, seq_len: int | None) -> tuple[ModelShape, Recipe | None, DataSpec | None]:
    """The shape that --model names; of a study file, whose cases must have one model, recipe and data too."""
    from dataclasses import replace

    from ..parallelism.plan.question import model_shape

    if not text.endswith(".toml"):
        return model_shape(text, seq_len), None, None
    from ..launch.study.study import load_study

    cases = load_study(text).all_cases
    names = list(dict.fromkeys(case.model_name for case in cases))
    if len(names) > 1:
        raise ValueError(
            f"--model {text}: its cases have {len(names)} models ({', '.join(names[:4])}): name one of them"
        )
    first = cases[0]
    return (replace(first.shape, seq_len=seq_len) if seq_len else first.shape), first.recipe, first.data


def _write(path: Path, question: Question, best: list[Candidate], recipe: Recipe | None, data: DataSpec | None) -> None:
    from ..parallelism.plan.study import study_text

    if path.suffix != ".toml":
        raise ValueError(f"--write {path}: a study file ends in .toml")
    path.write_text(study_text(question, best, path.stem, recipe, data), "utf-8")
