"""Exact resume: killed at any moment and started again, a run is bitwise the one that was not killed."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = 20
SHAPE = dict(layers=2, heads=2, kv_heads=2, width=32, ffn=48, vocab=256, seq_len=16)
RECIPE = dict(global_batch=4, steps=STEPS, lr=3e-3, warmup_steps=4, init_std=0.1)
MEASURE = dict(warmup_steps=2, eval_every=9, eval_sequences=8, log_every=7, checkpoint_every=5)
FOLDED = dict(algorithm="streaming", replicas=2, placement="folded", sync_every=5, fragment_layers=1, overlap_steps=2)

SINGLE = {
    "plain": {},
    "sgd, bf16, every step": {
        "recipe": {"optimizer": "sgd", "precision": "bf16"}, "measure": {"checkpoint_every": 1, "log_every": 1},
    },
    "replicas": {"outer": FOLDED},
}  # fmt: skip
TWO = {
    "fsdp2": {"layout": {"dp_shard": 2}},
}
TWO_SLOW = {
    "ddp2": {"layout": {"dp_replicate": 2, "microbatches": 2}},
    "tp2": {"layout": {"tp": 2}},
    "pp2": {"layout": {"pp": 2, "microbatches": 2}},
    "cp2": {"layout": {"cp": 2}},
    "diloco2": {"outer": dict(algorithm="diloco", replicas=2, sync_every=5)},
    "eager2": {"outer": dict(algorithm="eager", replicas=2, sync_every=5, compression="int8")},
}
DAMAGE = ("cut off", "garbage", "garbage metadata", "history of nothing")


def case(layout=None, recipe=None, measure=None, outer=None) -> dict:
    return {
        "shape": SHAPE, "data": {}, "recipe": RECIPE | (recipe or {}), "layout": layout or {},
        "outer": outer or {}, "measure": MEASURE | (measure or {}),
    }  # fmt: skip


def killed_at_random(seed: int, kills: int) -> list[dict]:
    rng = random.Random(seed)
    # The first one early: a fast machine may end a run in the delay of a late one, and would have resumed from nothing.
    at = [6] + sorted(rng.randint(2, STEPS - 1) for _ in range(kills - 1)) + [STEPS - 2]
    return [{"kill_at": step, "delay_s": rng.uniform(0, 0.02)} for step in at] + [{}]


def run_jobs(folder: Path, cases: dict, kills: int, damages=(), timeout_s: int = 120) -> dict:
    jobs = {}
    for seed, (name, parts) in enumerate(cases.items()):
        jobs[f"{name} whole"] = {"case": case(**parts), "attempts": [{}]}
        jobs[f"{name} killed"] = {"case": case(**parts), "attempts": killed_at_random(seed, kills)}
    for name, kind in damages:
        attempts = [{"kill_at": 8}, {"damage": kind, "kill_at": 1}, {}]
        jobs[f"{name} {kind}"] = {"case": case(**cases[name]), "attempts": attempts}
    (folder / "jobs.json").write_text(json.dumps(jobs))
    program = Path(__file__).with_name("resume_ranks.py")
    done = subprocess.run(
        [sys.executable, str(program), "jobs.json", "out.json"], cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=timeout_s,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "out.json").read_text())


def tables_of(run: dict) -> dict:
    """What was computed; times are not compared."""
    timing = (
        "step_time_s", "data_time_s", "compute_time_s", "optimizer_time_s", "outer_time_s", "outer_exposed_s", "warmup",
        "comm_time_s", "comm_time_min_s", "bubble_time_s", "optimizer_wait_s",
    )  # fmt: skip
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


def check_damaged(name: str, kind: str, results: dict) -> None:
    whole, run = results[f"{name} whole"], results[f"{name} {kind}"]
    assert tables_of(run) == tables_of(whole)
    _, after, *_ = run["attempts"]
    assert "cannot be read" in after["log"] and "from step 0 again" in after["log"], after["log"][-2000:]
    assert any(kept.startswith("damaged-") for kept in after["kept"])  # until the next checkpoint is whole
    assert all(kept.startswith("step-") for kept in run["attempts"][-1]["kept"])


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    damages = [("plain", kind) for kind in (*DAMAGE, "half removed")] + [("replicas", "garbage")]
    return run_jobs(tmp_path_factory.mktemp("single"), SINGLE, kills=2, damages=damages)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    damages = [("fsdp2", "garbage")]
    return run_jobs(tmp_path_factory.mktemp("two"), TWO, kills=2, damages=damages)


@pytest.mark.parametrize("name", SINGLE)
def test_one_process_killed_at_random_steps(name, single):
    check(name, single)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_starts_the_run_anew(kind, single):
    check_damaged("plain", kind, single)


def test_a_damaged_replica_starts_the_run_anew(single):
    check_damaged("replicas", "garbage", single)


def test_what_is_left_of_an_older_checkpoint_is_not_read(single):
    run = single["plain half removed"]
    assert tables_of(run) == tables_of(single["plain whole"])
    assert run["row"]["resumed_from_step"] >= 5 and "cannot be read" not in run["attempts"][-1]["log"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO)
def test_two_ranks_killed_at_random_steps(name, two):
    check(name, two)


@pytest.mark.slow
def test_one_rank_s_damage_starts_all_anew(two):
    check_damaged("fsdp2", "garbage", two)


@pytest.fixture(scope="module")
def two_slow(tmp_path_factory):
    return run_jobs(tmp_path_factory.mktemp("two-slow"), TWO_SLOW, kills=2, timeout_s=280)


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO_SLOW)
def test_every_kind_of_state_survives(name, two_slow):
    check(name, two_slow)
