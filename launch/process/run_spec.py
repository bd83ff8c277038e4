"""What a rank's process is to run (spec.json in the run's scratch folder), and what rank 0's program returns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...results import files
from ..host.clock import Moment
from ..study.case import Case
from ..study.comm_case import CommCase


@dataclass(frozen=True)
class RunSpec:
    run_id: str
    case: str  # Case.to_json, or CommCase.to_json
    repeat: int
    study: str
    launcher: str
    results: str  # folder of the RunStore
    scratch: str  # this run's own folder: logs, progress, error reports, checkpoints
    size: int  # ranks
    nonce: str  # of this attempt: tells its ranks from those of any other job
    address: str  # where rank 0's store listens
    port: int
    device: str  # auto, cpu, cuda
    threads: int  # of each rank; 0: cores // ranks of the host
    attempt: int  # from 1
    launched_at: float  # Unix time, s
    predicted: Mapping[str, Any] = field(default_factory=dict)  # columns of what was predicted before the run
    join_timeout_s: float = 120.0  # for all ranks to come together
    link: Mapping[str, Any] = field(default_factory=dict)  # columns of the shaped links that the ranks talk over
    job: Mapping[str, Any] = field(default_factory=dict)  # columns of the scheduler's job that this is part of
    hang_limit_s: float = 0.0  # without a step; 0: no limit
    grace_s: float = 60.0  # for a checkpoint, when the job's time is up
    launched_monotonic: float = 0.0  # the same moment on the monotonic clock of rank 0's host
    launched_clock: str = ""  # and which clock that is
    isolation: str = "fresh"  # or pool
    requeue_signals: str = ""  # by which a scheduler says so; it may send them to the ranks, too

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        return cls(**json.loads(text))

    @property
    def launched(self) -> Moment:
        return Moment(self.launched_at, self.launched_monotonic, self.launched_clock)

    def parsed_case(self) -> Case | CommCase:
        return (CommCase if CommCase.is_json(self.case) else Case).from_json(self.case)

    def identity(self) -> dict[str, Any]:
        """The columns of `runs` that say which run this is."""
        columns: dict[str, Any] = {
            "run_id": self.run_id,
            "repeat": self.repeat,
            "attempt": self.attempt,
            "study": self.study,
            "launcher": self.launcher,
            "isolation": self.isolation,
            "world_size": self.size,
            "started_at": utc(self.launched_at),
        }
        return {**columns, **self.predicted, **self.parsed_case().columns(), **self.link, **self.job}


@dataclass(frozen=True)
class RunResult:
    """What rank 0's program returns. Other ranks' results are ignored, and may be None."""

    status: str  # ok, diverged
    row: dict[str, Any]  # what was measured: columns of `runs` beside identity, case, and ranks_json
    steps: Mapping[str, Any] = field(default_factory=dict)  # columns of `steps`, equally long
    evals: Mapping[str, Any] = field(default_factory=dict)
    comm: Mapping[str, Any] = field(default_factory=dict)
    ops: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None


def utc(unix_s: float) -> str:
    """ISO 8601, to the millisecond."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds")


def read_json(file: Path, below: Path | None = None) -> dict[str, Any] | None:
    """The content, or None where there is no (whole) file, or no JSON object in it."""
    try:
        content = files.read_json(file, below)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
