"""Sensitivity of a fit: the same law with one choice made otherwise (objective, rows, columns)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from .fit import Fit, Sensitivity, fit
from .resample import Progress
from .solver import Objective
from .table import Rows


@dataclass(frozen=True)
class _Variant:
    """A fit with one choice made otherwise, to be made."""

    what: str
    setting: str
    rows: Rows
    objective: Objective


def with_sensitivity(
    f: Fit,
    everything: Rows | None = None,
    alternatives: dict[str, Rows] | None = None,
    progress: Progress | None = None,
) -> Fit:
    """The fit under other deltas and objectives, without its worst rows, with the rows the user left out
    (`everything`), and with other columns for a role (`alternatives`, labelled)."""
    if f.sample is not None:
        return replace(f, sensitivity=with_sensitivity(f.sample, progress=progress).sensitivity)
    variants = [*_other_objectives(f), *_other_rows(f, everything)]
    variants += [_Variant("convention", label, rows, f.objective) for label, rows in (alternatives or {}).items()]
    out = []
    for i, variant in enumerate(variants):
        if progress:
            progress("sensitivity", i / len(variants))
        try:
            refitted = _refit(f, variant)
        except ValueError:
            continue  # fewer rows than the law needs: nothing to compare with
        out.append(Sensitivity(variant.what, variant.setting, refitted.natural, len(variant.rows.y)))
    return replace(f, sensitivity=tuple(out))


def _other_objectives(f: Fit) -> Iterator[_Variant]:
    for delta in (1e-4, 1e-3, 1e-2, 1e-1):
        if f.objective != Objective("huber", delta):
            yield _Variant("delta", f"huber {delta:g}", f.rows, Objective("huber", delta))
    for kind in ("l1", "squares"):
        if kind != f.objective.kind:
            yield _Variant("objective", kind, f.rows, Objective(kind))


def _other_rows(f: Fit, everything: Rows | None) -> Iterator[_Variant]:
    worst = np.argsort(-np.abs(f.residuals))
    for k in sorted({1, max(1, round(0.05 * len(worst)))}):
        keep = np.ones(len(worst), bool)
        keep[worst[:k]] = False
        rows = "rows" if k > 1 else "row"
        yield _Variant("outliers", f"without the {k} worst {rows}", f.rows.take(keep), f.objective)
    extra = 0 if everything is None else len(everything.y) - len(f.rows.y)
    if everything is not None and extra:
        setting = f"with the {extra} {'rows' if extra > 1 else 'row'} left out by where"
        yield _Variant("outliers", setting, everything, f.objective)


def _refit(f: Fit, variant: _Variant) -> Fit:
    """From the fit's own optimum and some of the law's starts."""
    inputs, log_y = f.law.prepare(variant.rows.columns), np.log(variant.rows.y)
    starts = f.law.starts(inputs, log_y)
    start = np.concatenate([f.theta[None], starts[:: max(1, len(starts) // 6)]])
    return fit(f.law, variant.rows, objective=variant.objective, fix=f.fix, prior=f.prior_weight, start=start)
