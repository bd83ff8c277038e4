"""What a reader must know of BASE and HEAD before believing a ratio: other machines, other software, no turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..schema.rows import AnyRow, ok_rows, values_in
from ..table import held_out
from ..table.read import printable
from ..table.work import work_of
from ..wording import count_of
from .confirm import execution
from .pairs import Finding

HARDWARE = ("cpu_model", "cpu_count", "host_memory_bytes", "device_name", "device_count", "threads_per_rank", "nodes")
SOFTWARE = (
    "driver_version",
    "os",
    "kernel",
    "backend",
    "launcher",
    "python_version",
    "torch_version",
    "cuda_version",
    "nccl_version",
    "omp_wait_policy",
    "deepspeed_version",
    "megatron_version",
    "mpi_version",
    "scalade_version",
    "git_commit",
    "git_dirty",
)


def notes_on(base: Sequence[AnyRow], head: Sequence[AnyRow], findings: Sequence[Finding]) -> Iterator[str]:
    """A line for each of them."""
    base, head = ok_rows(base), ok_rows(head)
    if _same_executions(base, head):
        yield "BASE and HEAD hold the same executions: this compares runs with themselves"
    yield from _differences(base, head)
    unknown = _unknown_work(base), _unknown_work(head)
    if any(unknown):
        where = f"{count_of(unknown[0], 'run')} of BASE, {unknown[1]} of HEAD"
        yield f"tokens per step unknown in {where}: taken to be those of their case"
    if unhashed := held_out.unknown([*base, *head]):
        yield unhashed
    if any(one.interleaved is False for one in findings):
        yield (
            "the runs of BASE and HEAD did not take turns: a change of the machine between them looks like a "
            "difference. `scalade compare --interleave` runs them in turns"
        )


def _same_executions(base: Sequence[AnyRow], head: Sequence[AnyRow]) -> bool:
    dated = (row for row in base if row["started_at"])
    return not set(map(execution, head)).isdisjoint(map(execution, dated))


def _differences(base: Sequence[AnyRow], head: Sequence[AnyRow]) -> Iterator[str]:
    """In what the machines and the software of the two sides differ, a line for each column."""
    for column in (*HARDWARE, *SOFTWARE):
        in_base, in_head = _texts(base, column), _texts(head, column)
        if in_base and in_head and in_base != in_head:
            prefix = "the machines differ: " if column in HARDWARE else ""
            yield printable(f"{prefix}{column} {', '.join(in_base)} in BASE, {', '.join(in_head)} in HEAD")


def _texts(rows: Sequence[AnyRow], column: str) -> list[str]:
    values = values_in(rows, column)
    return sorted({str(value) for value in values if value is not None})


def _unknown_work(rows: Sequence[AnyRow]) -> int:
    """Recorded runs whose tokens per step are not known."""
    return sum(row["parity"] is not None and work_of(row) is None for row in rows)
