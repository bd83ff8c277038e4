"""`scalade comm`: sweeps over collectives, each repeat a run in fresh processes and a row, with its sizes in `comm`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...results.schema.columns import COLLECTIVES
from ...results.terminal import print_grid, say
from ..host import machine
from ..host.placement import find_placement
from ..run import as_json, as_text, run_here, work_here
from ..study.comm_case import BACKENDS, CommCase, parse_bytes, parse_layout
from ..study.schema import Run
from ..sweep.summary import Summary

if TYPE_CHECKING:
    from rich.console import Console

    from ..lab.lab import Lab


@dataclass(frozen=True)
class Planned:
    case: CommCase
    skip_reason: str | None = None
    predicted_memory_bytes: int | None = None


@dataclass(frozen=True)
class CommStudy:
    """What a sweep of runs asks of a study, for the one case there is."""

    case: CommCase
    run: Run
    name: str = "comm"
    path: Path = Path("comm")  # for messages: there is no file

    @property
    def results(self) -> Path:
        return Path("scalade-results") / self.name

    @property
    def device(self) -> str:
        return "cuda" if self.case.backend == "nccl" else "cpu"

    def threads_per_rank(self, one_host: bool = True) -> int:
        return self.run.threads_per_rank

    def cases(self, world_size: int | None = None) -> list[Planned]:
        return [Planned(self.case)]

    def warnings(self) -> list[str]:
        return []


def sizes_between(least: str, most: str, factor: int) -> tuple[int, ...]:
    """Bytes from `least` to `most`, each `factor` times the one before.

    Raises
    ------
    ValueError: not sizes, or nothing between them
    """
    low, high = parse_bytes("--min-bytes", least), parse_bytes("--max-bytes", most)
    if factor < 2:
        raise ValueError(f"--factor {factor}: must be at least 2")
    if low > high:
        raise ValueError(f"--min-bytes {least} is more than --max-bytes {most}")
    found = [low]
    while found[-1] * factor <= high:
        found.append(found[-1] * factor)
    return tuple(found)


def plan_case(
    *,
    ranks: int | None,
    layout: str | None,
    backend: str | None,
    collectives: Sequence[str],
    sizes: Sequence[int],
    dtype: str,
    iterations: int,
    warmup: int,
    seconds_per_size: float,
) -> CommCase:
    """The sweep that is asked for.

    Raises
    ------
    ValueError: it cannot be measured; says what would be right
    """
    place = find_placement()
    dims = parse_layout(layout) if layout else {}
    product = 1
    for n in dims.values():
        product *= n
    here = place.size if place else ranks or (product if dims else 2)
    if place and ranks not in (None, place.size):
        raise ValueError(f"--ranks {ranks}: the launcher started {place.size}")
    backend = backend or ("nccl" if machine.gpus() else "gloo")
    if backend not in BACKENDS:
        raise ValueError(f"--backend {backend!r}: allowed are {', '.join(BACKENDS)}")
    # Not made here: its module imports torch, and whoever starts ranks can do without.
    asked = {
        "collectives": list(dict.fromkeys(collectives)) or list(COLLECTIVES),
        "sizes_bytes": list(sizes),
        "dtype": dtype,
        "iterations": iterations,
        "warmup": warmup,
        "seconds_per_size": float(seconds_per_size),
    }
    case = CommCase(asked, backend, here, dims)
    problems = [case.refusal(), *_problems(asked, backend)]
    for problem in filter(None, problems):
        raise ValueError(problem)
    return case


DTYPES = {"gloo": ("float32", "float64", "float16", "bfloat16"), "mpi": ("float32", "float64")}
DTYPES["nccl"] = DTYPES["gloo"]


def _problems(asked: dict[str, Any], backend: str) -> list[str]:
    found = [
        f"--collective {name!r}: allowed are {', '.join(COLLECTIVES)}"
        for name in asked["collectives"]
        if name not in COLLECTIVES
    ]
    if asked["dtype"] not in DTYPES["gloo"]:
        found.append(f"--dtype {asked['dtype']!r}: allowed are {', '.join(DTYPES['gloo'])}")
    elif asked["dtype"] not in DTYPES[backend]:
        found.append(
            f"--dtype {asked['dtype']} with --backend mpi: MPI has no such type, MPICH refuses it and Open MPI adds "
            f"its bytes up as another's; allowed are {', '.join(DTYPES['mpi'])}"
        )
    for name, least in (("iterations", 1), ("warmup", 0)):
        if asked[name] < least:
            found.append(f"--{name} {asked[name]}: must be at least {least}")
    if not asked["seconds_per_size"] > 0:
        found.append(f"--seconds-per-size {asked['seconds_per_size']:g}: must be more than 0")
    return found


def run_comm(
    case: CommCase,
    results: Path | None,
    *,
    repeats: int,
    time_limit_s: float,
    retry_failed: bool,
    quiet: bool,
    lab: Lab | None = None,
) -> tuple[Summary | None, Path | None, int, str | None]:
    """Run what is missing: here, in a lab, or on the ranks that a launcher has started (as run_worker says).

    Raises
    ------
    ValueError, OSError, WorldError: as run_study and run_worker
    """
    from .torch_rank import COMMAND

    run = Run(repeats=repeats, time_limit_s=time_limit_s)
    for problem in run.problems():
        raise ValueError(problem.replace("run.", "--").replace("_limit_s", "-limit"))
    study = CommStudy(case, run, f"comm-{lab.name}" if lab else "comm")
    options = {"retry_failed": retry_failed, "quiet": quiet}
    place = find_placement()
    if place and case.backend == "mpi":
        from .mpi_rank import MpiWorldExecutor, follow_over_mpi

        if place.rank:
            return None, None, follow_over_mpi() or 0, None
        summary, folder = run_here(study, results, **options, make_executor=MpiWorldExecutor)
        return summary, folder, summary.exit_code, summary.interrupted
    if place:
        return work_here(study, results, **options, command=COMMAND)
    make = None
    if case.backend == "mpi":
        from ..lab.executor import InLab
        from .mpi_rank import MpirunExecutor

        def make(signals):
            return MpirunExecutor(signals, InLab(lab, "mpirun").command if lab else None)

    summary, folder = run_here(study, results, **options, command=COMMAND, make_executor=make, lab=lab)
    return summary, folder, summary.exit_code, summary.interrupted


def told(case: CommCase, folder: Path, summary: Summary) -> dict[str, Any]:
    """For programs: the summary, one row for each size (medians over runs), and the links' lines."""
    from ...results.links import by_size, fit_links

    rows = _rows(case, folder)
    return as_json(summary, folder) | {"comm": by_size(rows), "links": [fit.to_dict() for fit in fit_links(rows)]}


def print_told(case: CommCase, folder: Path, summary: Summary, console: Console) -> None:
    from ...results.links import by_size, fit_links

    rows = _rows(case, folder)
    if rows:
        headers = ["dim", "collective", ">ranks", ">bytes", ">runs", ">time us", ">algbw MB/s", ">busbw MB/s"]
        print_grid(
            console,
            headers,
            [
                [
                    row["dim"],
                    row["collective"],
                    str(row["group_ranks"]),
                    f"{row['message_bytes']:,}",
                    str(row["runs"]),
                    _number(row["time_s"], 1e6),
                    _number(row["algbw_bytes_per_s"], 1e-6, 2),
                    _number(row["busbw_bytes_per_s"], 1e-6, 2),
                ]
                for row in by_size(rows)
            ],
        )
        headers = ["dim", "collective", ">alpha us", ">of runs", ">beta MB/s", ">of runs", ">worst misfit"]
        say(console, "\ntime = alpha + factor x bytes / beta, a line for each run; median and range over the runs:")
        print_grid(
            console,
            headers,
            [
                [
                    fit.dim,
                    fit.collective,
                    *_estimate(fit.alpha_s, 1e6, 1),
                    *_estimate(fit.beta_bytes_per_s, 1e-6, 2),
                    f"{fit.misfit:.0%}",
                ]
                for fit in fit_links(rows)
            ],
        )
    for line in as_text(summary, folder):
        say(console, line)


def _rows(case: CommCase, folder: Path) -> list[dict]:
    from ...results.links import measured

    return [row for row in measured(folder) if row["run_id"].rsplit("-r", 1)[0] == case.case_id]


def _number(value: float | None, factor: float, digits: int = 1) -> str:
    return "-" if value is None else f"{value * factor:,.{digits}f}"


def _estimate(estimate, factor: float, digits: int) -> tuple[str, str]:
    """(median, the 95 % interval where there are runs enough, else the range and how many they are)."""
    if estimate is None:
        return "-", "-"
    low, high, what = (
        (estimate.least, estimate.most, f"range of {estimate.runs}")
        if estimate.low is None
        else (estimate.low, estimate.high, "95 %")
    )
    around = f"{low * factor:,.{digits}f} to {high * factor:,.{digits}f} ({what})" if estimate.runs > 1 else "1 run"
    return f"{estimate.value * factor:,.{digits}f}", around
