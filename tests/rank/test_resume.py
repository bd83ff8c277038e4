"""Exact resume: killed at any moment and started again, a run is bitwise the one that was not killed."""

import io
import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
from places import PROGRAMS

STEPS = 20
RAN = "payload ran"
SHAPE = dict(layers=2, heads=2, kv_heads=2, width=32, ffn=48, vocab=256, seq_len=16)
RECIPE = dict(global_batch=4, steps=STEPS, lr=3e-3, warmup_steps=4, init_std=0.1)
MEASURE = dict(warmup_steps=2, eval_every=9, eval_sequences=8, log_every=7, checkpoint_every=5)
FOLDED = dict(algorithm="streaming", replicas=2, placement="folded", sync_every=5, fragment_layers=1, overlap_steps=2)

SINGLE = {
    "plain": {},
    "sgd, bf16, every step": {
        "recipe": {"optimizer": "sgd", "precision": "bf16"},
        "measure": {"checkpoint_every": 1, "log_every": 1},
    },
    "replicas": {"outer": FOLDED},
}
TWO = {"fsdp2": {"layout": {"dp_shard": 2}}}
TWO_SLOW = {
    "ddp2": {"layout": {"dp_replicate": 2, "microbatches": 2}},
    "tp2": {"layout": {"tp": 2}},
    "pp2": {"layout": {"pp": 2, "microbatches": 2}},
    "cp2": {"layout": {"cp": 2}},
    "diloco2": {"outer": dict(algorithm="diloco", replicas=2, sync_every=5)},
    "eager2": {"outer": dict(algorithm="eager", replicas=2, sync_every=5, compression="int8")},
}
PAYLOADS = {  # in every file, under every name: what the line about it says
    "payloads": "index.json",
    "payloads that the index knows": "is no ",
}
DAMAGE = {  # what is done to the last checkpoint: what the line about it says
    "cut off": "is cut off or missing",
    "flipped bytes": "SHA-256 differs",
    "flipped history": "SHA-256 differs",
    "a digit of the history": "SHA-256 differs",
    "missing file": "is cut off or missing: no file",
    "garbage boxes": "SHA-256 differs",
    "index of nothing": "no index of format 2",
    "index of another run": "is of run 0123456789abcdef-r0 at step",
    "index of another step": "not of this one at step",
    "nested index": "nested too deeply",
    "index with a long number": "4300 digits",
    "index that leads out": "as no file can be",
    "link": "is cut off or missing",
    "pipe": "is cut off or missing",
    "older format": "an older version wrote it",
}
KILLED_AGAIN = (  # one step after the damage was found
    "flipped bytes",
    "cut off",
    "payloads that the index knows",
    "half removed",
)


def case(layout=None, recipe=None, measure=None, outer=None) -> dict:
    return {
        "shape": SHAPE,
        "data": {},
        "recipe": RECIPE | (recipe or {}),
        "layout": layout or {},
        "outer": outer or {},
        "measure": MEASURE | (measure or {}),
    }


def killed_at_random(seed: int, kills: int) -> list[dict]:
    rng = random.Random(seed)
    # The first one early: a fast machine may end a run in the delay of a late one, and would have resumed from nothing.
    at = [6] + sorted(rng.randint(2, STEPS - 1) for _ in range(kills - 1)) + [STEPS - 2]
    return [{"kill_at": step, "delay_s": rng.uniform(0, 0.02)} for step in at] + [{}]


def run_jobs(folder: Path, cases: dict, kills: int, damages=(), timeout_s: int = 280) -> dict:
    jobs = {}
    for seed, (name, parts) in enumerate(cases.items()):
        jobs[f"{name} whole"] = {"case": case(**parts), "attempts": [{}]}
        if kills:
            jobs[f"{name} killed"] = {"case": case(**parts), "attempts": killed_at_random(seed, kills)}
    for name, kind in damages:
        found = [{"damage": kind, "die_at": [1, 6, 11]}, {}] if kind in KILLED_AGAIN else [{"damage": kind}]
        jobs[f"{name} {kind}"] = {"case": case(**cases[name]), "attempts": [{"die_at": [12]}, *found]}
    (folder / "jobs.json").write_text(json.dumps(jobs))
    env = os.environ | {"OMP_NUM_THREADS": "1", "PAYLOAD_RAN": str(folder / RAN), "DS_ACCELERATOR": "cpu"}
    program = PROGRAMS.joinpath("resume_ranks.py")
    done = subprocess.run(
        [sys.executable, str(program), "jobs.json", "out.json"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "out.json").read_text()) | {RAN: (folder / RAN).exists()}


def tables_of(run: dict) -> dict:
    """What was computed; times are not compared."""
    timing = (
        "step_time_s",
        "data_time_s",
        "compute_time_s",
        "optimizer_time_s",
        "outer_time_s",
        "outer_exposed_s",
        "warmup",
        "comm_time_s",
        "comm_time_min_s",
        "bubble_time_s",
        "optimizer_wait_s",
    )
    assert "steps" in run, run["attempts"][-1]["log"][-3000:]
    steps = {name: values for name, values in run["steps"].items() if name not in timing}
    return {"steps": steps, "evals": run["evals"]}


def check(name: str, results: dict) -> None:
    whole, killed = results[f"{name} whole"], results[f"{name} killed"]
    assert whole["status"] == killed["status"] == "ok"
    assert killed["steps"]["step"] == list(range(STEPS))
    assert whole["steps"]["loss"][-1] < whole["steps"]["loss"][0], "it does not learn"
    assert tables_of(killed) == tables_of(whole)  # bitwise: JSON keeps every digit of a float
    *cut, last = killed["attempts"]
    assert all(set(attempt["codes"]) <= {-9} for attempt in cut) and set(last["codes"]) == {0}
    assert killed["row"]["resumed_from_step"] > 0 and whole["row"]["resumed_from_step"] is None
    same = ("train_loss_first", "loss", "val_loss", "tokens_seen", "tokens_unique", "train_flops_6n")
    assert [killed["row"][key] for key in same] == [whole["row"][key] for key in same]
    assert killed["row"]["energy_j"] is None


def check_damaged(name: str, kind: str, results: dict, says: str, resumed_from: int | None = 5) -> None:
    """One line says what is wrong, the checkpoint before it is gone on from, and the end is that of the whole run."""
    whole, run = results[f"{name} whole"], results[f"{name} {kind}"]
    assert tables_of(run) == tables_of(whole)
    _, after, *again = run["attempts"]
    lines = [line for line in after["log"].splitlines() if "cannot be read" in line]
    told = "the one of step 5 is tried" if resumed_from else "from step 0 again"
    assert len(lines) == (1 if resumed_from else 2) and says in lines[0] and told in lines[-1], after["log"][-2000:]
    if again:
        assert any(kept.startswith("damaged-") for kept in after["kept"])  # until the next checkpoint is whole
    assert run["attempts"][-1]["kept"] == ["step-10", "step-15"]
    assert run["row"]["resumed_from_step"] == resumed_from
    assert run["row"]["checkpoints_damaged"] == len(lines) and whole["row"]["checkpoints_damaged"] == 0
    assert whole["row"]["checkpoint_damaged_reason"] is None


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    damages = [("plain", kind) for kind in (*DAMAGE, "flipped bytes in both", "half removed", "half written, and more")]
    damages += [("replicas", "cut off"), *((name, kind) for name in ("plain", "replicas") for kind in PAYLOADS)]
    return run_jobs(tmp_path_factory.mktemp("single"), SINGLE, kills=2, damages=damages)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    damages = [("fsdp2", "flipped bytes")]
    return run_jobs(tmp_path_factory.mktemp("two"), TWO, kills=2, damages=damages)


@pytest.mark.parametrize("name", SINGLE)
def test_one_process_killed_at_random_steps(name, single):
    check(name, single)


@pytest.mark.parametrize("kind", DAMAGE)
def test_of_a_damaged_checkpoint_the_one_before_it_is_used(kind, single):
    check_damaged("plain", kind, single, DAMAGE[kind])


def test_where_both_are_damaged_the_run_starts_anew(single):
    check_damaged("plain", "flipped bytes in both", single, "SHA-256 differs", resumed_from=None)


def test_of_a_damaged_replica_the_checkpoint_before_is_used(single):
    check_damaged("replicas", "cut off", single, "is cut off or missing")


@pytest.mark.parametrize("kind", PAYLOADS)
@pytest.mark.parametrize("name", ["plain", "replicas"])
def test_no_payload_in_a_checkpoint_runs(name, kind, single):
    check_damaged(name, kind, single, PAYLOADS[kind], resumed_from=None)
    assert not single[RAN]


OTHERS = {  # of engines that are not installed everywhere
    "deepspeed": {"layout": {"engine": "deepspeed", "dp_shard": 2, "zero_stage": 1}},
    "megatron": {"layout": {"engine": "megatron", "tp": 2}},
}


@pytest.mark.engines
@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_engines_fall_back_and_run_no_payload(name, tmp_path):
    pytest.importorskip("deepspeed" if "deepspeed" in name else "megatron.core")
    known = "payloads that the index knows"  # without, no engine is asked
    damages = [(name, kind) for kind in ("flipped bytes", known)]
    results = run_jobs(tmp_path, {name: OTHERS[name]}, kills=0, damages=damages)
    check_damaged(name, "flipped bytes", results, "is not what was written: its SHA-256 differs")
    check_damaged(name, known, results, PAYLOADS[known], resumed_from=None)
    assert not results[RAN]


def test_the_payloads_of_these_tests_would_run(tmp_path, monkeypatch):
    """Unpickled by the ways that the package does without."""
    import resume_ranks

    monkeypatch.setenv("PAYLOAD_RAN", str(tmp_path / RAN))
    one, other = resume_ranks.payloads()
    pickle.loads(one)
    assert (tmp_path / RAN).exists()
    (tmp_path / RAN).unlink()
    resume_ranks.torch.load(io.BytesIO(other), weights_only=False)
    assert (tmp_path / RAN).exists()


@pytest.mark.parametrize("kind", ["half removed", "half written, and more"])
def test_what_is_no_checkpoint_is_not_read(kind, single):
    run = single[f"plain {kind}"]
    assert tables_of(run) == tables_of(single["plain whole"])
    assert run["row"]["resumed_from_step"] == 10 and run["row"]["checkpoints_damaged"] == 0
    log = run["attempts"][1]["log"]
    assert "cannot be read" not in log and ("'notes.txt'" in log) == (kind != "half removed")


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO)
def test_two_ranks_killed_at_random_steps(name, two):
    check(name, two)


@pytest.mark.slow
def test_one_rank_s_damage_is_that_of_all(two):
    check_damaged("fsdp2", "flipped bytes", two, "rank 1: rank1-of1.safetensors is not what was written")


@pytest.fixture(scope="module")
def two_slow(tmp_path_factory):
    return run_jobs(tmp_path_factory.mktemp("two-slow"), TWO_SLOW, kills=2, timeout_s=280)


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO_SLOW)
def test_every_kind_of_state_survives(name, two_slow):
    check(name, two_slow)
