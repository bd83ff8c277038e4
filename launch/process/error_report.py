"""Why a rank failed: the report that it leaves for its supervisor, and the kind of an exception."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...results import files
from ...results.out_of_memory import is_out_of_memory
from ..host.placement import WorldError
from .cause import ErrorKind
from .run_spec import read_json
from .scratch import report_file

# Of gloo and NCCL, whose RuntimeErrors say no more than their text; none can be part of a host's name.
PEER_TEXTS = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "socket closed",
    "remote process exited",
    "gloo/transport/",
    "nccl communicator was aborted",
    "failed to recv",
    "connection was likely closed",
    "application timeout caused pair closure",
    "connection refused",
)
LIBRARIES = ("RuntimeError", "DistBackendError", "DistError", "DistStoreError")  # the latter three: torch.distributed's


@dataclass(frozen=True)
class ErrorReport:
    """Of a rank that failed."""

    rank: int
    kind: ErrorKind
    line: str  # one line for the table
    trace: str
    at: float  # Unix time, s


def read_report(scratch: Path, rank: int) -> ErrorReport | None:
    content = read_json(report_file(scratch, rank))
    try:
        return parsed_report(content) if content else None
    except (LookupError, TypeError, ValueError):
        return None


def parsed_report(content: dict[str, Any]) -> ErrorReport:
    """Inverse of dataclasses.asdict."""
    return ErrorReport(**content | {"kind": ErrorKind(content["kind"])})


def error_kind(error: BaseException) -> ErrorKind:
    """By the exception's type; for torch's collectives, whose types do not tell, by the library's text."""
    if isinstance(error, WorldError):
        return ErrorKind.WORLD
    if isinstance(error, FloatingPointError):
        return ErrorKind.NAN
    if is_out_of_memory(error):
        return ErrorKind.OOM
    if isinstance(error, ConnectionError) or type(error).__name__ == "DistNetworkError":
        return ErrorKind.PEER
    text = str(error).lower()
    if type(error).__name__ in LIBRARIES and any(part in text for part in PEER_TEXTS):
        return ErrorKind.PEER
    return ErrorKind.EXCEPTION


def one_line(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    line = text if isinstance(error, WorldError) else f"{type(error).__name__}: {text}".removesuffix(": ")
    return line if len(line) <= 300 else line[:297] + "..."


def write_report(scratch: Path, report: ErrorReport) -> None:
    files.write(report_file(scratch, report.rank), json.dumps(asdict(report)), sync=False)
