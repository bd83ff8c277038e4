"""Rows of two kinds in one table: mixed units, losses or sets, as the residuals of a first fit show them.

`refuse` names rows whose tokens a parameter are in other units than the others', where no law holds both. `warn` names
lone rows far off the law, a column of text that tells most of the residuals apart (train and validation), pairs of
rows that differ by one and the same factor, and a scatter that no sweep of losses has. The limits are beyond every
published table that the tests read, but for the five outliers of Hoffmann et al.'s figure, which are named.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from .fit import Fit

GAP, APART = 5.0, 100.0  # between neighbours in tokens a parameter, and between the medians of the two groups
UNEXPLAINED = 0.03  # scatter above which such a gap is no design
LONE = (0.1, 30.0)  # log residual of a lone row, and in units of the others' scatter
SEPARATED = 0.5  # of the variance of the residuals, by one column of text
SCATTER = 0.1  # published sweeps of losses scatter by .3% to 5%
KINDS = 6  # values of such a column; one that names the runs themselves is none
FEWEST = 12  # rows, to say anything of groups


def scatter(e: np.ndarray) -> float:
    """Robust sd of residuals (n,)."""
    return max(1.4826 * float(np.median(np.abs(e - np.median(e)))), 1e-4)


def refuse(f: Fit, named) -> list[str]:
    """Lines (none for a sound table). named(index, mask): how rows are named."""
    data = f.rows
    if not f.law.falls or not {"params", "tokens"} <= set(f.law.roles) or len(data.y) < FEWEST:
        return []
    ratio = data.columns["tokens"] / data.columns["params"]
    order = np.sort(np.log(ratio))
    k = int(np.argmax(np.diff(order)))
    low = np.log(ratio) <= order[k]
    few = low if low.sum() <= 0.5 * len(low) else ~low
    off = float(np.median(ratio[~low]) / np.median(ratio[low]))
    if (
        order[k + 1] - order[k] < math.log(GAP)
        or off < APART
        or few.sum() < max(3, 0.05 * len(few))
        or scatter(f.residuals) < UNEXPLAINED
    ):
        return []
    return [
        f"params, tokens: {named(data.index, few)} have {np.median(ratio[few]):.3g} tokens a parameter in the median "
        f"and the other {int((~few).sum())} {np.median(ratio[~few]):.3g}, nothing between, and no law holds both "
        f"(scatter {scatter(f.residuals):.1%}): units are mixed; give all rows as counts"
    ]


def warn(f: Fit, frame: pd.DataFrame, used: set[str], response: str, named) -> list[str]:
    """Lines of what may be meant as it is. frame: the table with f's rows; used: columns that the fit reads."""
    if not f.law.falls or len(f.rows.y) < FEWEST:
        return []
    lines = _separated(f, frame.loc[f.rows.index], used, response) if frame.index.is_unique else []
    lines, wide = lines or _pairs(f, response), scatter(f.residuals)
    if not lines and wide > SCATTER and {"params", "tokens"} <= set(f.law.roles):
        lines = [
            f"{response}: the rows scatter by {wide:.0%} about the law, published sweeps by .3% to 5%: are units, "
            "held-out sets or recipes mixed in it? Fit one kind (--where)"
        ]
    return _lone(f, response, named) + lines


def _lone(f: Fit, response: str, named) -> list[str]:
    e, s = f.residuals, scatter(f.residuals)
    off = (np.abs(e) > LONE[0]) & (np.abs(e) > LONE[1] * s)
    if not off.any() or off.mean() > 0.1:
        return []
    far = np.exp(e[off]) - 1
    span = f"{far[0]:+.0%}" if off.sum() == 1 else f"{far.min():+.0%} to {far.max():+.0%}"
    return [
        f"{response}: {named(f.rows.index, off)} {'lie' if off.sum() > 1 else 'lies'} {span} off the law of the "
        f"others, which scatter by {s:.2%}: check units and run, or leave out (--where)"
    ]


def _separated(f: Fit, frame: pd.DataFrame, used: set[str], response: str) -> list[str]:
    """The column of text that tells most of the residuals apart."""
    best = (SEPARATED, None, None)
    e = np.clip(f.residuals, *np.quantile(f.residuals, [0.02, 0.98]))
    for name in frame.columns:
        values = frame[name]
        if name in used or pd.api.types.is_numeric_dtype(values) or values.isna().any():
            continue
        groups = pd.Series(e).groupby(values.astype(str).to_numpy())
        if not 2 <= groups.ngroups <= min(KINDS, f.rows.clusters - 1) or groups.size().min() < 3:
            continue
        share = 1 - float(((e - groups.transform("mean")) ** 2).sum() / max(((e - e.mean()) ** 2).sum(), 1e-300))
        if share > best[0] and np.ptp(groups.mean()) > 0.005:
            best = (share, name, groups.mean().sort_values())
    share, name, means = best
    if name is None:
        return []
    return [
        f"{response}: column {name!r} tells {share:.0%} of the scatter about the law apart, {means.index[0]!r} lies "
        f"{math.expm1(np.ptp(means)):.1%} below {means.index[-1]!r}: losses of several kinds in one fit? Take one "
        f"(--where \"{name} == '{means.index[-1]}'\")"
    ]


def _pairs(f: Fit, response: str) -> list[str]:
    """Rows that agree in every column of the law and differ in the response by one factor: no repeats."""
    seen = pd.DataFrame({r: f.rows.columns[r] for r in f.law.roles} | {"": np.log(f.rows.y)})
    groups = seen.groupby(list(f.law.roles))[""]
    two = groups.size() == 2
    if two.sum() < 6 or 2 * two.sum() < 0.5 * len(seen):
        return []
    apart = (groups.max() - groups.min())[two]
    middle = float(apart.median())
    if middle < 0.005 or float((apart - middle).abs().median()) > 0.2 * middle:
        return []  # the difference of two repeats is as often near 0 as far from it
    return [
        f"{response}: {int(two.sum())} pairs of rows agree in {' and '.join(f.law.roles)} and differ in it by "
        f"{math.expm1(middle):.1%} each: two kinds of loss, such as training and validation? Fit one"
    ]
