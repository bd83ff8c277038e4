"""Replicas that die or lag: with a quorum the others go on, and the loss is that of a plain loop which leaves out the
same replicas; without, or below it, the run ends with a clear row. Real processes throughout."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from places import PROGRAMS

from scalade.bench.data import open_source
from scalade.launch.host.launchers import LAUNCHERS
from scalade.launch.host.placement import Placement
from scalade.launch.host.sockets import listen
from scalade.launch.process.outcome import Ending
from scalade.launch.process.quorum import Quorum
from scalade.launch.process.rendezvous import Seat
from scalade.launch.run import run_study
from scalade.launch.store.client import find
from scalade.launch.store.server import StoreServer
from scalade.launch.store.torch_store import SharedStore
from scalade.launch.study.study import load_study
from scalade.launch.sweep.peers import Peers
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.diloco.plan import bytes_per_sync
from scalade.parallelism.diloco.quorum import CHUNK_BYTES, Meeting
from scalade.parallelism.engines import build_engine
from scalade.parallelism.layout import Layout
from scalade.results.store.store import RunStore
from scalade.results.table.read import read_steps

COMMAND = [sys.executable, str(PROGRAMS.joinpath("quorum_rank.py"))]
WORKER = PROGRAMS.joinpath("fake_worker.py")
ELSEWHERE = [
    pytest.param("torchrun", marks=pytest.mark.slow),
    pytest.param("mpirun", marks=[pytest.mark.slow, pytest.mark.mpi]),
]
H, STEPS = 3, 12
STUDY = """
name = "q"
[model]
layers = 2
heads = 2
width = 32
ffn = 64
seq_len = 32
[recipe]
global_batch = 12
lr = {lr}
optimizer = "{optimizer}"
beta1 = {beta1}
[budget]
steps = 12
[outer]
algorithm = "diloco"
replicas = {replicas}
sync_every = 3
{quorum}
[measure]
eval_sequences = 24
[layout]
dp_replicate = {dp}
[run]
time_limit_s = 100
max_ranks = 8
launcher = "{launcher}"
"""
ADAMW = dict(optimizer="adamw", beta1=0.9, lr=0.01)
TWO = "quorum = 2\nquorum_timeout_s = 300.0"
SGD = dict(optimizer="sgd", beta1=0.0, lr=0.5)  # no state: a replica that comes back is as if it had never left


def run(tmp_path, monkeypatch, fault, *, quorum="", replicas=3, dp=1, recipe=ADAMW, launcher="local", ends="ok"):
    """Row, replicas present by outer step, case."""
    monkeypatch.setenv("FAULT", fault)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path, store = tmp_path / "study.toml", RunStore(tmp_path / "r")
    path.write_text(STUDY.format(quorum=quorum, replicas=replicas, dp=dp, launcher=launcher, **recipe))
    if launcher == "local":
        run_study(path, store.folder, quiet=True, command=COMMAND)
    else:
        monkeypatch.setenv("FAKE_PROGRAM", Path(COMMAND[-1]).name)
        start = LAUNCHERS[launcher].command(replicas * dp, [str(WORKER), str(path), str(store.folder)])
        subprocess.run(start, timeout=150, check=False)
    (run_id,) = (entry.name for entry in store.runs.iterdir())
    row = store.row(run_id)
    assert row["launcher"] == launcher
    assert row["status"] == ends, (row["reason"], row["wall_s"])
    present = read_steps(store.folder)["replicas_present"] if ends == "ok" else pd.Series(dtype=float)
    nothing_left(str(store.scratch(run_id)))
    return row, present.dropna().astype(int).tolist(), load_study(path).all_cases[0]


def nothing_left(text):
    for pid in filter(str.isdigit, (entry.name for entry in Path("/proc").iterdir())):
        try:
            assert text not in (Path("/proc") / pid / "cmdline").read_text(), f"process {pid} is left"
        except (FileNotFoundError, ProcessLookupError):
            continue


def plain(case, members):
    """Held-out loss of M models trained side by side, averaged after every H steps over members[round]; all go on from
    the outer parameters, so who is not a member has its H steps dropped. The outer step in float64."""
    torch.set_num_threads(1)
    outer, share = case.outer, case.recipe.global_batch // case.outer.replicas
    recipe = replace(case.recipe, global_batch=share)
    models = [build_engine(case.shape, recipe, Layout(), Outer(), torch.device("cpu")) for _ in range(outer.replicas)]
    source = open_source(case.data, case.shape.seq_len, recipe.seed)
    parameters = [[part.data for part in model.local_parameters()] for model in models]
    theta = [value.double() for value in parameters[0]]
    momentum = [torch.zeros_like(value) for value in theta]
    for step in range(recipe.steps):
        first = step * case.recipe.global_batch
        for m, model in enumerate(models):
            rows = source.train_rows(first + m * share, first + (m + 1) * share)
            model.train_step(torch.from_numpy(rows), recipe.lr_at(step))
        if (step + 1) % H:
            continue
        present = members[step // H]
        for i, value in enumerate(theta):
            delta = sum(value - parameters[m][i].double() for m in present) / len(present)
            momentum[i] = outer.momentum * momentum[i] + delta
            value -= outer.lr * (delta + outer.momentum * momentum[i])
            for each in parameters:
                each[i].copy_(value)
    rows = torch.from_numpy(source.val_rows(0, 24))
    return float(models[0].eval_loss(rows, torch.ones(24, dtype=torch.bool))) / 24


@pytest.mark.parametrize("launcher", ["local", *ELSEWHERE])
def test_killed_in_an_outer_step(tmp_path, monkeypatch, launcher):
    row, present, case = run(tmp_path, monkeypatch, "2:kill@round2", quorum=TWO, launcher=launcher)
    assert row["reason"] is None and present == [3, 2, 2, 2]
    assert row["quorum_missed"] == 3 and row["outer_steps"] == 4
    everybody = {0, 1, 2}
    assert row["val_loss"] == pytest.approx(plain(case, [everybody, {0, 1}, {0, 1}, {0, 1}]), rel=1e-5)
    assert abs(row["val_loss"] - plain(case, [everybody] * 4)) > 1e-4 * row["val_loss"], "it makes no difference"
    assert row["tokens_seen"] == round(12 * 32 * STEPS * (3 + 2 + 2 + 2) / 12)
    assert row["outer_bytes_per_rank"] == 4 * bytes_per_sync(case.outer, [case.shape.params_total])
    assert row["energy_j"] is None and row["peak_host_memory_bytes"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", *ELSEWHERE])
def test_killed_between_outer_steps_and_one_more(tmp_path, monkeypatch, launcher):
    faults = "2:kill@step4,1:kill@step7"
    row, _, _ = run(tmp_path, monkeypatch, faults, quorum=TWO, launcher=launcher, ends="failed")
    assert "rank 1 was killed by SIGKILL at step" in row["reason"] or "rank 2" in row["reason"]
    assert "1 of 3 replicas left, the quorum is 2" in row["reason"] and row["wall_s"] < 60


@pytest.mark.parametrize(
    "quorum, victim",
    [pytest.param("", 2, id="no quorum"), pytest.param("quorum = 1", 0, id="replica 0", marks=pytest.mark.slow)],
)
def test_without_a_quorum_or_without_replica_0(tmp_path, monkeypatch, quorum, victim):
    row, _, _ = run(tmp_path, monkeypatch, f"{victim}:kill@round2", quorum=quorum, ends="failed")
    assert row["reason"].startswith(f"rank {victim} was killed by SIGKILL at step")
    assert row["wall_s"] < 60


@pytest.mark.slow
def test_one_that_lags_is_left_out_and_comes_back(tmp_path, monkeypatch):
    """Replica 1 stops in round 2; round 3 does not wait for it; replica 0 then sleeps until after it is back."""
    row, present, case = run(
        tmp_path,
        monkeypatch,
        "1:stop4@round2,0:sleep6@step10",
        quorum="quorum = 1\nquorum_timeout_s = 2.0",
        replicas=2,
        recipe=SGD,
    )
    assert present == [2, 1, 1, 2]
    assert row["quorum_missed"] == 2 and row["outer_steps"] == 4
    assert row["val_loss"] == pytest.approx(plain(case, [{0, 1}, {0}, {0}, {0, 1}]), rel=1e-5)
    never_back = plain(case, [{0, 1}, {0}, {0}, {0}])
    assert abs(row["val_loss"] - never_back) > 1e-4 * never_back, "coming back makes no difference"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", *ELSEWHERE])
def test_one_that_never_comes_back_holds_nobody_up(tmp_path, monkeypatch, launcher):
    quorum = "quorum = 1\nquorum_timeout_s = 2.0"
    row, present, _ = run(tmp_path, monkeypatch, "1:stop600@round2", quorum=quorum, replicas=2, launcher=launcher)
    assert present == [2, 1, 1, 1] and row["wall_s"] < 60


@pytest.mark.slow
def test_killed_while_others_lag(tmp_path, monkeypatch):
    """Replica 3 is killed, 2 stops at the same time and is back by the last round, with one killed in it."""
    faults = "3:kill@round2,2:stop4@round2,0:sleep6@step10,1:kill@round4"
    quorum = "quorum = 2\nquorum_timeout_s = 2.0"
    row, present, case = run(tmp_path, monkeypatch, faults, quorum=quorum, replicas=4, recipe=SGD)
    assert present == [4, 2, 2, 2]
    assert row["val_loss"] == pytest.approx(plain(case, [{0, 1, 2, 3}, {0, 1}, {0, 1}, {0, 2}]), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", *ELSEWHERE])
def test_replicas_of_several_ranks(tmp_path, monkeypatch, launcher):
    """One rank of a replica takes the other with it."""
    quorum = "quorum = 1"
    row, present, case = run(tmp_path, monkeypatch, "3:kill@round2", quorum=quorum, replicas=2, dp=2, launcher=launcher)
    assert present == [2, 1, 1, 1]
    assert row["val_loss"] == pytest.approx(plain(case, [{0, 1}, {0}, {0}, {0}]), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", "int4", "bf16"])
def test_nobody_missing_is_the_run_without_a_quorum(tmp_path, monkeypatch, compression):
    losses = []
    for quorum in ("quorum = 2", ""):
        (tmp_path / (quorum or "none")).mkdir()
        row, present, _ = run(
            tmp_path / (quorum or "none"), monkeypatch, "", quorum=f'{quorum}\ncompression = "{compression}"'
        )
        assert present == ([3] * 4 if quorum else []), "one was late"
        losses.append(row["val_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(quorum=3), "must be from 1 to outer.replicas = 2"),
        (dict(quorum=-1), "must be from 1 to outer.replicas = 2"),
        (dict(quorum=1, algorithm="streaming"), "streaming has messages on their way"),
        (dict(quorum=1, algorithm="eager"), "eager has messages on their way"),
        (dict(quorum=1, placement="folded"), "folded replicas share their ranks"),
        (dict(quorum=1, compression="topk"), "error feedback takes for sent"),
        (dict(quorum=1, compression="int4", error_decay=0.5), "error feedback takes for sent"),
        (dict(quorum=1, quorum_timeout_s=-1.0), "outer.quorum_timeout_s = -1.0: must be between"),
    ],
)
def test_what_cannot_have_a_quorum(settings, said):
    with pytest.raises(ValueError, match=said):
        Outer(**dict(algorithm="diloco", replicas=2) | settings)


def test_no_quorum_is_one_case():
    same = Outer(algorithm="diloco", replicas=2)
    assert Outer(algorithm="diloco", replicas=2, quorum=0, quorum_timeout_s=3.0) == same and same.quorum is None
    assert Outer(algorithm="none", quorum=1) == Outer()


def two_replicas(**settings):
    outer = Outer(algorithm="diloco", replicas=2, **dict(quorum=1, quorum_timeout_s=0.05) | settings)
    server = StoreServer([listen("127.0.0.1")], b"secret")  # as long as the test
    store = SharedStore(find(0, "127.0.0.1", (server.port,), b"secret", 60.0))
    return Meeting(store, outer, 0, 0, 1, dead=lambda: set()), Meeting(store, outer, 1, 0, 1)


def test_a_late_replica_finds_the_round_decided_and_then_the_state():
    first, second = two_replicas()
    big = bytes(range(256)) * (CHUNK_BYTES // 100)  # several chunks
    first.leave_messages(1, big)
    assert first.decide(1) and first.messages(1, len(big)) == {0: big} and first.members == {0}
    first.leave_state(1, b"outer")
    second.leave_messages(1, b"late")
    assert not second.decide(1) and second.latest_state(5) == (1, b"outer")
    first.leave_messages(2, b"a")
    second.leave_messages(2, b"b")
    assert first.decide(2) and second.decide(2), "who is back is expected"
    assert first.messages(2, 1) == second.messages(2, 1) == {0: b"a", 1: b"b"}


def test_a_member_that_comes_too_late_to_read_has_to_come_back():
    first, second = two_replicas()
    second.leave_messages(1, b"b")
    for number in (1, 2, 3):
        first.leave_messages(number, b"a")
        assert first.decide(number) and first.members == ({0, 1} if number == 1 else {0})
        first.leave_state(number, b"%d" % number)
    assert second.decide(1) and second.messages(1, 1) is None  # a message of round 1 is gone
    assert second.latest_state(5) == (3, b"3")
    assert first.take("state/1/0", 9) is None and first.take("1/0/0", 9) is None, "what nobody needs stays in the store"


def test_below_the_quorum_an_outer_step_waits_and_the_dead_are_not_waited_for():
    import threading
    import time

    first, second = two_replicas(quorum=2)
    late = threading.Timer(0.5, second.leave_messages, (1, b"b"))
    first.leave_messages(1, b"a")
    late.start()
    begun = time.monotonic()
    assert first.decide(1) and first.members == {0, 1} and time.monotonic() - begun > 0.4
    first, _ = two_replicas(quorum_timeout_s=60.0)
    first.dead = lambda: {1}
    first.leave_messages(1, b"a")
    begun = time.monotonic()
    assert first.decide(1) and first.members == {0} and time.monotonic() - begun < 5


def test_a_quorum_writes_no_checkpoints(tmp_path):
    study = STUDY.format(quorum="quorum = 1", replicas=2, dp=1, launcher="local", **ADAMW)
    (tmp_path / "study.toml").write_text(study.replace("[measure]", "[measure]\ncheckpoint_every = 2"))
    (planned,) = load_study(tmp_path / "study.toml").cases()
    assert "set measure.checkpoint_every = 0" in planned.skip_reason


def test_which_losses_a_run_survives():
    quorum = Quorum(needed=2, replicas=3, ranks=2)
    assert quorum.lost({0: None, 1: 0, 2: -9, 3: None, 4: None, 5: 1}) == {1, 2}
    assert quorum.stands(set()) and quorum.stands({1}) and not quorum.stands({1, 2}) and not quorum.stands({0})


def test_a_replica_that_one_run_lost_is_back_in_the_next():
    store = torch.distributed.HashStore()
    place, quorum = Placement("torchrun", 2, 3, 0, 1), Quorum(needed=2, replicas=3, ranks=1)
    seats = tuple(Seat(rank, 0, 3, "n", "here", rank, "cpu") for rank in range(3))
    last, first = Peers(store, place, seats), Peers(store, replace(place, rank=0), seats)
    assert first.lost(1, quorum) == set()
    last.publish(1, Ending("lost", {2: -9}), quorum)
    assert last.lost(1, quorum) == {2} and last.lost(2, quorum) == set()
    assert first.stop_demand(1) is None, "the others go on"
