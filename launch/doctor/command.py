"""`scalade doctor`: whether `scalade run` can work here, what would disturb a measurement, and what is missing.

Each check looks at one thing and says what it found and, where that is not right, what to do. Collectives, MPI and the
results folder are not looked up but tried. To add a check: a function that yields `Finding`s, named in GROUPS.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from importlib import metadata
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...bench.host import load_average
from ...parallelism.layout import ENGINES
from ...results.table.quiet import STEAL
from ...results.terminal import Cell, print_grid, say
from ...results.wording import count_of
from ..host import machine
from . import host_checks as host
from .trial import Trial, try_collectives, try_mpi

if TYPE_CHECKING:
    from rich.console import Console


class State(StrEnum):
    """Of one finding."""

    OK = "ok"
    NOTE = "note"  # works, but could disturb a measurement
    MISSING = "missing"  # something optional
    BROKEN = "broken"  # `scalade run` cannot work


WORDS = {State.OK: "ok", State.NOTE: "note", State.MISSING: "absent", State.BROKEN: "BROKEN"}
STYLES = {State.OK: "green", State.NOTE: "yellow", State.MISSING: "dim", State.BROKEN: "bold red"}
TRIAL_S = 60.0
RANKS = 2
MIB = 2**20
OPTIONAL = {
    "mpi": "ranks under mpirun",
    **{name: f"the engine `{name}`" for name in ENGINES if name != "torch"},
    "energy": "energy of NVIDIA GPUs",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    found: str
    state: State = State.OK
    advice: str = ""  # what to do about it
    group: str = ""


@dataclass(frozen=True)
class Place:
    """What is looked at beside the machine itself."""

    results: Path
    torch: Trial  # two ranks over gloo


def examine(results: Path | None = None) -> list[Finding]:
    """Everything, in the order in which it is shown; takes as long as starting two ranks does.

    results: the results folder; None: scalade-results in the current one
    """
    place = Place(results or Path("scalade-results"), try_collectives("cpu", RANKS, TRIAL_S))
    return [replace(finding, group=group) for group, look in GROUPS.items() for finding in look(place)]


def healthy(findings: list[Finding]) -> bool:
    return all(finding.state != State.BROKEN for finding in findings)


def scalade_itself(place: Place) -> Iterator[Finding]:
    package = Path(__file__).resolve().parents[2]
    yield Finding("scalade", f"{metadata.version('scalade')} in {package}")
    wanted = metadata.metadata("scalade")["Requires-Python"] or ""
    old = sys.version_info < _version(wanted.lstrip(">= "))
    advice = f"Python {wanted} is needed" if old else ""
    yield Finding("python", f"{platform.python_version()}, {sys.executable}", State.BROKEN if old else State.OK, advice)


def machine_itself(place: Place) -> Iterator[Finding]:
    yield Finding("system", host.system())
    cores = machine.cores()
    yield Finding("cores", f"{cores} of {os.cpu_count()} usable, {host.cpu_model()}")
    threads = os.environ.get("OMP_NUM_THREADS")
    ours = f"OMP_NUM_THREADS={threads} here, " if threads else ""
    yield Finding("threads", f"{ours}each rank gets cores // ranks of the largest case, or run.threads_per_rank")
    yield _load(cores)
    yield from _memory()
    yield from _clock()


def _load(cores: int) -> Finding:
    load, now = load_average(), host.cpu_taken()
    taken, stolen = now or (0.0, 0.0)
    shares = [] if load is None else [f"{load:.1f} over the last minute"]
    shares += [f"{taken:.0%} of the CPU time taken now", f"{stolen:.0%} by other machines"] if now else []
    advice = []
    if (load or 0.0) > max(0.5, 0.25 * cores) or taken > 0.25:
        advice.append("something else is computing: timings will be noisy")
    if stolen > STEAL:
        advice.append("the hypervisor gives this machine's cores to others: timings depend on them")
    return Finding("load", ", ".join(shares) or "not told", _note(bool(advice)), "; ".join(advice))


def _memory() -> Iterator[Finding]:
    free = machine.host_memory_bytes()
    low = free is not None and free < 2 * 2**30
    advice = "a rank takes 300 MiB before it holds a model" if low else ""
    yield Finding("memory", f"{_gib(free)} free", _note(low), advice)
    limit = host.cgroup_memory_bytes()
    if limit is not None:
        yield Finding("memory limit", f"{_gib(limit)} for this control group")
    for name, command in (("AS", "ulimit -v"), ("DATA", "ulimit -d")):
        if (bound := host.limit(name)) is not None:
            advice = f"torch reserves more than it uses: `{command} unlimited`"
            yield Finding(command, _gib(bound), State.NOTE, advice)
    yield _open_files()
    yield _shared_memory()


def _note(worth_a_note: bool) -> State:
    return State.NOTE if worth_a_note else State.OK


def _open_files() -> Finding:
    limit = host.limit("NOFILE")
    few = limit is not None and limit < 1024
    advice = "each rank keeps a connection to every other: `ulimit -n 65536`" if few else ""
    return Finding("open files", "unlimited" if limit is None else str(limit), _note(few), advice)


def _shared_memory() -> Finding:
    free = host.free_bytes("/dev/shm")
    small = free is None or free < 512 * MIB
    advice = "NCCL talks through it on one host: give the container more, `--shm-size=8g`" if small else ""
    return Finding("/dev/shm", "not there" if free is None else f"{_gib(free)} free", _note(small), advice)


def _clock() -> Iterator[Finding]:
    resolution, tick, source = host.clock()
    slow = tick > 1e-5 or source in ("hpet", "acpi_pm")
    advice = "every reading of the clock is slow: boot with clocksource=tsc where the CPU allows it" if slow else ""
    found = f"{resolution * 1e9:g} ns resolution, {tick * 1e9:.0f} ns a reading, source {source or 'unknown'}"
    yield Finding("clock", found, _note(slow), advice)
    governor, mhz = host.cpu_frequency()
    saving = governor is not None and governor != "performance"
    advice = "`cpupower frequency-set -g performance` for steady timings" if saving else ""
    found = ", ".join(filter(None, [f"governor {governor}" if governor else "no governor shown", mhz]))
    yield Finding("frequency", found, _note(saving), advice)


def devices(place: Place) -> Iterator[Finding]:
    gpus, driver, facts = machine.gpus(), host.nvidia_driver(), place.torch.facts
    if driver is None and not gpus:
        yield from _without_driver(facts.get("cuda_built"))
    else:
        yield Finding("NVIDIA driver", driver or "version unknown")
        yield from _gpus(gpus, facts)
    energy = host.energy_source()
    advice = "" if energy else "columns of energy stay null; RAPL is often readable by root alone"
    state = State.OK if energy else State.MISSING
    yield Finding("energy", energy or "no counter this user may read", state, advice)


def _without_driver(cuda_built: str | None) -> Iterator[Finding]:
    """cuda_built: CUDA's version that torch was built for."""
    yield Finding("NVIDIA driver", "none: runs are on the CPU", State.MISSING)
    if cuda_built:
        advice = "the CPU build is smaller: `pip install torch --index-url https://download.pytorch.org/whl/cpu`"
        yield Finding("torch", f"built for CUDA {cuda_built}, which nothing here uses", State.NOTE, advice)


def _gpus(count: int, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """facts: of a rank, empty where it did not start."""
    names = facts.get("gpus") or []
    if names:
        yield Finding("GPUs", ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)))
        memory = machine.gpu_memory_bytes()
        yield Finding("GPU memory", _gib(memory) if memory else "nvidia-smi does not tell")
    elif facts:
        cuda_built = facts.get("cuda_built")
        if cuda_built is None:
            why, how = "torch is a CPU build", "`pip install --force-reinstall torch`"
        else:
            why, how = f"torch (CUDA {cuda_built}) cannot use them", "update the driver, or fit torch to it"
        advice = f"{how}; or run.device = 'cpu' in the study"
        yield Finding("GPUs", f"{count}, but {why}", State.BROKEN, advice)


def libraries(place: Place) -> Iterator[Finding]:
    for requirement in metadata.requires("scalade") or []:
        match = re.match(r"([\w.-]+)\s*>=\s*([\d.]+)(?:.*extra == ['\"](\w+)['\"])?", requirement)
        if match and match[3] in (None, *OPTIONAL):
            yield _library(*match.groups())
    triton = host.installed("triton")
    advice = "" if triton else "comes with torch's CUDA build; without a GPU nothing needs it"
    yield Finding("triton", triton or "for the GPU kernels", State.OK if triton else State.MISSING, advice)


def _library(name: str, least: str, extra: str | None) -> Finding:
    """extra: that it is required for; None: always."""
    have = host.installed(name)
    if have and _version(have) >= _version(least):
        return Finding(name, have)
    older = f"{have}, older than {least}" if have else ""
    if extra:
        return Finding(name, older or f"for {OPTIONAL[extra]}", State.MISSING, f"`pip install -U 'scalade[{extra}]'`")
    return Finding(name, older or "not installed", State.BROKEN, f"`pip install -U '{name}>={least}'`")


def communication(place: Place) -> Iterator[Finding]:
    yield _collective("gloo", place.torch, RANKS)
    if place.torch.facts.get("gpus"):
        ranks = min(RANKS, len(place.torch.facts["gpus"]))
        trial = try_collectives("cuda", ranks, TRIAL_S)
        version = trial.facts.get("nccl")
        yield _collective(f"NCCL {version}" if version else "NCCL", trial, ranks)
    else:
        yield Finding("NCCL", "for NVIDIA GPUs", State.MISSING)
    yield from _mpi()


def _collective(name: str, trial: Trial, ranks: int) -> Finding:
    if trial.reason:
        return Finding(name, f"{count_of(ranks, 'rank')} on this host: {trial.reason}", State.BROKEN, ADVICE)
    facts = trial.facts
    speed = f"{facts['latency_s'] * 1e6:.0f} us, {facts['bytes_per_s'] / 1e9:.2f} GB/s"
    return Finding(name, f"{count_of(ranks, 'rank')} all-reduced, {speed}")


ADVICE = "is there a firewall on the loopback? NCCL_DEBUG=INFO and TORCH_DISTRIBUTED_DEBUG=DETAIL say more"


def _mpi() -> Iterator[Finding]:
    mpirun = host.mpirun()
    if mpirun is None:
        yield Finding("mpirun", "for launcher = 'mpirun'", State.MISSING, "`pip install 'scalade[mpi]' mpich`")
        return
    yield Finding("mpirun", f"{mpirun[1]}, {mpirun[0]}")
    if host.installed("mpi4py") is None:
        yield Finding("MPI", "mpi4py is not installed", State.MISSING, "`pip install 'scalade[mpi]'`")
        return
    trial = try_mpi(RANKS, TRIAL_S)
    library = f"mpi4py uses {trial.facts['library']}" if trial.facts else "mpi4py"
    if trial.reason:
        advice = "use the mpirun of mpi4py's MPI; one MPI in one environment. Only launcher = 'mpirun' needs it"
        yield Finding("MPI", f"{library}: {trial.reason}", State.NOTE, advice)
    else:
        yield Finding("MPI", f"{RANKS} ranks all-reduced, {library}")


def results_folder(place: Place) -> Iterator[Finding]:
    folder = host.existing(place.results)
    there = "" if folder == place.results else f" (will be made in {folder})"
    yield Finding("folder", f"{place.results}{there}, {host.filesystem(folder)}")
    free = host.free_bytes(folder)
    low = free is not None and free < 2**30
    yield Finding("free space", _gib(free), _note(low), "a checkpoint may not fit" if low else "")
    trial = host.try_folder(folder)
    if trial.error:
        yield Finding("writing", trial.error, State.BROKEN, "give another with --results or run.results")
        return
    slow = trial.fsync_s > 0.1
    advice = "each finished run waits for a few of them: a local disk is faster" if slow else ""
    found = f"{trial.fsync_s * 1e3:.1f} ms, the median of {host.SYNCS}"
    yield Finding("fsync", found, _note(slow), advice)
    advice = "" if trial.locks else "mount it with flock (Lustre: -o flock), or give another with --results"
    found = "a second sweep would see what the first holds" if trial.locks else "does nothing: sweeps would collide"
    yield Finding("flock", found, State.OK if trial.locks else State.BROKEN, advice)


GROUPS: dict[str, Callable[[Place], Iterator[Finding]]] = {
    "scalade": scalade_itself,
    "machine": machine_itself,
    "devices": devices,
    "libraries": libraries,
    "communication": communication,
    "results": results_folder,
}


def print_findings(findings: list[Finding], console: Console) -> None:
    rows: list[tuple[Cell | str, ...]] = []
    for group, of_group in groupby(findings, lambda finding: finding.group):
        rows += map(_cells, chain([group], repeat("")), of_group)
    print_grid(console, ("part", "looked at", "", "found"), rows)
    broken = [finding.name for finding in findings if finding.state == State.BROKEN]
    noted = [finding.name for finding in findings if finding.state == State.NOTE]
    say(console, "")
    if broken:
        say(console, f"`scalade run` cannot work here: {', '.join(broken)}", style="bold red")
    else:
        say(console, "`scalade run` can work here" + (f"; note: {', '.join(noted)}" if noted else ""))


def _cells(group: str, finding: Finding) -> tuple[Cell, str, Cell, str]:
    text = f"{finding.found}\n-> {finding.advice}" if finding.advice else finding.found
    return Cell(group, "bold"), finding.name, Cell(WORDS[finding.state], STYLES[finding.state]), text


def to_dict(findings: list[Finding]) -> dict[str, object]:
    return {"healthy": healthy(findings), "findings": [asdict(finding) for finding in findings]}


def _version(text: str) -> tuple[int, ...]:
    """The release numbers: `2.13.0+cpu` as (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"^[\d.]*", text)[0].split(".") if part)


def _gib(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**30:.1f} GiB"
