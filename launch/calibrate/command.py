"""`scalade calibrate`: one rank alone, then all of them, then collectives; the profile is written when all is measured.

Nothing is written before the end but in a temporary folder, and the profile replaces the old one in one step.
"""

from __future__ import annotations

import json
import platform
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...parallelism.predict.coverage import Coverage
from ...parallelism.predict.interval import Spread
from ...results import files
from ...results.wording import count_of
from ..comm.command import CommOptions, plan_case, run_comm, sizes_between
from ..host import machine as host
from ..predict.profile import THIS, own_profile
from ..sweep.scratch_run import ScratchRun
from .numbers import Facts, fit_machine, reference_mfu, reference_rows
from .profile_file import table_of, write_profile
from .rank import ASKED, COMMAND, FACTS

LEAST_MINUTES = 0.2
START_S = 90.0  # that the ranks' start and the model's smallest steps may take beyond what was asked
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "send_recv")
SHARES = {"alone": 0.5, "together": 0.3, "links": 0.2}  # of the time

Say = Callable[[str], None]


@dataclass(frozen=True)
class Calibrated:
    """What was measured and written. how: what the model was fitted by, and its error on rows that were left out."""

    path: Path
    table: dict[str, Any]
    how: str

    def to_dict(self) -> dict[str, Any]:
        return {"profile": str(self.path), "how": self.how, "machine": self.table}

    def to_text(self) -> list[str]:
        table = self.table
        peaks = ", ".join(f"{name} {each['value'] / 1e9:,.0f} GFLOP/s" for name, each in table["peaks"].items())
        (link,) = table["links"]
        return [
            f"{table['description']}",
            f"peaks: {peaks}; products reach {table['products']['efficiency']['value']:.0%} of them",
            f"memory: {table['memory']['bandwidth']['value'] / 1e9:,.1f} GB/s; all ranks at work: products take "
            f"{table['products']['contention']['value']:.2f} times as long, copies "
            f"{table['elementwise']['contention']['value']:.2f} times",
            f"dispatch: {table['host']['launch_s']['value'] * 1e6:.2f} us; collectives: "
            f"{link['latency_s']['value'] * 1e6:,.0f} us, {link['bandwidth']['value'] / 1e9:,.2f} GB/s",
            f"reference model: {self.how}",
            f"profile: {self.path}",
        ]


def measure_here(minutes: float, ranks: int | None, out: Path | None, say: Say) -> Calibrated:
    """Measure this machine and write its profile.

    ranks: at work together; None: one on each GPU, or core. out: the file; None: that of `this`

    Raises
    ------
    ValueError: too little time, more ranks than devices, or a rank failed
    OSError: the profile cannot be written
    """
    if minutes < LEAST_MINUTES:
        raise ValueError(f"--minutes {minutes:g}: must be at least {LEAST_MINUTES:g}")
    there = host.gpus() or host.cores()
    ranks = ranks or there
    if not 1 <= ranks <= there:
        raise ValueError(f"--ranks {ranks}: this machine has {count_of(there, 'GPU' if host.gpus() else 'core')}")
    facts = _measure(minutes * 60, ranks, say)
    found, errors = fit_machine(facts)
    source = f"measured by scalade calibrate {datetime.now(UTC):%Y-%m-%d} on {socket.gethostname()}"
    table = table_of(found, source, reference_mfu(facts, found), errors)
    table["name"], table["description"] = THIS, _description(facts)
    calibration = fitted(*reference_rows(facts), found)
    if not facts.quiet:
        calibration = replace(
            calibration,
            spread=Spread(),
            coverage=Coverage(),
            how=f"one rank alone, on a busy machine: {calibration.how}",
        )
        say(
            f"warning: other programs had the cores for {facts.others_share:.0%} of the time: how ranks wait for each "
            "other is not known from this, and intervals are wide; calibrate again on an idle machine"
        )
    table["calibration"] = {"torch": calibration.to_table()}
    path = out or own_profile()
    write_profile(path, table)
    return Calibrated(path, table, calibration.how)


def fitted(configs: Any, times: Any, machine: Any) -> Any:
    """The model calibrated on the reference model's steps."""
    from ...parallelism.predict import STACKS
    from ...parallelism.predict.fit import calibrate

    return calibrate(configs, times, machine, STACKS["torch"])


def _description(facts: Facts) -> str:
    name = platform.processor() or platform.machine()
    if facts.device == "cuda":
        name = str(facts.alone.get("name") or "GPU")
    else:
        lines = (line for line in _cpuinfo() if line.startswith("model name"))
        name = next((line.split(":", 1)[1].strip() for line in lines), name)
    return f"{name}, {count_of(facts.ranks, 'rank')} on {socket.gethostname()}"


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def _measure(seconds: float, ranks: int, say: Say) -> Facts:
    device = "cuda" if host.gpus() else "cpu"
    threads = max(1, host.cores() // ranks)
    say(f"one rank of {count_of(threads, 'thread')} alone: products, attention, blocks, steps of a reference model")
    (alone,) = run_ranks(1, device, threads, seconds * SHARES["alone"])
    together: list[dict[str, Any]] = []
    links: list[tuple[float, float]] = []
    if ranks > 1:
        say(f"{ranks} ranks at once: how they disturb each other, and the reference model split over them")
        together = run_ranks(ranks, device, threads, seconds * SHARES["together"])
        say(f"collectives of {ranks} ranks")
        links = _links(ranks, seconds * SHARES["links"])
    memory = alone.get("memory_bytes") or (host.host_memory_bytes() or 0) / ranks
    return Facts(device, ranks, alone, together, links, float(memory))


def run_ranks(
    ranks: int, device: str, threads: int, seconds: float, command: Sequence[str] = COMMAND
) -> list[dict[str, Any]]:
    """What so many ranks measured, each one's.

    Raises
    ------
    ValueError: a rank failed; says why
    KeyboardInterrupt: a signal came
    """
    run = ScratchRun("calibrate", ranks, device, threads, 3 * seconds + START_S, command)
    with run.folder() as folder:
        files.write(folder / ASKED, json.dumps({"seconds": seconds}), sync=False)
        outcome = run.execute(folder)
        found = files.read_json(folder / FACTS) if (folder / FACTS).is_file() else None
    if outcome.reason or not isinstance(found, list):
        raise ValueError(
            f"calibrate: {count_of(ranks, 'rank')} did not finish: {outcome.reason or 'nothing was found'}"
        )
    return found


def _links(ranks: int, seconds: float) -> list[tuple[float, float]]:
    """(latency, bus bandwidth) of each collective over all ranks, through `scalade comm`'s own sweep. Of the fastest
    calls: what makes one slower than another is mostly other programs, and the reference steps show the rest."""
    from ...results.links import fit_links, measured

    sizes = sizes_between("1k", "4M", 8)
    each = seconds / (len(sizes) * len(COLLECTIVES))
    case = plan_case(CommOptions(ranks, None, None, COLLECTIVES, sizes, "float32", 20, 3, max(each, 0.05)))
    with tempfile.TemporaryDirectory(prefix="scalade-calibrate-") as name:
        summary, folder, _, why = run_comm(
            case, Path(name), repeats=1, time_limit_s=3 * seconds + START_S, retry_failed=False, quiet=True
        )
        if folder is None or summary is None or summary.exit_code:
            reasons = [outcome.reason for outcome in summary.outcomes.values()] if summary else [why]
            raise ValueError(f"calibrate: collectives did not finish: {next(filter(None, reasons), 'no reason')}")
        fits = fit_links([row | {"time_s": row["time_min_s"]} for row in measured(folder)])
    return [(fit.alpha_s.value, fit.beta_bytes_per_s.value) for fit in fits if fit.alpha_s and fit.beta_bytes_per_s]
