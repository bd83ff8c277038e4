"""Reading a table: from a file and column names to the arrays of a fit, or one line about the mistake in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .base import Law, unknown
from .copies import joined, of_whole_runs, twins, whole_copies
from .csv_file import DECIMAL, numbers, read_csv, why_no_number

RESPONSE = ""  # stands for the response among the roles of a law


@dataclass(frozen=True)
class Rows:
    """Clean rows of one fit: role columns and response (n,), clusters (n,) as codes, labels for messages.

    missing: rows left out because a column they need is null; copies: rows that repeat another in every column of
    the table; twins: pairs of labels of rows that are one run twice (`copies.twins`).
    """

    columns: dict[str, np.ndarray]
    y: np.ndarray
    cluster: np.ndarray
    index: np.ndarray
    missing: int = 0
    copies: int = 0
    twins: tuple[tuple, ...] = ()

    @property
    def clusters(self) -> int:
        return int(self.cluster.max()) + 1 if len(self.cluster) else 0

    def take(self, mask: np.ndarray) -> Rows:
        return Rows(
            {r: c[mask] for r, c in self.columns.items()},
            self.y[mask],
            np.unique(self.cluster[mask], return_inverse=True)[1],
            self.index[mask],
            self.missing,
            self.copies,
            self.twins,
        )


def read_table(path: str | Path) -> pd.DataFrame:
    """CSV (csv_file.py) or Parquet by suffix. Raises ValueError where it is absent, empty or unreadable."""
    path = Path(path)
    readers = {".csv": read_csv, ".tsv": read_csv, ".parquet": _read_parquet, ".pq": _read_parquet}
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}; there is " + ", ".join(readers))
    try:
        frame = readers[path.suffix.lower()](path)
    except Exception as error:  # pandas and pyarrow raise many kinds; the user needs the file and the reason
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: cannot be read ({why})") from None
    if frame.empty:
        raise ValueError(f"{path}: has no rows")
    return frame


def _read_parquet(path: Path) -> pd.DataFrame:
    from ..store.parquet_file import read

    return read(path).to_pandas()


def column(frame: pd.DataFrame, name: str, what: str) -> pd.Series:
    if name not in frame.columns:
        padded = [known for known in map(str, frame.columns) if known.strip() == name.strip()]
        if padded:
            raise ValueError(f"{what}: no column {name!r}, but {padded[0]!r}: mind the blanks")
        raise ValueError(f"{what}: " + unknown("column", name, map(str, frame.columns)))
    return frame[name]


def _numbers(frame: pd.DataFrame, name: str, label: str) -> np.ndarray:
    """A column (n,), NaN for null. Raises ValueError where a cell is no number, with what to write."""
    series, decimal = column(frame, name, label), frame.attrs.get(DECIMAL, ".")
    values = numbers(series, decimal)
    text = series.notna() & values.isna()
    if text.any():
        at = text.idxmax()
        why = why_no_number(series[at], name, decimal)
        hint = f" ({why})" if why else ""
        raise ValueError(f"{label}: column {name!r} holds {series[at]!r} in row {at}, not a number{hint}")
    return values.to_numpy(float, na_value=np.nan)


def _check_sign(values: np.ndarray, index: np.ndarray, name: str, label: str, zero_ok: bool) -> None:
    """Raises ValueError where a value (n,) of a column is not finite, negative or, unless zero_ok, zero."""
    bad = ~(((values >= 0) if zero_ok else (values > 0)) & np.isfinite(values))
    if not bad.any():
        return
    k, rest = int(np.argmax(bad)), f" ({int(bad.sum())} such rows)" if bad.sum() > 1 else ""
    out = " or leave them out" if rest else " or leave it out"
    if np.isfinite(values).all() and not bad.all():
        out += f" (--where '{name} > 0')" if name.isidentifier() else " (--where)"
    needs = "it must hold finite non-negative" if zero_ok else "logs need finite positive"
    raise ValueError(f"{label}: column {name!r} holds {values[k]:g} in row {index[k]}{rest}; {needs} values: mend{out}")


def rows(
    law: Law,
    frame: pd.DataFrame,
    names: Mapping[str, str],
    response: str,
    run: str | None = None,
    extra: tuple[str, ...] = (),
) -> Rows:
    """The law's columns out of `frame`; `names` maps a role to a column (a role not named is its own).

    Null rows are left out and counted. Raises ValueError on an unknown column, text, inf, zero or
    negative values (row and column named), and on a curve law without a run column.
    """
    _check_roles(law, names, run, extra)
    optional = [role for role in extra if role in names]
    wanted = {role: (names.get(role, role), role) for role in (*law.roles, *optional)}
    wanted[RESPONSE] = (response, law.response)
    data, keep = _whole_rows(frame, wanted, run)
    index = frame.index.to_numpy()[keep]
    for role, values in data.items():
        _check_sign(values, index, *wanted[role], role in law.zero_ok)
    y, table = data.pop(RESPONSE), frame[keep]
    same = _copies(table, y)
    used = {run, *(name for name, _ in wanted.values())}
    others = table.select_dtypes("number")
    pairs = twins(data, y, others[[c for c in others if c not in used]], same)
    cluster = same  # a row that copies another is no second run
    if run is not None:
        data["run"] = column(frame, run, "run").to_numpy()[keep]
        cluster = np.unique(data["run"].astype(str), return_inverse=True)[1]
        pairs = of_whole_runs(cluster, pairs)
    cluster = np.unique(joined(cluster, pairs), return_inverse=True)[1]
    labels = tuple((index[a], index[b]) for a, b in pairs)
    return Rows(data, y, cluster, index, int((~keep).sum()), len(y) - len(np.unique(same)), labels)


def _whole_rows(
    frame: pd.DataFrame, wanted: Mapping[str, tuple[str, str]], run: str | None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The columns of the rows in which none is null, role -> (n,), and which rows these are, bool (rows,).

    wanted: role -> (column, label)
    """
    data = {role: _numbers(frame, name, label) for role, (name, label) in wanted.items()}
    keep = ~np.any([np.isnan(values) for values in data.values()], 0)
    if run is not None:
        keep &= column(frame, run, "run").notna().to_numpy()
    return {role: values[keep] for role, values in data.items()}, keep


def _check_roles(law: Law, names: Mapping[str, str], run: str | None, extra: tuple[str, ...]) -> None:
    for role in names:
        if role not in law.roles + extra:
            raise ValueError(
                f"law {law.name!r} reads {', '.join(law.roles)}: " + unknown("role", role, law.roles + extra)
            )
    if law.needs_run and run is None:
        raise ValueError(f"law {law.name!r} reads curves: name the column that tells runs apart (run)")


def _copies(table: pd.DataFrame, y: np.ndarray) -> np.ndarray:
    """Code (n,) of the first row that each row repeats. Of a study: a case that ends at one loss twice is one run,
    whatever it took."""
    if "case_id" in table:
        return whole_copies(table[["case_id"]].assign(loss=y))
    return whole_copies(table)


def enough(law: Law, data: Rows, free: int | None = None) -> None:
    """Raises ValueError where there are too few rows, or nothing varies, to fit the law at all."""
    p = len(law.parameters) if free is None else free
    seen = pd.DataFrame({r: data.columns[r] for r in law.roles} | {"": data.y})
    distinct = int((~seen.duplicated()).sum())
    if distinct <= p:
        raise ValueError(
            f"too few rows: {law.name!r} has {p} free parameters and the table {distinct} distinct usable "
            f"rows ({data.missing} more have nulls); it needs at least {p + 1}"
        )
    for role in law.roles:
        if free is None and not law.needs_run and np.ptp(data.columns[role]) == 0:
            raise ValueError(
                f"{role}: every row has the value {data.columns[role][0]:g} (all {len(data.y)} rows); its exponent "
                "cannot be fitted: add runs of other sizes, or take a law that does not read it"
            )
