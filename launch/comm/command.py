"""`scalade comm`: sweeps over collectives, each repeat a run in fresh processes and a row, with its sizes in `comm`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...results.schema.row_columns import COLLECTIVES
from ...results.terminal import print_grid, say
from ..host import machine
from ..host.placement import find_placement
from ..run import MakeExecutor, run_here, to_dict, to_text, work_here
from ..study.comm_case import BACKENDS, CommCase, SweepSettings, parse_bytes, parse_layout
from ..study.schema import Run
from ..sweep.summary import Summary

if TYPE_CHECKING:
    from rich.console import Console

    from ..lab.lab import Lab


@dataclass(frozen=True)
class PlannedSweep:
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

    def cases(self, world_size: int | None = None) -> list[PlannedSweep]:
        return [PlannedSweep(self.case)]

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


@dataclass(frozen=True)
class CommOptions:
    """The command line, but for how the runs are executed."""

    ranks: int | None  # None: those of the layout, or of the launcher that has started this process
    layout: str | None  # as study.comm_case.parse_layout reads it
    backend: str | None  # None: nccl where there is a GPU
    collectives: Sequence[str]  # empty: all
    sizes: Sequence[int]  # bytes
    dtype: str
    iterations: int
    warmup: int
    seconds_per_size: float

    def settings(self) -> SweepSettings:
        return {
            "collectives": list(dict.fromkeys(self.collectives)) or list(COLLECTIVES),
            "sizes_bytes": list(self.sizes),
            "dtype": self.dtype,
            "iterations": self.iterations,
            "warmup": self.warmup,
            "seconds_per_size": float(self.seconds_per_size),
        }


def plan_case(options: CommOptions) -> CommCase:
    """The sweep that is asked for.

    Raises
    ------
    ValueError: it cannot be measured; says what would be right
    """
    sizes = parse_layout(options.layout) if options.layout else {}
    ranks = _ranks(options.ranks, prod(sizes.values()) if sizes else 2)
    backend = options.backend or ("nccl" if machine.gpus() else "gloo")
    if backend not in BACKENDS:
        raise ValueError(f"--backend {backend!r}: allowed are {', '.join(BACKENDS)}")
    case = CommCase(options.settings(), backend, ranks, sizes)
    for problem in filter(None, [case.refusal(), *_problems(case.asked, backend)]):
        raise ValueError(problem)
    return case


def _ranks(option: int | None, default: int) -> int:
    place = find_placement()
    if place is None:
        return option or default
    if option not in (None, place.size):
        raise ValueError(f"--ranks {option}: the launcher started {place.size}")
    return place.size


DTYPES = {"gloo": ("float32", "float64", "float16", "bfloat16"), "mpi": ("float32", "float64")}
DTYPES["nccl"] = DTYPES["gloo"]


def _problems(asked: SweepSettings, backend: str) -> list[str]:
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
    for name, count, least in (("iterations", asked["iterations"], 1), ("warmup", asked["warmup"], 0)):
        if count < least:
            found.append(f"--{name} {count}: must be at least {least}")
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
    place = find_placement()
    if place and case.backend == "mpi":
        from .mpi_rank import MpiWorldExecutor, follow_over_mpi

        if place.rank:
            follow_over_mpi()
            return None, None, 0, None
        make_executor: MakeExecutor | None = MpiWorldExecutor
    elif place:
        return work_here(study, results, retry_failed=retry_failed, quiet=quiet, command=COMMAND)
    else:
        make_executor = _through_mpirun(lab) if case.backend == "mpi" else None
    summary, folder = run_here(
        study, results, retry_failed=retry_failed, quiet=quiet, command=COMMAND, make_executor=make_executor, lab=lab
    )
    return summary, folder, summary.exit_code, summary.interrupted


def _through_mpirun(lab: Lab | None) -> MakeExecutor:
    from ..lab.executor import InLab
    from .mpi_rank import MpirunExecutor

    start = InLab(lab, "mpirun").command if lab else None
    return lambda signals: MpirunExecutor(signals, start)


def summary_json(case: CommCase, folder: Path, summary: Summary) -> dict[str, Any]:
    """For programs: the summary, one row for each size (medians over runs), and the links' lines."""
    from ...results.links import by_size, fit_links

    rows = _rows(case, folder)
    return to_dict(summary, folder) | {"comm": by_size(rows), "links": [fit.to_dict() for fit in fit_links(rows)]}


def print_summary(case: CommCase, folder: Path, summary: Summary, console: Console) -> None:
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
    for line in to_text(summary, folder):
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
