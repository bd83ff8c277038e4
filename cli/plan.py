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
    from ..parallelism.plan.budget import Market, Site
    from ..parallelism.plan.law_file import FittedLaw
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


class BudgetOptions(NamedTuple):
    """The run to buy, in place of a model."""

    budget: Annotated[float | None, typer.Option(help="What a run may cost: find N, D, layout.", metavar="AMOUNT")] = (
        None
    )
    unit: Annotated[str, typer.Option(help="device-hours, days, joules or dollars.")] = "device-hours"
    law: Annotated[Path | None, typer.Option(help="A fit of L(N, D): scalade fit ... --json.", metavar="FIT")] = None
    diloco_law: Annotated[
        Path | None, typer.Option(help="A fit of L(N, M), for what replicas cost.", metavar="FIT")
    ] = None
    loss_unit: Annotated[str | None, typer.Option(help="nats/token or bits/byte; a law of another is refused.")] = None
    sites: Annotated[list[int] | None, typer.Option(help="Sites that share the devices; repeatable.", metavar="M")] = (
        None
    )
    site_gbps: Annotated[float | None, typer.Option(help="Link of a site, Gbit/s.", metavar="GBPS")] = None
    sync_every: Annotated[
        list[int] | None, typer.Option(help="H of DiLoCo between sites; repeatable; 1: data parallel.", metavar="H")
    ] = None
    outer_bits: Annotated[float, typer.Option(help="Bits of a value of DiLoCo's outer messages.")] = 16.0


@app.command(epilog="Example: scalade plan --model llama3-405b --devices 16384 --machine h100 --write best.toml")
@option_objects
def plan(
    *,
    model: ModelOptions,
    machine: MachineName = None,
    program: ProgramOptions,
    output: OutputOptions,
    spend: BudgetOptions,
    as_json: Json = False,
) -> None:
    """Rank every possible layout of a model on so many devices, before anything runs.

    Shows the best with what bounds them, the Pareto front of time and memory, and what was refused and why. --write
    makes the study that measures the best. With --budget and --law: the model, tokens and layout that reach the lowest
    loss for it.
    """
    if spend.budget is not None:
        _buy(model, machine, program, output, spend, as_json)
        return
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


def _buy(
    model: ModelOptions,
    machine: str | None,
    program: ProgramOptions,
    output: OutputOptions,
    spend: BudgetOptions,
    as_json: bool,
) -> None:
    from ..parallelism.plan import budget_report
    from ..parallelism.plan.budget import purchases
    from ..parallelism.plan.ladder import shapes

    if output.write:
        raise ValueError("--write goes with --model and --devices: plan the model that the budget chose")
    models = shapes(model.model, model.seq_len)
    market = _market(model, machine, program, spend, max(shape.seq_len for shape in models.values()))
    found, refused = purchases(market, models)
    if not found:
        raise ValueError(f"none of {len(models)} models can be trained: {next(iter(refused.values()))}")
    tell = budget_report.to_dict if as_json else budget_report.to_text
    say(tell(market, found, refused))


def _market(
    model: ModelOptions, machine: str | None, program: ProgramOptions, spend: BudgetOptions, seq_len: int
) -> Market:
    from ..launch.predict.profile import find_machine
    from ..parallelism.layout import RECOMPUTE
    from ..parallelism.plan.budget import Budget, Market
    from ..parallelism.plan.question import usual_batch

    budget = Budget(spend.budget or 0.0, spend.unit)
    if spend.law is None or model.devices is None:
        missing = "--law FIT" if spend.law is None else "--devices"
        raise ValueError(f"--budget needs {missing}")
    law, diloco = _laws(spend)
    return Market(
        budget=budget,
        machine=find_machine(machine),
        devices=model.devices,
        law=law,
        diloco=diloco,
        global_batch=_batch(model.global_batch, None) or usual_batch(max(1, model.devices), seq_len),
        sites=_sites(spend),
        engine=program.engine,
        stack=program.stack or "",
        precision=model.precision or "bf16",
        recompute=tuple(program.recompute or RECOMPUTE),
    )


def _laws(spend: BudgetOptions) -> tuple[FittedLaw, FittedLaw | None]:
    """Raises ValueError where they lack a role, or their losses are of different units."""
    from ..parallelism.plan.law_file import BITS, NATS, need_roles, read_law

    assert spend.law is not None
    law = read_law(spend.law)
    need_roles(law, ("params", "tokens"), "--law")
    if spend.loss_unit not in (None, NATS, BITS):
        raise ValueError(f"--loss-unit {spend.loss_unit}: allowed are {NATS}, {BITS}")
    if spend.loss_unit not in (None, law.unit):
        raise ValueError(f"--law {spend.law}: its loss ({law.response}) is in {law.unit}, not in {spend.loss_unit}")
    if spend.diloco_law is None:
        return law, None
    diloco = read_law(spend.diloco_law, "--diloco-law")
    need_roles(diloco, ("params", "replicas"), "--diloco-law")
    if diloco.unit != law.unit:
        raise ValueError(
            f"--diloco-law {spend.diloco_law}: its loss ({diloco.response}) is in {diloco.unit}, that of --law in "
            f"{law.unit}"
        )
    return law, diloco


def _sites(spend: BudgetOptions) -> tuple[Site, ...]:
    """The ways to train over sites. Raises ValueError where a number is missing or wrong."""
    from ..parallelism.plan.budget import Site

    if not spend.sites:
        return ()
    if spend.site_gbps is None or spend.site_gbps <= 0:
        raise ValueError(f"--sites needs --site-gbps, more than 0: found {spend.site_gbps}")
    if min(spend.sites) < 2 or spend.outer_bits <= 0:
        raise ValueError("--sites must be at least 2, --outer-bits more than 0")
    every = spend.sync_every or ([1, 30] if spend.diloco_law else [1])
    if min(every) < 1:
        raise ValueError(f"--sync-every {min(every)}: must be at least 1")
    if max(every) > 1 and spend.diloco_law is None:
        raise ValueError("--sync-every above 1 is DiLoCo, which costs loss: give its --diloco-law")
    rate = spend.site_gbps * 1e9
    return tuple(
        Site(rate, m, h, spend.outer_bits) if h > 1 else Site(rate, m)
        for m in spend.sites
        for h in dict.fromkeys(every)
    )
