"""What a person sees of the table: fits 100 columns, failures with their reason, nothing that drives the terminal."""

import io
import json

import pytest
from rich.console import Console

from scalade.results.schema.columns import STATUSES
from scalade.results.store.store import RunStore
from scalade.results.table.show import DEFAULT, show


@pytest.fixture
def results(tmp_path):
    store = RunStore(tmp_path / "results")
    base = {"repeat": 0, "model": "tiny-800k", "study": "quickstart"}
    measured = {
        "tokens_per_s": 51234.56,
        "step_time_s": 0.0799,
        "loss": 3.14159,
        "val_loss": 3.2,
        "world_size": 2,
        "peak_host_memory_bytes": 700 * 2**20,
    }
    rows = [
        {"status": "ok", "layout": "fsdp2"} | measured,
        {"status": "ok", "layout": "fsdp2.tp2.pp2v2-Interleaved1F1B.m4"} | measured | {"world_size": 8, "loss": 3.5},
        {"status": "oom", "layout": "dp2", "world_size": 2, "reason": "rank 1: [bold]CUDA\x1b[31m out\nof memory"},
        {"status": "skipped", "layout": "tp8", "reason": "heads 4 is not a multiple of tp 8"},
    ]
    for n, row in enumerate(rows):
        case_id = f"{n:016x}"
        identity = {"run_id": f"{case_id}-r0", "case_id": case_id, "started_at": f"2026-01-0{4 - n}"}
        store.write_run(base | identity | row)
    return tmp_path / "results"


def shown(path, width=100, **more):
    text = io.StringIO()
    count = show(path, console=Console(file=text, width=width, highlight=False), **more)
    return count, text.getvalue()


GOLDEN = """\
model      layout                              ranks  status   tokens_per_s  step_ms    loss  val_loss  host_mib
────────────────────────────────────────────────────────────────────────────────────────────────────────────────
tiny-800k  tp8                                     -  skipped             -        -       -         -         -
tiny-800k  dp2                                     2  oom                 -        -       -         -         -
tiny-800k  fsdp2.tp2.pp2v2-Interleaved1F1B.m4      8  ok             51,235     79.9  3.5000    3.2000       700
tiny-800k  fsdp2                                   2  ok             51,235     79.9  3.1416    3.2000       700

0000000000000003-r0 skipped: heads 4 is not a multiple of tp 8
0000000000000002-r0 oom: rank 1: [bold]CUDA\\x1b[31m out\\nof memory
"""


def test_the_table_a_person_sees(results):
    count, text = shown(results, width=200)
    assert count == 4
    assert "\n".join(line.rstrip() for line in text.splitlines()) + "\n" == GOLDEN


def test_the_default_columns_fit_100(results):
    _, text = shown(results)
    table = text.split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= 100
    assert "51,235" in text and "…" not in text and "fsdp2.tp2.pp2v2-Interleaved1F1B.m4" in text
    assert "no room for " in text


def test_a_full_row_fits_100(tmp_path):
    """Every default column measured, and the longest status."""
    row = {one.column: 1 for one in DEFAULT} | {
        "run_id": "a-r0",
        "case_id": "a",
        "model": "diloco-1.3b",
        "layout": "fsdp8.tp8",
        "world_size": 1024,
        "repeat": 10,
        "status": max(STATUSES, key=len),
        "reason": "so",
        "tokens_per_s": 12345678.9,
        "step_time_s": 12.3456,
        "loss": 10.12345,
        "val_loss": 10.12345,
        "peak_memory_bytes": 80 * 2**30,
        "peak_host_memory_bytes": 900 * 2**30,
    }
    RunStore(tmp_path).write_run(row)
    _, text = shown(tmp_path, width=100)
    header, _, line = text.splitlines()[:3]
    assert len(line) <= 100
    assert [one.header for one in DEFAULT if one.header not in header] == ["host_mib"]  # the device's is there
    assert line.split() == [
        "diloco-1.3b",
        "fsdp8.tp8",
        "1024",
        "10",
        "cancelled",
        "12,345,679",
        "12,345.6",
        "10.1235",
        "10.1235",
        "81,920",
    ]


def test_columns_filter_and_sort(results):
    count, text = shown(results, columns="run_id, loss,status", where="status == ok", sort="-loss")
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert count == 2 and lines[0] == ["run_id", "loss", "status"]
    assert [line[1] for line in lines[2:]] == ["3.5", "3.14159"]
    for sort, order in (("loss", ["3.14159", "3.5"]), ("-loss", ["3.5", "3.14159"])):
        _, text = shown(results, columns=["case_id", "loss"], sort=sort)
        cells = [line.split()[1] for line in text.splitlines() if line.strip().startswith("000")][:4]
        assert cells == [*order, "-", "-"]  # nulls last, both ways
    _, text = shown(results, columns="all", width=10_000)
    assert "pseudograd_cosine" in text


def test_json_is_rows_with_nulls(results):
    count, text = shown(results, as_json=True)
    rows = json.loads(text)
    assert count == len(rows) == 4 and rows[0]["loss"] is None and rows[0]["status"] == "skipped"
    _, text = shown(results, as_json=True, columns="run_id,loss", where="loss > 3.2")
    assert json.loads(text) == [{"run_id": "0000000000000001-r0", "loss": 3.5}]
    (results / "runs/0000000000000000-r0/a1/run.json").write_text("{")
    assert len(json.loads(shown(results, as_json=True)[1])) == 3  # the warning is not in the JSON


def test_nothing_to_show(tmp_path, results):
    (tmp_path / "empty").mkdir()
    assert shown(tmp_path / "empty")[0] == 0 and "no runs in" in shown(tmp_path / "empty")[1]
    count, text = shown(results, where="status == timeout")
    assert count == 0 and "none of the 4 runs matches" in text
    assert json.loads(shown(tmp_path / "empty", as_json=True)[1]) == []


def test_damage_is_told_beside_the_table(results):
    (results / "runs/0000000000000000-r0/a1/run.json").write_text('{"a":')
    count, text = shown(results, width=60)
    assert count == 3 and "warning: " in text and "0000000000000000-r0/a1/run.json left out" in text


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"columns": "tokens_per_sec"}, "did you mean 'tokens_per_s'"),
        ({"sort": "-los"}, "did you mean 'loss'"),
        ({"where": "statu == ok"}, "did you mean 'status'"),
        ({"columns": "run_id,,loss"}, "no column ''"),
    ],
)
def test_an_unknown_column_names_the_nearest(results, more, told):
    with pytest.raises(ValueError, match=told):
        shown(results, **more)


def test_a_pipe_cuts_nothing(results, capsys):
    show(results, columns="all")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) > 1000 and not any("…" in line for line in lines)


def made(folder, *rows):
    store = RunStore(folder)
    for n, row in enumerate(rows):
        known = {
            "run_id": f"{n:04d}-r0",
            "case_id": f"{n:04d}",
            "repeat": 0,
            "status": "ok",
            "model": "m",
            "loss": 2.5,
            "layout": "dp2",
            "world_size": 2,
            "step_time_s": 0.05 * (n + 1),
            "tokens_per_s": 1000.0,
        }
        store.write_run(known | row)
    return folder


SETTINGS = (
    {"lr": 1e-3, "seed": 1, "model_seq_len": 128},
    {"lr": 3e-3, "seed": 1, "model_seq_len": 128},
    {"lr": 3e-3, "seed": 2, "model_seq_len": 256},
)


def header(text):
    return text.splitlines()[0].split()


def test_what_varies_between_the_rows_is_shown_and_nothing_that_a_label_says(tmp_path):
    _, text = shown(made(tmp_path / "a", *SETTINGS))
    assert header(text) == [
        "model",
        "layout",
        "ranks",
        "lr",
        "seed",
        "model_seq_len",
        "status",
        "tokens_per_s",
        "step_ms",
        "loss",
    ]
    assert "0.003" in text
    _, text = shown(tmp_path / "a", where="seed == 1")
    assert "lr" in header(text) and not {"seed", "model_seq_len"} & set(header(text))
    rows = [{"layout": f"tp{n}", "tp": n, "model": f"m{n}", "model_width": 64 * n} for n in (1, 2)]
    assert not {"tp", "model_width"} & set(header(shown(made(tmp_path / "b", *rows))[1]))
    rows = [{"tp": 1, "model_width": 64}, {"tp": 2, "model_width": 128}]  # the labels do not tell them apart
    assert {"tp", "model_width"} <= set(header(shown(made(tmp_path / "c", *rows))[1]))


@pytest.mark.parametrize("width", range(20, 110, 3))
def test_a_narrow_screen_has_whole_columns_and_says_which_are_left_out(tmp_path, width):
    path = made(tmp_path, *SETTINGS, {"layout": "fsdp2.tp2", "status": "failed", "reason": "torch.OutOfMemoryError"})
    every = header(shown(path, width=10_000)[1])
    text = shown(path, width=width)[1]
    table = text.split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= width and {len(line.split()) for line in table[2:]} == {len(header(text))}
    said = " ".join(text.split())
    left_out = said.split("no room for ")[1].split(":")[0].split(", ") if "no room for " in said else []
    words = {word for line in shown(path, width=10_000)[1].splitlines()[6:] for word in line.split()}
    assert words <= set(said.split())  # no word of a reason is broken
    assert sorted([*header(text), *left_out]) == sorted(every)
    if "host_mib" in header(text) or "step_ms" in header(text):  # what varies goes before what was measured
        assert {"lr", "seed", "model_seq_len"} <= set(header(text))


def test_columns_that_were_asked_for_are_all_there_in_blocks(tmp_path):
    path = made(tmp_path, *SETTINGS)
    text = shown(path, width=40, columns="run_id,lr,seed,model_seq_len,tokens_per_s,step_ms")[1]
    blocks = [block.splitlines() for block in text.split("\n\n")]
    assert [block[0].split() for block in blocks] == [
        ["run_id", "lr", "seed", "model_seq_len"],
        ["run_id", "tokens_per_s", "step_ms"],
    ]
    assert all(len(line) <= 40 for block in blocks for line in block)


def test_the_names_in_the_header_are_taken_by_filter_sort_and_columns(tmp_path):
    path = made(tmp_path, *SETTINGS)
    names = {one.header for one in DEFAULT} | set(header(shown(path)[1]))
    for name in names:
        assert shown(path, columns=name, sort=name, where=f"{name} == null or not {name} == null")[0] >= 0
    assert shown(path, where="step_ms > 60 and ranks == 2")[0] == 2
    rows = json.loads(shown(path, where="step_ms > 60", sort="-step_ms", columns="step_ms,ranks", as_json=True)[1])
    assert [row["ranks"] for row in rows] == [2, 2] and rows[0]["step_ms"] == pytest.approx(150)


def test_a_run_without_throughput_says_why(tmp_path):
    path = made(tmp_path, {"tokens_per_s": None, "tokens_per_s_reason": "no step says its time"})
    assert "0000-r0 no tokens_per_s: no step says its time" in shown(path)[1]


def test_a_cause_is_said_once_with_its_runs(tmp_path):
    silent = [{"tokens_per_s": None, "tokens_per_s_reason": "all steps are warm-up", "lr": n} for n in range(5)]
    lost = [{"status": status, "reason": "out of memory"} for status in ("oom", "oom", "failed")]
    causes = shown(made(tmp_path, *silent, *lost), width=200)[1].split("\n\n")[1].splitlines()
    assert causes == [
        "2 x oom: out of memory (0005-r0, 0006-r0)",
        "0007-r0 failed: out of memory",
        "5 x no tokens_per_s: all steps are warm-up (0000-r0, 0001-r0, 0002-r0 and 2 more)",
    ]


def test_what_tells_rows_apart_is_there_on_the_narrowest_screen(tmp_path):
    fast = [{"layout": "diloco.M2.H4", "steps": n, "tokens_per_s": 1e4 * n} for n in (4, 7, 8)]
    path = made(
        tmp_path, *fast, {"layout": "diloco.M2.H4", "steps": 2, "status": "oom", "reason": "x", "tokens_per_s": None}
    )
    assert header(shown(path, width=40)[1])[:2] == ["steps", "status"]
