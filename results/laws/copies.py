"""Rows that hold one run twice: copies of whole rows, and the same numbers under another name or rounded.

A copy is a copy of the whole row: two seeds that end at the same rounded loss are two runs. A twin is a row whose
numbers are those of another, each as it is or rounded to fewer digits, and only text differs (a run exported twice
under two names). Both are resampled as one run, and reported with their rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

DIGITS = 5  # losses that agree to so many significant digits are one measurement
MOST = 50_000  # rows that share size and length with others; a table of more is a simulation or a log
GROUP = 50  # rows of one size and length that are compared in pairs; more of them are no twins but repeats


def whole_copies(frame: pd.DataFrame) -> np.ndarray:
    """Code (n,) of the first row that each row repeats in every column."""
    hashes = pd.util.hash_pandas_object(frame.map(_plain) if _odd(frame) else frame, index=False).to_numpy()
    first = pd.factorize(hashes)[0]
    return first.astype(int)


def _odd(frame: pd.DataFrame) -> bool:
    """Whether a cell is a list or another thing that cannot be hashed."""
    objects = [c for c in frame if frame[c].dtype == object]
    return any(frame[c].map(lambda v: isinstance(v, (list, dict, set, np.ndarray))).any() for c in objects)


def _plain(value):
    return str(value) if isinstance(value, (list, dict, set, np.ndarray)) else value


def decimals(values: np.ndarray) -> np.ndarray:
    """(n,) how many decimals each value is written with, 12 at most."""
    out = np.full(len(values), 12)
    for d in range(11, -1, -1):
        out[np.abs(np.round(values, d) - values) <= 1e-12 * np.maximum(np.abs(values), 1e-300)] = d
    return out


def twins(columns: Mapping[str, np.ndarray], y: np.ndarray, numbers: pd.DataFrame, whole: np.ndarray) -> np.ndarray:
    """Pairs (k, 2) of rows, the rounded or later one second, whose numbers agree though the rows are no copies.

    columns: the law's roles (n,); y (n,); numbers: the table's other numeric columns, which must agree; whole (n,):
    the codes of `whole_copies`. One pair that lost a single digit proves nothing, for a seed's loss may end in 0.
    """
    key = np.column_stack([_significant(v, 4) for v in columns.values()]) if columns else np.zeros((len(y), 0))
    group = pd.util.hash_pandas_object(pd.DataFrame(key), index=False).to_numpy()
    _, code, count = np.unique(group, return_inverse=True, return_counts=True)
    some = np.flatnonzero((count[code] > 1) & (count[code] <= GROUP))
    if not 0 < len(some) <= MOST:
        return np.zeros((0, 2), int)
    order = some[np.argsort(code[some], kind="stable")]
    pairs = [(a, b) for at in np.split(order, np.flatnonzero(np.diff(code[order])) + 1) for a, b in _pairs(at)]
    a, b = np.array(pairs).T
    digits = decimals(y)
    a, b = np.where(digits[a] >= digits[b], a, b), np.where(digits[a] >= digits[b], b, a)
    fewer = digits[a] - digits[b]
    size = np.floor(np.log10(np.maximum(np.abs(y[a]), 1e-300))).astype(int)
    same = (np.abs(y[a] - y[b]) <= 1e-12 * np.abs(y[a])) & (digits[a] + size + 1 >= DIGITS)
    rounded = (fewer > 0) & (digits[b] >= 2) & (np.abs(y[a] - y[b]) <= 0.5000001 * 10.0 ** -digits[b].astype(float))
    match = (same | rounded) & (whole[a] != whole[b]) & _agree(numbers, a, b)
    for v in columns.values():
        match &= _one_rounded(v[a], v[b])
    plain = match & (same | (fewer >= 2))
    match = match if (match & ~plain).sum() >= max(3, 0.2 * len(a)) else plain
    twice = np.column_stack([a[match], b[match]])
    return twice[np.lexsort((twice[:, 1], twice[:, 0]))]


def _pairs(at: np.ndarray):
    i, j = np.triu_indices(len(at), 1)
    return zip(at[i], at[j], strict=True)


def _one_rounded(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(k,) whether two values are one, or one of them is the other in fewer significant digits."""
    out = np.isclose(a, b, rtol=1e-12, atol=0.0)
    for d in range(2, 15):
        short_a, short_b = _significant(a, d), _significant(b, d)
        out |= np.isclose(short_a, b, rtol=1e-12, atol=0.0) | np.isclose(short_b, a, rtol=1e-12, atol=0.0)
    return out


def _significant(values: np.ndarray, digits: int) -> np.ndarray:
    size = np.floor(np.log10(np.maximum(np.abs(values), 1e-300)))
    return np.round(values / 10.0**size, digits - 1) * 10.0**size


def _agree(numbers: pd.DataFrame, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(k,) whether the other numeric columns agree to three digits; a count of the rows is no measurement."""
    fine = np.ones(len(a), bool)
    for name in numbers:
        v = numbers[name].to_numpy(float, na_value=np.nan)
        if len(v) > 1 and np.ptp(np.diff(v)) == 0:
            continue
        fine &= (np.abs(v[a] - v[b]) <= 1e-3 * np.abs(v[a])) | (np.isnan(v[a]) & np.isnan(v[b]))
    return fine


def of_whole_runs(cluster: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The pairs (k, 2) of runs that agree in nine tenths of the rows of the longer one: runs that branched from one
    trunk share its rows and are two."""
    if not len(pairs):
        return pairs
    ends = np.sort(cluster[pairs], 1)
    _, code, count = np.unique(ends, axis=0, return_inverse=True, return_counts=True)
    rows = np.bincount(cluster)
    return pairs[count[code.ravel()] >= 0.9 * rows[ends].max(1)]


def joined(cluster: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Cluster codes (n,) in which the two rows of every pair are of one cluster."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    k = int(cluster.max()) + 1 if len(cluster) else 0
    if not len(pairs):
        return cluster
    a, b = cluster[pairs[:, 0]], cluster[pairs[:, 1]]
    return connected_components(coo_matrix((np.ones(len(a)), (a, b)), shape=(k, k)), directed=False)[1][cluster]
