"""Which columns of `runs` a screen has room for: what varies between the rows first, and whole columns only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from ..schema.columns import RUNS
from ..schema.schema import columns
from .distinguishing import differing, implied_by

GAP = "  "
OF_MODEL = (
    "model_layers",
    "model_heads",
    "model_kv_heads",
    "model_width",
    "model_ffn",
    "params_total",
    "params_non_embedding",
)
OF_LAYOUT = tuple(column.name for group in ("Layout", "Outer loop") for column in RUNS[group])
IMPLIED_BY = (  # columns that others tell, where they do
    (OF_MODEL, ("model",)),
    (("tokens_per_step",), ("global_batch", "model_seq_len")),
    (OF_LAYOUT, ("layout", "world_size")),
)
NULL_COUNTS = tuple(column.name for column in RUNS["Recipe"])  # elsewhere null says that there is no such thing
RESULTS = (
    "tokens_seen",
    "tokens_unique",
    "data_hash",
    "data_tokens",
    "data_entropy_nats",
    "outer_steps",
    "outer_bytes_per_rank",
    "outer_time_s",
    "outer_exposed_s",
    "replica_drift",
    "pseudograd_cosine",
    "quorum_missed",
)
AROUND = (
    "study",
    "lab",
    "launcher",
    "isolation",
    "threads_per_rank",
    "device_name",
    "cpu_model",
    "torch_version",
    "scalade_version",
    "git_commit",
)


@dataclass(frozen=True)
class Laid:
    """Columns of text as a screen takes them: blocks of whole columns, and the names of those left out."""

    blocks: tuple[tuple[int, ...], ...]
    left_out: tuple[int, ...] = ()


def varying(table: pa.Table, shown: Sequence[str]) -> list[str]:
    """The settings in which these rows differ beyond the columns that are shown, most asked for first.

    A column is left out where one that is shown says it: a model's name its shape, a layout's name its degrees.
    """
    names = [name for name in settings() if name not in (*shown, *RESULTS)]
    names = differing(table, names, nulls=NULL_COUNTS)
    implied = set()
    for of, by in IMPLIED_BY:
        implied.update(implied_by(table, [name for name in names if name in of], by))
    return [name for name in names if name not in implied]


def settings() -> list[str]:
    """Every column that `varying` looks at, or that says one of them."""
    groups = ("Recipe", "Outer loop", "Layout", "Model", "Data")
    names = [column.name for group in groups for column in RUNS[group]]
    return [*names, *(name for name in AROUND if name in columns("runs")), "world_size"]


def fitted(widths: Sequence[int], wanted: Sequence[int], room: int) -> Laid:
    """One block of what fits, most wanted first; the first is there even without room."""
    kept = [wanted[0]]
    for at in wanted[1:]:
        if total(widths, [*kept, at]) <= room:
            kept.append(at)
    return Laid((tuple(sorted(kept)),), tuple(sorted(set(wanted) - set(kept))))


def folded(widths: Sequence[int], room: int) -> Laid:
    """Every column, in as many blocks as it takes, each begun by the first column."""
    blocks: list[list[int]] = [[]]
    for at in range(len(widths)):
        if len(blocks[-1]) > min(1, at) and total(widths, [*blocks[-1], at]) > room:
            blocks.append([0] if widths[0] <= room / 2 else [])
        blocks[-1].append(at)
    return Laid(tuple(map(tuple, blocks)))


def total(widths: Sequence[int], kept: Sequence[int]) -> int:
    return sum(widths[at] for at in kept) + len(GAP) * (len(kept) - 1)
