"""Checks of a table before a law is fitted to it; one line for each fault: the cause, the rows, what to do instead.

`before` reads the columns: units that are mixed or are no counts, logs, columns that move together, a response that
does not vary or that rises. `after` reads the first fit: diverged runs. What either returns makes a fit's numbers
look like a result without being one, so `fit_file` refuses the table unless it is asked to fit it anyway. Where a law
says no more than a constant (`nothing_said`) the report stands and every parameter is refused. The limits are far
from every published table that the tests read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy import stats

from . import mixed
from .base import Law
from .fit import Fit, fit
from .identify import Profile, spread
from .solver import Objective
from .table import Rows

COUNTS = ("params", "tokens", "unique_tokens")
GAP = 300.0  # neighbours this far apart in a column of sizes are in different units
LEAST = {"params": 1e3, "tokens": 1e4, "unique_tokens": 1e4}  # no language model is smaller, or reads less
LIKELY = {"params": 3e8, "tokens": 1e10, "unique_tokens": 1e10}  # the middle of a ladder, to guess a unit
BASES = {"10": 10.0, "2": 2.0, "e": math.e}
FEWEST, MOST = 0.1, 1e4  # tokens a parameter, median: published tables lie between 4 and 40
TOGETHER = 0.12  # spread of the logs of two columns across the line they lie on: 12%
UNIFORM = 12.5  # nats of a uniform guess over 262,144 tokens
DIVERGED = ((0.3, 20.0), (0.7, 8.0))  # log excess over the law, and in units of the others' scatter


def named(index: np.ndarray, mask: np.ndarray, show: int = 4) -> str:
    """`row 3`, `rows 3, 9 and 12`, `rows 3, 9, 12, 15 and 20 more`, `all 60 rows`."""
    at = [str(v) for v in index[mask]]
    if len(at) == len(index):
        return f"all {len(at)} rows"
    if len(at) == 1:
        return f"row {at[0]}"
    if len(at) > show + 1:
        return f"rows {', '.join(at[:show])} and {len(at) - show} more"
    return f"rows {', '.join(at[:-1])} and {at[-1]}"


def before(law: Law, data: Rows, names: Mapping[str, str], response: str, held: bool = False) -> list[str]:
    """Lines (none for a sound table). names: role -> column; held: parameters are fixed, so that a ladder may do."""
    if len(data.y) <= len(law.roles) + 1:
        return []  # `table.enough` says so, and so few rows lie on a line whatever they are
    counts = [r for r in law.roles if r in COUNTS]
    for check in (_mixed, _no_counts):
        lines = [line for r in counts if (line := check(r, names.get(r, r), data))]
        if lines:
            return lines  # what else they look like follows from the units
    lines = _ratio(law, data, names) + _response(law, data, response)
    if not held:
        lines += _together(law, data, names) + _steady(law, data, names)
    return list(dict.fromkeys(lines))


def _span(values: np.ndarray) -> str:
    if np.ptp(values) == 0:
        return f"{values[0]:.4g}"
    return f"{values.min():.4g} to {values.max():.4g}"


def _mixed(role: str, column: str, data: Rows) -> str | None:
    x = np.log(data.columns[role])
    steps = np.diff(np.sort(x))
    if not len(steps) or steps.max() < math.log(GAP):
        return None
    k = int(np.argmax(steps))
    low = x <= np.sort(x)[k]
    few = low if low.sum() <= 0.5 * len(x) else ~low
    v = data.columns[role]
    off = float(np.median(v[~low]) / np.median(v[low]))
    return (
        f"{role}: column {column!r} holds {_span(v[few])} in {named(data.index, few)} and {_span(v[~few])} in the "
        f"other {int((~few).sum())}, nothing between: units are mixed, the smaller seem to be in {_unit(off)}; give "
        "all rows as counts"
    )


def _unit(factor: float) -> str:
    """The unit whose factor is next to this one."""
    return ("thousands", "millions", "billions", "trillions")[int(np.clip(round(math.log10(factor) / 3), 1, 4)) - 1]


def _no_counts(role: str, column: str, data: Rows) -> str | None:
    v = data.columns[role]
    small = v < LEAST[role]
    if not small.any():
        return None
    if v.max() < 45 and v.min() > 1.5 and v.max() < 4 * v.min():
        middle = 8.7 if role == "params" else 10.5  # half a billion parameters, thirty billion tokens
        base = min(("10", "2", "e"), key=lambda n: abs(np.median(v) * math.log10(BASES[n]) - middle))
        guess = f"logarithms, to base {base} it seems (or billions): give {base}^{column}"
    else:
        factor = min((1e3, 1e6, 1e9, 1e12), key=lambda k: abs(math.log(float(np.median(v)) * k / LIKELY[role])))
        guess = f"{_unit(factor)}, it seems: multiply by {factor:.0e}"
    few = "all" if small.all() else int(small.sum())
    return (
        f"{role}: column {column!r} holds {_span(v)} in all {len(v)} rows, {few} below {LEAST[role]:,.0f}: no counts "
        f"but {guess}"
    )


def _ratio(law: Law, data: Rows, names) -> list[str]:
    if not {"params", "tokens"} <= set(law.roles):
        return []
    ratio = float(np.median(data.columns["tokens"] / data.columns["params"]))
    if FEWEST <= ratio <= MOST:
        return []
    role = "params" if ratio > MOST else "tokens"
    off = ratio / 20 if ratio > MOST else 20 / ratio
    return [
        f"{role}: the median of all {len(data.y)} rows is {ratio:.3g} tokens a parameter: column "
        f"{names.get(role, role)!r} seems to be in {_unit(off)}; give counts"
    ]


def _response(law: Law, data: Rows, column: str) -> list[str]:
    y, what = data.y, law.response
    if np.ptp(np.log(y)) < 1e-6:
        return [
            f"{what}: column {column!r} is {y[0]:g} in all {len(y)} rows; a law needs runs of different {what}: give "
            "the final loss of each"
        ]
    up = _rises_with(law, data) if law.falls else []
    if not up:
        return []
    return [
        f"{what}: column {column!r} rises with {' and '.join(up)} over {named(data.index, y > 0)} "
        f"({_span(y)}): is it an accuracy? The law falls; give a loss or an error, such as 1 - accuracy"
    ]


def _rises_with(law: Law, data: Rows) -> list[str]:
    """Columns with which the response rises where the law falls, and falls with none of them; by regression of logs."""
    x = np.log(np.column_stack([data.columns[r] for r in law.falls]))
    x = np.column_stack([np.ones(len(data.y)), x - x.mean(0)])
    if len(data.y) <= x.shape[1] + 2:
        return []
    log_y = np.log(data.y)
    slope, t = _slopes(x, log_y)
    explains = not (t < -2).any() and np.var(x @ slope) > 0.25 * np.var(log_y)
    return [r for r, v in zip(law.falls, t, strict=True) if v > 4] if explains else []


def unusual(law: Law, data: Rows, column: str) -> list[str]:
    """Lines of what may be meant as it is: the fit is made, and they stand above it."""
    y = data.y
    if not law.falls or not len(y) or np.median(y) <= UNIFORM:
        return []
    return [
        f"{law.response}: column {column!r} holds {_span(y)} over {named(data.index, y > 0)}, above the {UNIFORM:g} "
        "nats of a uniform guess: a perplexity or a per cent? The law is of nats or bits, the log of a perplexity"
    ]


def _slopes(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares (k,) of y on x (n, k), and the t values of all but the first."""
    inverse = np.linalg.pinv(x.T @ x)
    b = inverse @ x.T @ y
    sd = np.sqrt(np.maximum(((y - x @ b) ** 2).sum() / (len(y) - x.shape[1]) * np.diag(inverse), 1e-300))
    return b, (b / sd)[1:]


def _together(law: Law, data: Rows, names) -> list[str]:
    out = []
    roles = [r for r in law.roles if r in (*COUNTS, "replicas", "experts", "x")]
    for i, a in enumerate(roles):
        for b in roles[i + 1 :]:
            u, v = np.log(data.columns[a]), np.log(data.columns[b])
            if np.ptp(u) == 0 or np.ptp(v) == 0:
                continue
            across, along = np.sqrt(np.maximum(np.linalg.eigvalsh(np.cov(u, v)), 0.0))
            still = min((np.std(u), a), (np.std(v), b))
            if across < TOGETHER and still[0] < 1.5 * TOGETHER:
                out.append(_still(still[1], data, names))
            elif across < TOGETHER and along > 2 * across:
                out.append(_ladder(a, b, data, names, float(np.sum((u - u.mean()) * (v - v.mean())))))
    return out


def _ladder(a: str, b: str, data: Rows, names, covariance: float) -> str:
    u, v = data.columns[a], data.columns[b]
    slope = float(np.polyfit(np.log(u), np.log(v), 1)[0])
    if abs(slope - 1) < 0.05:
        how = f"{b} = {float(np.median(v / u)):.4g} {a}"
    elif abs(slope + 1) < 0.05:
        how = f"{a} x {b} = {float(np.median(v * u)):.3g}"
    else:
        how = f"{b} follows {a}^{slope:.2g}"
    off = float(np.std(np.log(v) - np.polyval(np.polyfit(np.log(u), np.log(v), 1), np.log(u))))
    return (
        f"{a}, {b}: {how}{f' within {off:.0%}' if off >= 0.005 else ''} in all {len(u)} rows (columns "
        f"{names.get(a, a)!r}, {names.get(b, b)!r}), so the part of each cannot be told apart; add runs at "
        f"other ratios, or fit one column (--law power_constant --column x={names.get(a, a)})"
    )


def _steady(law: Law, data: Rows, names) -> list[str]:
    near = [r for r in law.roles if r in COUNTS and 0 < np.ptp(np.log(data.columns[r])) < 0.05]
    return [_still(r, data, names) for r in near]


def _still(role: str, data: Rows, names) -> str:
    v = data.columns[role]
    return (
        f"{role}: column {names.get(role, role)!r} hardly varies, {_span(v)} in all {len(v)} rows; its exponent cannot "
        "be fitted: add runs of other sizes, or a law of the other column (--law power_constant)"
    )


def after(f: Fit, response: str) -> list[str]:
    """Lines (none for a sound table) from a first fit."""
    if not f.law.falls:
        return []
    f = robust(f)
    return _diverged(f, response) or mixed.refuse(f, named)


def doubts(f: Fit, frame, used: set[str], response: str) -> list[str]:
    """Lines of what a first fit shows that may be meant as it is."""
    return mixed.warn(robust(f), frame, used, response, named) if f.law.falls else []


def robust(f: Fit) -> Fit:
    """The fit by Huber's objective, whose residuals are those of the rows that are off."""
    if not f.objective.kind.endswith("squares"):
        return f
    return fit(f.law, f.rows, objective=Objective(), fix=f.fix, start=f.theta)


def _diverged(f: Fit, response: str) -> list[str]:
    e = f.residuals
    scatter = max(1.4826 * float(np.median(np.abs(e))), 1e-4)
    bad = np.any([(e > log) & (e > z * scatter) for log, z in DIVERGED], 0)
    if not bad.any() or bad.mean() > 0.45:
        return []
    y = f.rows.y
    limit = np.exp(0.5 * (np.log(y[bad].min()) + np.log(y[~bad].max())))
    say = (
        f"leave them out (--where '{response} < {limit:.3g}')"
        if y[bad].min() > y[~bad].max()
        else "leave them out (--where)"
    )
    say = say if bad.sum() > 1 else say.replace("them", "it")
    return [
        f"{f.law.response}: {named(f.rows.index, bad, 6)} {'look' if bad.sum() > 1 else 'looks'} diverged: "
        f"{_span(y[bad])} where the law of the other {int((~bad).sum())} rows, which scatter by {scatter:.2%}, says "
        f"{_span(y[bad] / np.exp(e[bad]))}; {say}"
    ]


def nothing_said(f: Fit) -> str:
    """Why the table says nothing of the law's columns, or "": the robust likelihood ratio of the law against a
    constant, which it nests or nearly does."""
    free = len(f.theta) - len(f.fix)
    n, y = len(f.log_y), f.log_y
    if not f.law.falls or free < 2 or n <= free or f.objective.kind == "raw_squares":
        return ""
    flat = min(f.objective.of(y, np.full(n, c)) for c in [*np.quantile(y, np.linspace(0.2, 0.8, 61)), y.mean()])
    tau = spread(f.residuals, f.objective, free)[0]
    if stats.chi2.sf(2 * max(flat - f.value, 0.0) / max(tau, 1e-300), free - 1) < 1e-3:
        return ""
    return (
        f"a constant describes all {n} rows as well as {f.law.name} does (scatter {float(np.std(y)):.2%}, about the "
        f"law {float(np.std(f.residuals)):.2%}): the table says nothing of {' or '.join(f.law.roles)}; check that rows "
        "and columns belong together, or add runs over a wider range"
    )


def refused(f: Fit, why: str) -> Fit:
    """The fit with every parameter refused."""
    names = [n for n in f.law.names if n not in f.law.bent and n not in f.fix]
    return replace(f, profiles=tuple(Profile(n, None, None, False, why, (), (), why) for n in names), draws=None)
