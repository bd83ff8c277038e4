"""`scalade pack`: many cases in one allocation. It runs in the batch script, on the job's first node.

Runs are started in order, the largest first, each on nodes of its own; a run starts as soon as enough nodes are free.
What started before a run takes at least as many nodes, so the first of it to end makes room: no run waits for ever.
Two timed runs never share a node; with `--one-at-a-time` nor the network. A run starts only if it can end within the
allocation; the others are left to the next one (exit status 75).

A node that crashes takes its run with it, and no other: that one starts again, from its checkpoint, on nodes that are
left, or in the next allocation where they are too few.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...results import files
from ...results.store.store import RunStore
from ..host.launchers import LAUNCHERS, Step
from ..process.goodput import was_cut_off
from ..process.guard import MARK, Guard, end_marked, new_mark
from ..process.preemption import REQUEUE_STATUS, STOP_FILE
from ..schedulers import SCHEDULERS
from ..schedulers.site import Kubernetes, Site
from ..study.case import Case
from ..study.study import Study, load_study
from ..sweep.plan import UNFINISHED, PlannedRun, make_plan
from .jobs import nodes_of

TRIES = 3  # starts of a run that leaves no row: its port was taken, a node did not answer
FAREWELL_S = 15.0  # for steps that were asked to end to write their rows
POLL_S = 0.1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class PackedJob:
    """The job file that `scalade submit` wrote beside the script."""

    scheduler: str
    launcher: str
    study: Path
    results: Path
    workdir: Path
    seconds: int
    retry_failed: bool
    cases: tuple[str, ...]
    exports: tuple[str, ...]  # names of variables that the ranks need
    site: Site
    alone: bool = False  # one run at a time


@dataclass
class PackedRun:
    """One run and the nodes it takes."""

    run: PlannedRun[Case]
    nodes: int
    per_node: int
    bound_s: float  # within which it ends
    resumes: bool  # it can go on where an earlier allocation left it
    tries: int = 0  # on nodes that are all there
    rows: int = 0  # attempts that had their row when it was started last
    cut_off: bool = False  # its ranks were started, and a host that crashed, or the launcher, has ended them


@dataclass
class Started:
    packed: PackedRun
    hosts: list[str]
    process: subprocess.Popen


@dataclass
class Tally:
    """What one allocation did."""

    ended: dict[str, str] = field(default_factory=dict)  # run_id -> status
    kept: dict[str, str] = field(default_factory=dict)  # run_id -> status: had their row
    left: list[PackedRun] = field(default_factory=list)  # for the next allocation
    given_up: list[PackedRun] = field(default_factory=list)
    received: str | None = None  # the signal that ended it
    warned: bool = False  # the allocation's time is up
    gone: list[str] = field(default_factory=list)  # hosts that crashed

    @property
    def exit_code(self) -> int:
        """What stands in the table: 0: all done; 1: a run failed or was given up, or none was measured; 75: the next
        allocation can do the rest."""
        if self.received is not None:
            return 128 + signal.Signals[self.received]
        if self._next_can_go_on():
            return REQUEUE_STATUS
        statuses = {*self.ended.values(), *self.kept.values()}
        return int(bool(self.left or self.given_up or statuses != {"ok"}))

    def _next_can_go_on(self) -> bool:
        """Whether another allocation would come further than this one."""
        if self.left and (self.ended or self.gone):
            return True
        return any(packed.resumes or packed.cut_off for packed in self.left)


def read_job(path: Path) -> PackedJob:
    """Raises ValueError: it is no job file."""
    try:
        content: Any = files.parse_json(files.read_named(path))
        profile = content["site"]
        lists = ("modules", "pre_commands", "options", "launcher_options", "container")
        content["site"] = Site(
            **profile
            | {name: tuple(profile[name]) for name in lists}
            | {"kubernetes": Kubernetes(**profile["kubernetes"])}
        )
        content |= {name: Path(content[name]) for name in ("study", "results", "workdir")}
        content |= {name: tuple(content[name]) for name in ("cases", "exports")}
        return PackedJob(**content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is no job file of `scalade submit --mode packed` ({error})") from None


def packed_runs(study: Study, store: RunStore, job: PackedJob) -> list[PackedRun]:
    """The runs that are missing, the largest first; of one size the first repeat of each case, then the second."""
    plan = make_plan(study, store, retry_failed=job.retry_failed, only=job.cases, cases=study.cases_elsewhere())
    packed = []
    for run in plan.pending:
        nodes, per_node = nodes_of(run.case.ranks, job.site.per_node)
        bound_s = _bound_s(study, store, run)
        packed.append(PackedRun(run, nodes, per_node, bound_s, bool(run.case.measure.checkpoint_every)))
    return sorted(packed, key=lambda one: (-one.nodes, -one.per_node, one.run.repeat))


def _bound_s(study: Study, store: RunStore, run: PlannedRun[Case]) -> float:
    """The study's limit, or less where repeats of the same case have shown what it takes."""
    rows = [store.row(f"{run.case.case_id}-r{repeat}") for repeat in range(study.run.repeats)]
    took = [row["wall_s"] for row in rows if row and row["status"] == "ok" and isinstance(row["wall_s"], int | float)]
    return min(study.run.time_limit_s, 1.5 * max(took) + 30.0) if took else study.run.time_limit_s


def next_run(pending: Sequence[PackedRun], free: int, left_s: float, whole_s: float) -> PackedRun | None:
    """The first that fits the free nodes and the time that is left; None: there is none now.

    whole_s: the time of an allocation. A run that never fits into one starts all the same where it can be resumed.
    """
    for packed in pending:
        in_time = packed.bound_s <= left_s or (packed.resumes and packed.bound_s > whole_s and left_s > 0.1 * whole_s)
        if packed.nodes <= free and in_time:
            return packed
    return None


class Packer:
    """Runs packed runs on hosts until all have ended, no more fit, or a signal comes."""

    def __init__(self, job: PackedJob, store: RunStore, hosts: Sequence[str], path: Path, begun: float) -> None:
        self.job, self.store, self.folder, self.stem = job, store, path.parent, path.stem
        self.free = list(hosts)
        self.on: list[Started] = []
        self.whole_s = max(1.0, job.seconds - job.site.signal_s)
        self.deadline = begun + self.whole_s  # on time.monotonic()
        self.scheduler, self.launcher = SCHEDULERS[job.scheduler], LAUNCHERS[job.launcher]
        self.mark, self.started = new_mark(), 0
        self.guard: Guard | None = None
        self.received: str | None = None
        self.warned = False
        self.gone: list[str] = []
        self.left: list[PackedRun] = []  # have had their tries here
        self.stop_file = os.environ.get(STOP_FILE)

    def run(self, pending: list[PackedRun]) -> Tally:
        most = len(self.free)
        tally = Tally(given_up=[packed for packed in pending if packed.nodes > most])
        pending = [packed for packed in pending if packed.nodes <= most]
        with self._signals():
            try:
                self._run_what_fits(pending, tally)
                if self._ending():
                    self._end_all(pending, tally)
            finally:
                end_marked(self.mark)
                if self.guard:
                    self.guard.close()
        tally.left, tally.warned, tally.gone = pending + self.left, self.warned, self.gone
        tally.received = None if self.warned else self.received  # a warned job may be signalled after it
        return tally

    def _run_what_fits(self, pending: list[PackedRun], tally: Tally) -> None:
        """Until nothing is left, or not in the time that is left, or the job has to end."""
        while (pending or self.on) and not self._ending():
            left_s = self.deadline - time.monotonic()
            while packed := self._next(pending, left_s):
                pending.remove(packed)
                self._start(packed)
            if not self.on:
                break
            time.sleep(POLL_S)
            self._look_for_warning()
            self._collect(pending, tally)

    def _look_for_warning(self) -> None:
        """Some schedulers leave a file in place of a signal."""
        if self.stop_file and os.path.exists(self.stop_file) and not self.received:
            self.warned = True

    def _next(self, pending: Sequence[PackedRun], left_s: float) -> PackedRun | None:
        if self.job.alone and self.on:
            return None
        return next_run(pending, len(self.free), left_s, self.whole_s)

    def _ending(self) -> bool:
        return self.warned or self.received is not None

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals are noted, and acted on between two looks at the runs."""
        before = {number: signal.signal(number, self._keep) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _keep(self, number: int, frame: object) -> None:
        self.received = self.received or signal.Signals(number).name

    def _start(self, packed: PackedRun) -> None:
        hosts, self.free = self.free[: packed.nodes], self.free[packed.nodes :]
        self.started += 1
        packed.tries += 1
        packed.rows = len(self.store.attempts(packed.run.run_id))
        site = self.job.site
        step = Step(
            nodes=packed.nodes,
            per_node=packed.per_node,
            hosts=tuple(hosts),
            head=hosts[0],
            port=str(self._port()),
            name=f"{self.folder.name}-{packed.run.run_id}-{packed.tries}",
            cpus_per_rank=site.cpus_per_rank,
            python=site.python,
            container=site.container,
            options=site.launcher_options,
            mpirun=site.mpirun,
            mpi=site.mpi,
            exports=tuple(name for name in self.job.exports if name in os.environ),
        )
        program = ["-m", "scalade", "worker", str(self.job.study), "--results", str(self.job.results)]
        program += ["--case", packed.run.run_id, "--quiet", *(["--retry-failed"] if self.job.retry_failed else [])]
        words = self.launcher.step(step, self.scheduler.starter, program)
        self._say(f"{packed.run.run_id}  {packed.run.label}  on {' '.join(hosts)}")
        with files.stream(self.folder / f"{self.stem}.{packed.run.run_id}.log", append=True) as log:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | self.scheduler.packed_env | {MARK: self.mark},
                cwd=self.job.workdir,
            )
        self.guard = self.guard or Guard(self.mark)
        self.on.append(Started(packed, hosts, process))

    def _port(self) -> int:
        """For torchrun's agents: another one for each start, and for other jobs than this."""
        digits = "".join(filter(str.isdigit, next((os.environ[key] for key in JOB_IDS if key in os.environ), "")))
        return 10_000 + (97 * int(digits or os.getpid()) + self.started) % 20_000

    def _collect(self, pending: list[PackedRun], tally: Tally) -> None:
        """What has ended gives its nodes back, those that are there; a run without a row is tried again."""
        for ended in [each for each in self.on if each.process.poll() is not None]:
            self.on.remove(ended)
            packed, run_id = ended.packed, ended.packed.run.run_id
            status = self.store.finished(run_id)
            if status not in UNFINISHED and len(self.store.attempts(run_id)) > packed.rows:
                self.free = ended.hosts + self.free
                tally.ended[run_id] = status
                self._say(f"{run_id}  {status}")
            else:
                self._without_row(ended, status, pending, tally)

    def _without_row(self, ended: Started, status: str | None, pending: list[PackedRun], tally: Tally) -> None:
        """Once more here; after TRIES starts in the next allocation, where it was cut off, else not again."""
        packed, run_id = ended.packed, ended.packed.run.run_id
        gone = self.scheduler.gone(ended.hosts)
        self.gone += gone
        self.free += [host for host in ended.hosts if host not in gone]  # last: they may have been the reason
        if gone:
            packed.tries -= 1
        if self._ending() or packed.tries < TRIES:
            pending.insert(0, packed)
            why = f", {' '.join(gone)} gone" if gone else ""
            self._say(f"{run_id}  {status or 'no row'}, status {ended.process.returncode}{why}: once more")
        else:
            self._out_of_tries(packed, tally)

    def _out_of_tries(self, packed: PackedRun, tally: Tally) -> None:
        packed.cut_off = was_cut_off(self.store.run_folder(packed.run.run_id))
        to, decision = (self.left, "left to the next allocation") if packed.cut_off else (tally.given_up, "given up")
        to.append(packed)
        self._say(f"{packed.run.run_id}  no row after {TRIES} starts: {decision}")

    def _end_all(self, pending: list[PackedRun], tally: Tally) -> None:
        """Wait until the steps have ended: on the warning by themselves, else because they are asked to."""
        self._say(f"{'the time is up' if self.warned else self.received}: the runs are ended")
        grace_s = 0.75 * self.job.site.signal_s if self.warned else 0.0
        self._wait(grace_s, pending, tally)
        for each in self.on:
            with suppress(ProcessLookupError):
                each.process.send_signal(signal.SIGTERM)
        self._wait(FAREWELL_S, pending, tally)
        pending += [each.packed for each in self.on]

    def _wait(self, seconds: float, pending: list[PackedRun], tally: Tally) -> None:
        deadline = time.monotonic() + seconds
        while self.on and time.monotonic() < deadline:
            time.sleep(POLL_S)
            self._collect(pending, tally)

    def _say(self, line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


JOB_IDS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID")


def pack(path: Path) -> Tally:
    """Run the missing runs of a job file on this allocation.

    Raises
    ------
    ValueError: the job file or the study is wrong, or this is no job of that scheduler
    """
    begun = time.monotonic()
    job = read_job(path)
    study, store = load_study(job.study), RunStore(job.results)
    try:
        hosts = SCHEDULERS[job.scheduler].hosts(os.environ)
    except KeyError as error:
        raise ValueError(f"{path}: runs inside a job of {job.scheduler}, and {error} is not set here") from None
    tally = Packer(job, store, hosts, path, begun).run(packed_runs(study, store, job))
    plan = make_plan(study, store, only=job.cases, cases=study.cases_elsewhere())
    tally.kept = {run_id: status for run_id, status in plan.kept.items() if run_id not in tally.ended}
    return tally


def to_text(tally: Tally) -> list[str]:
    """The tally for people."""
    lines = [f"runs: {len(tally.ended)} ended here, {sum(s == 'ok' for s in tally.ended.values())} of them ok"]
    if tally.left:
        lines.append(f"left to the next allocation: {', '.join(packed.run.run_id for packed in tally.left)}")
    if tally.gone:
        lines.append(f"crashed: {', '.join(tally.gone)}")
    if tally.given_up:
        lines.append(f"given up: {', '.join(packed.run.run_id for packed in tally.given_up)}")
    return lines
