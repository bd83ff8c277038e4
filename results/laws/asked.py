"""What a user asks of a fit, held against what a fit can answer before any work is done: one line for each mistake."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from ..table.filter import where as where_rows
from .base import Law


def check(
    level: float,
    bootstrap: int,
    seed: int,
    fix: Mapping[str, float | str],
    flops_per_nd: float,
    target_flops: Sequence[float],
    at: Sequence[Mapping[str, float]],
    compare: Sequence[str] | None,
) -> None:
    """Raises ValueError for a number that no fit can be asked with: what it is and what would be right."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level:g}")
    if bootstrap < 0:
        raise ValueError(f"bootstrap must be 0 or more resamples, got {bootstrap}")
    least = math.ceil(1 / (1 - level) - 1e-6)  # fewer have no quantile out there, and two ends of one draw
    if 0 < bootstrap < least:
        raise ValueError(
            f"bootstrap: {bootstrap} resamples give no {level:.0%} interval; take {least} or more, better 1000, or 0 "
            "for none"
        )
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    for name, value in fix.items():
        if not isinstance(value, str) and not math.isfinite(value):
            raise ValueError(f"fix {name}={value:g}: a parameter is held at a finite number")
    if not (flops_per_nd > 0 and math.isfinite(flops_per_nd)):
        raise ValueError(f"flops_per_nd must be a positive number, got {flops_per_nd:g}")
    for flops in target_flops:
        if not (flops > 0 and math.isfinite(flops)):
            raise ValueError(f"target_flops must be positive FLOPs, such as 1e21, got {flops:g}")
    if at and compare is not None and not compare:
        raise ValueError("at: a stack of laws forecasts a run, and `--compare none` asks for no forecast: drop one")


def names_of(law: Law, columns, params, tokens, loss) -> tuple[dict[str, str], str]:
    """Role -> column as the user named them, and the column of the response."""
    names = dict(columns or {}) | {r: c for r, c in (("params", params), ("tokens", tokens)) if c}
    if loss and "loss" in law.roles:  # the law reads the loss and predicts something else
        names.setdefault("loss", loss)
        loss = None
    response = names.pop(law.response, None) or names.pop("y", None) or loss or law.response
    return names, response


def kept_and_held(frame: pd.DataFrame, where: str | None, holdout: str | None) -> tuple[pd.Series, pd.Series]:
    """Masks of the rows that `where` keeps and that `holdout` names. Raises ValueError where they leave no row."""
    keep = pd.Series(True, index=frame.index) if where is None else where_rows(frame, where)
    held = pd.Series(False, index=frame.index) if holdout is None else where_rows(frame, holdout)
    if not keep.any():
        raise ValueError(f"where {where!r}: no row is left")
    if holdout is not None and not (keep & held).any():
        raise ValueError(f"holdout {holdout!r}: matches no row" + (" that where keeps" if where else ""))
    if not (keep & ~held).any():
        raise ValueError(f"holdout {holdout!r}: matches all {int(keep.sum())} rows, so that none is left to fit")
    return keep, held
