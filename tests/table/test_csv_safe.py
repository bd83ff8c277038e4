"""`scalade export --csv-safe`: no text of a CSV is taken for a formula; numbers stay numbers."""

import pandas as pd

from scalade.results.store.store import RunStore
from scalade.results.table import show

TEXTS = {
    '=HYPERLINK("http://x")': '\'=HYPERLINK("http://x")',
    "+1+cmd|' /C calc'!A0": "'+1+cmd|' /C calc'!A0",
    "@SUM(A1)": "'@SUM(A1)",
    "\t=1": "'\t=1",
    "-1": "-1",
    "-1e-5": "-1e-5",
    "-2+3": "'-2+3",
    "plain = text": "plain = text",
    "rank 1: out of memory": "rank 1: out of memory",
}


def exported(folder, **options):
    show.export(folder / "r", folder / "x.csv", **options)
    return pd.read_csv(folder / "x.csv", dtype={"reason": str})


def test_formulas_are_marked_on_request_and_numbers_never(tmp_path):
    for number, text in enumerate(TEXTS):
        row = {"run_id": f"c{number}-r0", "case_id": "c", "repeat": 0, "status": "failed", "loss": -1.5 - number}
        RunStore(tmp_path / "r").write_run(row | {"reason": text}, {"step": [0], "loss": [-2.5]})
    plain, safe = exported(tmp_path), exported(tmp_path, csv_safe=True)
    assert plain["reason"].tolist() == list(TEXTS) and safe["reason"].tolist() == list(TEXTS.values())
    assert safe["loss"].tolist() == plain["loss"].tolist() == [-1.5 - number for number in range(len(TEXTS))]
    assert exported(tmp_path, csv_safe=True, table="steps")["loss"].tolist() == [-2.5] * len(TEXTS)
    show.export(tmp_path / "r", tmp_path / "x.parquet", csv_safe=True)
    assert pd.read_parquet(tmp_path / "x.parquet")["reason"].tolist() == list(TEXTS)
