"""The commands about links: comm, and the lab of shaped ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .cli_read import Json, say

app = typer.Typer()
Names = Annotated[list[str] | None, typer.Option("--collective", help="Again for more; default: all.", metavar="NAME")]


@app.command(epilog="Example: scalade comm --ranks 2 --repeats 6")
def comm(
    ranks: Annotated[int | None, typer.Option(help="Ranks to start; default: the layout's, or 2.")] = None,
    layout: Annotated[str | None, typer.Option(help="Measure along each dimension of a mesh, as dp_shard=2,tp=2.")]
    = None,
    backend: Annotated[str | None, typer.Option(help="gloo, nccl or mpi; default: nccl with GPUs, else gloo.")] = None,
    collective: Names = None,
    min_bytes: Annotated[str, typer.Option(help="Smallest message.", metavar="BYTES")] = "1k",
    max_bytes: Annotated[str, typer.Option(help="Largest message.", metavar="BYTES")] = "4M",
    factor: Annotated[int, typer.Option(help="Between two sizes.")] = 4,
    dtype: Annotated[str, typer.Option(help="float32, float64, float16 or bfloat16.")] = "float32",
    iterations: Annotated[int, typer.Option(help="Timed calls of each size.")] = 20,
    warmup: Annotated[int, typer.Option(help="Calls before them.")] = 5,
    seconds_per_size: Annotated[float, typer.Option(help="Fewer calls where they would take longer.")] = 5.0,
    repeats: Annotated[int, typer.Option(help="Runs in fresh processes; an interval wants 6.")] = 1,
    time_limit: Annotated[float, typer.Option(help="Of one run.", metavar="SECONDS")] = 1800.0,
    results: Annotated[Path | None, typer.Option(help="Default: scalade-results/comm.", metavar="FOLDER")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Also run again what failed before.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Measure collectives over message sizes: time, algorithm and bus bandwidth as nccl-tests defines them.

    Started again it runs only what is missing and prints the table. Works under torchrun, too.
    """
    from .launch import comm as measure
    from .launch.grid import make_console

    case = measure.plan_case(
        ranks=ranks, layout=layout, backend=backend, collectives=collective or (),
        sizes=measure.sizes_between(min_bytes, max_bytes, factor), dtype=dtype, iterations=iterations, warmup=warmup,
        seconds_per_size=seconds_per_size,
    )  # fmt: skip
    summary, folder, code, why = measure.run_comm(
        case, results, repeats=repeats, time_limit_s=time_limit, retry_failed=retry_failed, quiet=quiet or as_json,
    )  # fmt: skip
    if summary is not None and folder is not None:
        if as_json:
            say(measure.told(case, folder, summary))
        else:
            measure.print_told(case, folder, summary, make_console())
    elif why:
        print(f"scalade: {why}", file=sys.stderr)
    raise typer.Exit(code)
