"""Which final losses may be compared, and as rows that a law is fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..efficiency.workload import has_outer_loop
from ..laws.table import Rows
from ..schema.rows import values_in
from ..table.held_out import refusal
from .source import Source

SAME = ("data_hash", "data_vocab", "model_vocab", "model_seq_len")  # losses may be compared if these agree


def comparable(source: Source) -> tuple[list[Mapping], str]:
    """The largest set of ok runs whose final losses may be compared, and the column of that loss."""
    needed = ("params_total", "tokens_seen", "train_flops_6n", "loss")
    sets: dict[tuple, list[Mapping]] = {}
    for row in source.ok:
        if not has_outer_loop(row) and has_all(row, needed):
            sets.setdefault(picked(row, SAME), []).append(row)
    if not sets:
        return [], "loss"
    rows = max(sets.values(), key=len)
    return rows, loss_column(rows)


def law_rows(rows: Sequence[Mapping], column: str, roles: Mapping[str, str]) -> Rows:
    """Rows for a fit; roles: role -> column of `runs`. Runs that agree in all of these and in the loss are one run."""
    columns = {role: values_in(rows, name) for role, name in roles.items()}
    loss = np.array(values_in(rows, column), float)
    same = np.unique(np.column_stack([*columns.values(), loss]), axis=0, return_inverse=True)[1].ravel()
    return Rows({name: np.array(v, float) for name, v in columns.items()}, loss, same, np.arange(len(rows)))


def has_all(row: Mapping, names: Sequence[str]) -> bool:
    """Whether the row has a value, and not 0, in each of these columns."""
    return all(row[name] for name in names)


def picked(row: Mapping, names: Sequence[str]) -> tuple:
    """The row's values in these columns."""
    return tuple(row[name] for name in names)


def loss_column(rows: Sequence[Mapping]) -> str:
    """The loss by which these rows may be compared: the held-out one if all have it, of the same sequences."""
    return "val_loss" if all(row["val_loss"] for row in rows) and not refusal(rows) else "loss"


def loss_name(column: str) -> str:
    return "held-out loss, nats per token" if column == "val_loss" else "training loss (last tenth), nats per token"
