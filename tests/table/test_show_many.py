"""Tables of very many runs on a screen and as JSON: rows are bounded and counted, and the text is json.dumps's."""

import io
import json

import pyarrow as pa
import pytest
from rich.console import Console
from typer.testing import CliRunner

from scalade.cli.app import app
from scalade.results.schema.schema import arrow_schema
from scalade.results.store.store import RunStore
from scalade.results.table import json_rows, show
from scalade.results.table.json_rows import json_pieces
from scalade.results.table.read import runs_table


@pytest.fixture
def results(tmp_path):
    store = RunStore(tmp_path)
    store.write_rows(
        {
            "run_id": f"c{n:03d}-r0",
            "case_id": f"c{n:03d}",
            "repeat": 0,
            "status": "skipped",
            "reason": '100 % "no"\n',
            "started_at": f"2026-01-01T00:{n // 60:02d}:{n % 60:02d}Z",
            "tp": n,
            "lr": n / 3 or None,
            "compile": n % 2 > 0,
            "step_time_s": n / 1e7,
        }
        for n in range(250)
    )
    return tmp_path


def printed(path, terminal, **more):
    console = Console(file=io.StringIO(), width=120, force_terminal=terminal, color_system=None)
    return show.show(path, console=console, **more), console.file.getvalue()


def test_a_terminal_gets_so_many_rows_and_how_many_more_there_are(results):
    count, text = printed(results, True, columns="run_id,tp")
    assert count == 250 and "50 more rows: --limit 0 shows all" in text
    assert "c199-r0" in text and "\nc200-r0" not in text
    for more, terminal in (({"limit": 0}, True), ({}, False)):
        count, text = printed(results, terminal, columns="run_id,tp", **more)
        assert "more rows" not in text and "\nc249-r0" in text
    count, text = printed(results, False, columns="run_id,tp", limit=3, sort="-tp")
    assert text.splitlines()[2:5] == ["c249-r0  249", "c248-r0  248", "c247-r0  247"] and "247 more rows" in text


def test_json_is_what_json_dumps_gives(results, monkeypatch):
    monkeypatch.setattr(json_rows, "AT_ONCE", 7)
    _, text = printed(results, False, as_json=True)
    table = runs_table(results)
    assert text == json.dumps(table.sort_by([("started_at", "ascending")]).to_pylist(), indent=1) + "\n"
    _, text = printed(results, True, as_json=True, columns="run_id,step_ms,tp", limit=2)
    assert json.loads(text) == [{"run_id": f"c00{n}-r0", "step_ms": n / 1e7 * 1e3, "tp": n} for n in range(2)]
    _, text = printed(results, False, as_json=True, where="tp > 900")
    assert text == "[]\n"


def test_pieces_of_json_over_every_type_and_chunk():
    rows = [{"run_id": '%s\u2028\x1b"', "lr": 1e-300}, {"repeat": -(2**63), "lr": 5.0}, {"compile": True}]
    table = pa.concat_tables([pa.Table.from_pylist([row], arrow_schema("runs")) for row in rows])
    columns = dict(zip(table.column_names, table.columns, strict=True))
    assert "".join(json_pieces(columns)) == json.dumps(table.to_pylist(), indent=1)


def test_json_of_what_is_the_same_in_all_rows_and_of_what_is_no_number(monkeypatch):
    table = pa.table(
        {"100 %s": ["%d"] * 5, "n": [None, 1, 1, 1, 1], "x": [0.1] * 5, "b": [True] * 5, "no": pa.nulls(5)}
    )
    columns = dict(zip(table.column_names, table.columns, strict=True))
    for at_once in (2, 3, 4096):
        monkeypatch.setattr(json_rows, "AT_ONCE", at_once)
        assert "".join(json_pieces(columns)) == json.dumps(table.to_pylist(), indent=1)
        same = {"x": table["x"]}
        assert "".join(json_pieces(same)) == json.dumps(table.select(["x"]).to_pylist(), indent=1)
    odd = pa.chunked_array([[float("nan"), float("inf"), -0.0, 1e-7]])
    assert json.loads("".join(json_pieces({"x": odd}))) == [{"x": None}, {"x": None}, {"x": -0.0}, {"x": 1e-7}]


def test_the_command_packs_and_unpacks(results):
    RunStore(results).write_run({"run_id": "x-r0", "case_id": "x", "repeat": 0, "status": "ok"})
    done = CliRunner().invoke(app, ["compact", str(results), "--json"])
    assert done.exit_code == 0 and json.loads(done.output) == {
        "packed": 1,
        "left": 0,
        "parts": 2,
        "results": str(results),
    }
    assert list((results / "runs").iterdir()) == []
    done = CliRunner().invoke(app, ["compact", str(results), "--undo"])
    assert "put back into folders of their own: 251 attempts" in done.output
    assert len(list((results / "runs").iterdir())) == 251
