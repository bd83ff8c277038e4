"""Trainers that are not ours: what they report becomes rows that every reader reads; nothing told is lost."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from places import PROGRAMS, ROOT
from worlds import run_world

import scalade
from scalade.results.check.command import check
from scalade.results.efficiency import efficiency
from scalade.results.gate.compare import compare
from scalade.results.report import report
from scalade.results.schema.schema import columns
from scalade.results.table.recorder_log import FOUND, LOG, MEASURED, SETTINGS
from scalade.results.table.show import show

SHAPE = {"model": "nano", "model_layers": 2, "model_seq_len": 8, "params_total": 1000, "global_batch": 4, "seed": 0}


def recorded(folder, steps=12, step_time_s=0.1, **more):
    with scalade.record(folder, name="theirs", **SHAPE | more) as run:
        for i in range(steps):
            run.step(loss=3.0 - 0.1 * i, tokens=32, step_time_s=step_time_s * (1 + 0.01 * i))
        run.evaluate(val_loss=2.5, val_sequences=7)
        run.note(peak_memory_bytes=123)
    return run


def only(folder):
    (row,) = scalade.read_runs(folder).to_dict("records")
    return row


def test_a_row_says_what_was_told_and_what_follows_from_it(tmp_path):
    run = recorded(tmp_path, peak_flops=1e9, peak_flops_source="datasheet", dp_replicate=2, world_size=2)
    row, steps = only(tmp_path), scalade.read_steps(tmp_path)
    assert (row["run_id"], row["status"], row["parity"], row["study"]) == (run.run_id, "ok", "not checked", "theirs")
    assert (row["layout"], row["engine"], row["tokens_per_step"], row["tokens_seen"]) == ("dp2", "external", 32, 384)
    timed = steps["step_time_s"][5:].astype(float)
    assert row["step_time_s"] == pytest.approx(np.median(timed)) and row["timed_steps"] == 7
    assert row["step_time_p95_s"] == pytest.approx(np.quantile(timed, 0.95))
    assert row["tokens_per_s_per_device"] == pytest.approx(32 / np.median(timed) / 2)
    assert row["mfu_6n"] == pytest.approx(6000 * row["tokens_per_s_per_device"] / 1e9)
    assert row["train_flops_6n"] == 6000 * 384 and row["loss"] == pytest.approx(1.9) and row["val_loss"] == 2.5
    assert steps["warmup"].tolist() == [True] * 5 + [False] * 7 and steps["tokens_seen"].tolist()[-1] == 384
    assert scalade.read_evals(tmp_path)["val_sequences"].tolist() == [7] and row["peak_memory_bytes"] == 123
    assert run.folder == tmp_path / "runs" / run.run_id / "a1" and not (run.folder.parent / "scratch").exists()


def test_the_case_is_what_is_computed_and_runs_of_it_are_repeats(tmp_path):
    first, again = recorded(tmp_path), recorded(tmp_path, git_commit="abc", peak_flops=1e9)
    other = recorded(tmp_path, lr=1e-3)
    assert again.run_id == first.run_id.replace("-r0", "-r1") and other.run_id.endswith("-r0")
    assert other.run_id != first.run_id
    with scalade.record(tmp_path, name="theirs", **SHAPE) as one, scalade.record(tmp_path, name="x", **SHAPE) as two:
        assert (one.run_id[-3:], two.run_id[-3:]) == ("-r2", "-r3")  # at the same time: neither takes the other's place
        for run in (one, two):
            run.step(loss=1.0)
    assert len(scalade.read_runs(tmp_path)) == 5


def test_every_column_is_told_noted_or_found_out():
    assert sorted([*SETTINGS, *FOUND, *MEASURED]) == sorted(columns("runs"))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda run: run.step(los=1.0), "steps has no column 'los': did you mean 'loss'"),
        (lambda run: run.step(loss="x"), "column loss is float64, found 'x'"),
        (lambda run: run.step(tokens=0.5), "column tokens is int64, found 0.5"),
        (lambda run: run.step(tokens=-100), "tokens = -100: must be at least 0"),
        (lambda run: run.step(step_time_s=-1.0), "step_time_s = -1: must be at least 0"),
        (lambda run: run.step(warmup=True), "warmup is computed by the recorder"),
        (lambda run: run.evaluate(valloss=1.0), "did you mean 'val_loss'"),
        (lambda run: run.note(status="ok"), "note: status is computed by the recorder"),
        (lambda run: run.note(lr=1.0), "note: lr decides what is computed: give it to record()"),
        (lambda run: run.note(peak_memory=1), "did you mean 'peak_memory_bytes'"),
    ],
)
def test_mistakes_while_it_runs(tmp_path, call, said):
    with scalade.record(tmp_path, name="x") as run:
        run.step(loss=1.0)
        with pytest.raises(ValueError, match="(?s).*") as error:
            call(run)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert only(tmp_path)["status"] == "ok"  # one wrong call costs the run nothing


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"n_layers": 2}, "runs has no column 'n_layers': did you mean 'model_layers'"),
        ({"loss": 2.0}, "loss is computed by the recorder"),
        ({"energy_j": 2.0}, "energy_j is measured over the run: give it to note()"),
        ({"lr": "high"}, "column lr is float64, found 'high'"),
        ({"world_size": 0}, "world_size = 0: must be at least 1"),
        ({"measure_warmup_steps": -1}, "measure_warmup_steps = -1: must be at least 0"),
        ({"outer_algorithm": "diloco", "outer_sync_every": 0}, "outer_sync_every = 0: must be at least 1"),
        (
            {"tp": 2, "dp_replicate": 2, "world_size": 2},
            "dp_replicate 2, tp 2: these multiply to 4 ranks, world_size is 2",
        ),
    ],
)
def test_mistakes_when_it_opens(tmp_path, known, said):
    with pytest.raises(ValueError) as error:
        scalade.record(tmp_path, name="x", **known)
    assert said in str(error.value)


def test_what_becomes_of_a_run(tmp_path):
    def broken(error, **step):
        with scalade.record(tmp_path, name="x", seed=len(told)) as run:
            run.step(**{"loss": 1.0} | step)
            if error is not None:
                raise error
        return run

    told = []
    for error, step, status, reason in (
        (None, {"loss": float("nan")}, "diverged", "loss is nan at step 0"),
        (RuntimeError("CUDA out of memory: 2\nGiB"), {}, "oom", "RuntimeError: CUDA out of memory: 2 GiB"),
        (KeyError("k"), {}, "failed", "KeyError: 'k'"),
        (KeyboardInterrupt(), {}, "cancelled", "cancelled by SIGINT"),
        (SystemExit(0), {}, "ok", None),
        (SystemExit(3), {}, "failed", "SystemExit: 3"),
    ):
        try:
            broken(error, **step)
        except BaseException as raised:
            assert raised is error  # the trainer's own error goes on
        row = next(r for r in scalade.read_runs(tmp_path).to_dict("records") if r["seed"] == len(told))
        told.append((row["status"], row["reason"] if row["status"] != "ok" else None))
        assert told[-1] == (status, reason) and row["step_rows"] == 1
    with scalade.record(tmp_path, name="x", seed=99):
        pass
    assert scalade.read_runs(tmp_path, where="seed == 99")["reason"].tolist() == ["no step was recorded"]


KILLED = """
import sys, time, scalade
run = scalade.record(sys.argv[1], name="x", lr=1e-3)
for i in range(1000):
    run.step(loss=3.0, tokens=8, step_time_s=0.1)
    print(i, flush=True)
    time.sleep(0.01 if i < 5 else 100)
"""


def test_a_killed_trainer_keeps_its_steps_and_the_next_recorder_writes_its_row(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    while process.stdout.readline() != "5\n":
        pass
    alive = scalade.record(tmp_path, name="other", lr=2e-3)  # while the first still runs: not taken for dead
    assert len(scalade.read_runs(tmp_path)) == 0
    process.send_signal(signal.SIGKILL)
    process.wait()
    alive.finish()
    (log,) = tmp_path.glob(f"runs/*/scratch/{LOG}")
    with open(log, "ab") as file:
        file.write(b'{"step": {"loss": 1')  # cut off as it was written
    recorded(tmp_path)
    row = scalade.read_runs(tmp_path, where="lr == 0.001").to_dict("records")[0]
    assert (row["status"], row["step_rows"], row["tokens_seen"]) == ("failed", 6, 48)
    assert row["reason"].startswith("killed")
    assert not list(tmp_path.glob("runs/*/scratch"))


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[]\n", b'{"settings": {"lr": "x"}}\n', b'{"step": {}}\n'])
def test_a_log_that_is_not_ours_costs_nothing(tmp_path, content):
    scratch = tmp_path / "runs" / "abc-r0" / "scratch"
    scratch.mkdir(parents=True)
    (scratch / LOG).write_bytes(content)
    recorded(tmp_path)
    assert len(scalade.read_runs(tmp_path)) == 1 and not scratch.exists()


def test_only_rank_0_records(tmp_path, monkeypatch):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    run = recorded(tmp_path, dp_replicate=2)
    assert run.run_id is None and run.folder is None and not (tmp_path / "runs").exists()
    with pytest.raises(ValueError, match="did you mean 'loss'"):
        run.step(los=1.0)  # a mistake shows on every rank
    monkeypatch.setenv("RANK", "0")
    assert recorded(tmp_path, dp_replicate=2).run_id and only(tmp_path)["world_size"] == 2


def test_readers_read_them_and_say_that_parity_was_not_checked(tmp_path, capsys):
    for repeat in range(6):
        recorded(tmp_path, step_time_s=0.1 + 0.001 * repeat, world_size=1, dp_replicate=1)
        recorded(tmp_path, step_time_s=0.06 + 0.001 * repeat, world_size=2, dp_replicate=2)
    found = efficiency(tmp_path, mode="strong")
    assert found.series[0].points[1].efficiency.value == pytest.approx(0.1025 / 0.0625 / 2, rel=0.05)
    assert "12 runs were recorded from outside: parity not checked" in found.to_text()
    files = report(tmp_path, tmp_path / "r.html", formats=())
    assert "scaling-strong" in files.drawn and "parity not checked" in files.html.read_text()
    assert check(tmp_path).runs == 12 and compare(tmp_path, tmp_path).compared == 2
    show(tmp_path)
    assert "dp2" in capsys.readouterr().out


def test_it_imports_no_torch(tmp_path):
    code = f"import sys, scalade; scalade.record({str(tmp_path)!r}, name='x').finish(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.slow
def test_a_nanogpt_like_loop_on_two_ranks(tmp_path):
    told = run_world("external_trainer.py", 2, {}, tmp_path, timeout_s=120)
    row, steps = only(tmp_path / "recorded"), scalade.read_steps(tmp_path / "recorded")
    assert (row["run_id"], row["status"], row["layout"], row["parity"]) == (told["run_id"], "ok", "dp2", "not checked")
    assert row["tokens_per_step"] == 2 * 2 * 16 * 2 and len(steps) == 14 and row["global_batch"] == 8
    assert row["loss"] < row["train_loss_first"] and len(json.loads(row["ranks_json"])) == 2
    assert row["tokens_per_s"] > 0 and row["wall_s"] > 0 and steps["grad_norm"].notna().all()
    run_world("external_trainer.py", 2, {"break_at": 7}, tmp_path, timeout_s=120)
    failed = scalade.read_runs(tmp_path / "recorded", where="status == failed").to_dict("records")[0]
    assert failed["reason"] == "RuntimeError: the trainer broke in two lines" and failed["step_rows"] == 7


def test_the_adapter_in_the_documentation_is_the_one_that_was_run():
    adapter = PROGRAMS.joinpath("external_adapter.py").read_text()
    assert adapter in (ROOT / "docs" / "external.md").read_text()
    assert len(adapter.splitlines()) <= 60
