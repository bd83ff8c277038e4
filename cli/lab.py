"""The commands about network links: comm, and the lab of shaped links."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from .options import Json, Quiet, option_objects, say

app = typer.Typer()
lab_app = typer.Typer(
    no_args_is_help=True,
    help="Several hosts on this machine, with shaped links between them.",
    epilog="Example: scalade lab up --nodes 2 --link 100mbit,20ms",
)
app.add_typer(lab_app, name="lab")
Names = Annotated[
    list[str] | None,
    typer.Option(
        "--collective", help="Collective to measure; repeat the option for several. Default: all.", metavar="NAME"
    ),
]


class RankOptions(NamedTuple):
    """Which ranks take part, and in which collectives."""

    ranks: Annotated[int | None, typer.Option(help="Ranks to start; default: the layout's, or 2.")] = None
    layout: Annotated[str | None, typer.Option(help="Measure along each dimension of a mesh, as dp_shard=2,tp=2.")] = (
        None
    )
    backend: Annotated[str | None, typer.Option(help="gloo, nccl or mpi; default: nccl with GPUs, else gloo.")] = None
    collective: Names = None


class MessageOptions(NamedTuple):
    """The messages that are sent."""

    min_bytes: Annotated[str, typer.Option(help="Smallest message.", metavar="BYTES")] = "1k"
    max_bytes: Annotated[str, typer.Option(help="Largest message.", metavar="BYTES")] = "4M"
    factor: Annotated[int, typer.Option(help="Ratio of a message size to the one before it.")] = 4
    dtype: Annotated[str, typer.Option(help="float32, float64, float16 or bfloat16.")] = "float32"


class TimingOptions(NamedTuple):
    """The number of timed calls of each size."""

    iterations: Annotated[int, typer.Option(help="Timed calls of each size.")] = 20
    warmup: Annotated[int, typer.Option(help="Untimed calls before them.")] = 5
    seconds_per_size: Annotated[
        float, typer.Option(help="Most seconds for one size; fewer calls are timed where they would take longer.")
    ] = 5.0


class RunOptions(NamedTuple):
    """Repetitions, time limit and place of the sweep."""

    repeats: Annotated[int, typer.Option(help="Runs in fresh processes; an interval needs 6.")] = 1
    time_limit: Annotated[float, typer.Option(help="Time limit of one run.", metavar="SECONDS")] = 1800.0
    results: Annotated[
        Path | None, typer.Option(help="Results folder; default: scalade-results/comm.", metavar="FOLDER")
    ] = None
    lab: Annotated[str | None, typer.Option(help="Measure this lab's links.", metavar="NAME")] = None
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Also run again what failed before.")] = False


@app.command(epilog="Example: scalade comm --ranks 2 --repeats 6")
@option_objects
def comm(
    *,
    ranks: RankOptions,
    messages: MessageOptions,
    timing: TimingOptions,
    runs: RunOptions,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure collectives over message sizes: time, algorithm and bus bandwidth as nccl-tests defines them.

    Started again it runs only what is missing and prints the table. Works under torchrun, too.
    """
    from ..launch.comm import command as measure
    from ..results.terminal import make_console

    quiet = quiet or as_json
    options = measure.CommOptions(
        ranks=ranks.ranks,
        layout=ranks.layout,
        backend=ranks.backend,
        collectives=ranks.collective or (),
        sizes=measure.sizes_between(messages.min_bytes, messages.max_bytes, messages.factor),
        dtype=messages.dtype,
        iterations=timing.iterations,
        warmup=timing.warmup,
        seconds_per_size=timing.seconds_per_size,
    )
    case = measure.plan_case(options)
    summary, folder, code, why = measure.run_comm(
        case,
        runs.results,
        repeats=runs.repeats,
        time_limit_s=runs.time_limit,
        retry_failed=runs.retry_failed,
        quiet=quiet,
        lab=measured(runs.lab, quiet) if runs.lab else None,
    )
    if summary is not None and folder is not None:
        if as_json:
            say(measure.summary_json(case, folder, summary))
        else:
            measure.print_summary(case, folder, summary, make_console())
    elif why:
        print(f"scalade: {why}", file=sys.stderr)
    raise typer.Exit(code)


LabName = Annotated[str, typer.Option("--name", help="Name of the lab.", metavar="NAME")]


def measured(name: str, quiet: bool):
    """The lab of that name with its links measured now; a warning where they are not what was asked for."""
    from ..launch.lab.lab import find

    if not quiet:
        print(f"measuring the links of lab {name} ...", file=sys.stderr)
    lab = find(name).measured_again()
    if slow := lab.slow_links():
        print(f"scalade: lab {name}: {slow}", file=sys.stderr)
    return lab


@lab_app.command(epilog="Example: scalade lab up --nodes 4 --link 100mbit,20ms")
def up(
    nodes: Annotated[int, typer.Option(help="Hosts: n0, n1, ...")] = 2,
    link: Annotated[str, typer.Option(help="Rate each way and round trip, as 1gbit or 100mbit,20ms.")] = "unshaped",
    name: LabName = "lab",
    as_json: Json = False,
) -> None:
    """Make hosts out of network namespaces, with shaped links, and measure these. Needs root."""
    from ..launch.host.link import parse_link
    from ..launch.lab import lab as labs

    made = labs.up(name, nodes, parse_link(link))
    (about,) = [each for each in labs.status() if each["name"] == name]
    say(about if as_json else _lines([about]))
    if slow := made.slow_links():
        print(f"scalade: lab {name}: {slow}", file=sys.stderr)


@lab_app.command(epilog="Example: scalade lab status")
def status(as_json: Json = False) -> None:
    """Show every lab on this machine."""
    from ..launch.lab import lab as labs

    known_labs = labs.status()
    say({"labs": known_labs} if as_json else _lines(known_labs) or ["no lab is up"])


@lab_app.command(
    epilog="Example: scalade lab run -- hostname",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def run(
    command: Annotated[list[str], typer.Argument(help="The command and its arguments.", metavar="COMMAND")],
    name: LabName = "lab",
    nodes: Annotated[int | None, typer.Option(help="Run only on this many nodes, from the first on.")] = None,
    node: Annotated[int | None, typer.Option(help="Run only on this node.")] = None,
) -> None:
    """Run a command on every node at once (a study: `scalade run STUDY --lab NAME`).

    Its environment says SCALADE_LAB_NODE (0, 1, ...), SCALADE_LAB_NODES and SCALADE_LAB_HEAD (node 0's address).
    """
    from ..launch.lab.executor import run_on_nodes
    from ..launch.lab.lab import find

    raise typer.Exit(run_on_nodes(find(name), command, nodes, node))


@lab_app.command(epilog="Example: scalade lab down")
def down(name: LabName = "lab", as_json: Json = False) -> None:
    """Take a lab down, whole or what a killed `up` has left, with all that runs in it. Needs root."""
    from ..launch.lab import lab as labs

    removed = labs.down(name)
    say({"name": name, "removed": removed} if as_json else [f"lab {name} is down: {', '.join(removed)} removed"])


def _lines(labs: list[dict]) -> list[str]:
    lines = []
    for lab in labs:
        facts = [f"lab {lab['name']}", "up" if lab["up"] else f"not up: {lab['why']}"]
        if "nodes" in lab:
            facts.append(f"{lab['nodes']} nodes, {lab['link']}")
        if lab.get("rate_measured_bits_per_s"):
            rate, trip = lab["rate_measured_bits_per_s"] / 1e6, lab["rtt_measured_s"] * 1e3
            facts.append(f"measured {rate:,.4g} Mbit/s, round trip {trip:.3g} ms")
        lines.append("; ".join([*facts, f"{lab['processes']} processes inside"]))
    return lines
