"""A row over two ranks whose clocks, losses, norms, rows, messages and joules are known.

Each of these faults, put into the program, fails a test here:

- the step time is not that of the slowest rank (rank 0's, or the mean of the ranks)
- the gradient norm is that of the run times the ranks
- the validation losses of the ranks are not summed
- every rank evaluates rank 0's rows
- the bytes are those of rank 0 alone
- the energy is the largest of a rank, not the sum
- the gradient norm of a run with replicas is that of the first replica alone, of those in one process or of all
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean, median

import pytest
import torch
import two_ranks
from two_ranks import BATCH, HELD_OUT, LOSSES, MEMORY, NORM, NORMS, REDUCED, SECONDS, SENT, STEPS, WAITS, WARMUP, WATTS

from scalade.bench.recipe import Recipe
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.diloco.engine import build_outer

SLOWEST = [max(pair) for pair in zip(*SECONDS, strict=True)]
TIMED = SLOWEST[WARMUP:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{"plain" | "replicas": {"row", "steps", "evals"}}, as rank 0 has them."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, str(Path(two_ranks.__file__)), "out.json"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240)
    assert (folder / "out.json").exists(), done.stderr[-3000:]
    return json.loads((folder / "out.json").read_text())


def test_a_step_takes_what_its_slowest_rank_takes(runs):
    row, steps = runs["plain"]["row"], runs["plain"]["steps"]
    assert steps["step_time_s"] == SLOWEST and steps["warmup"] == [True] * WARMUP + [False] * (STEPS - WARMUP)
    assert row["step_time_s"] == median(TIMED) and row["first_step_s"] == SLOWEST[0]
    assert row["tokens_per_s"] == pytest.approx(BATCH * two_ranks.SHAPE.seq_len / median(TIMED))
    assert row["tokens_per_s_per_device"] == pytest.approx(row["tokens_per_s"] / 2)
    for ranks in SECONDS:  # neither rank alone, nor their mean, has these
        assert median(ranks[WARMUP:]) != median(TIMED)
    assert median([fmean(pair) for pair in zip(*SECONDS, strict=True)][WARMUP:]) != median(TIMED)


def test_losses_are_summed_and_a_norm_that_all_ranks_have_is_that(runs):
    row, steps = runs["plain"]["row"], runs["plain"]["steps"]
    assert steps["loss"] == [sum(LOSSES)] * STEPS and row["loss"] == sum(LOSSES)
    assert steps["grad_norm"] == [NORM] * STEPS


def test_every_held_out_row_is_evaluated_once(runs):
    """Row i has the loss i; six of them in batches of four, half of each on either rank."""
    (evaluation,) = runs["plain"]["evals"]
    assert evaluation["val_loss"] == runs["plain"]["row"]["val_loss"] == fmean(range(HELD_OUT))
    assert evaluation["step"] == STEPS and evaluation["val_sequences"] == HELD_OUT


def test_bytes_and_joules_are_summed_and_memory_is_the_fullest(runs):
    row = runs["plain"]["row"]
    assert row["comm_bytes_all_reduce"] == 2 * 4 * REDUCED and row["comm_bytes_send_recv"] == 4 * SENT
    assert row["comm_bytes_per_step"] == 2 * 4 * REDUCED + 4 * SENT and row["comm_calls_per_step"] == 3
    assert row["comm_bytes_dim_dp_replicate"] == row["comm_bytes_per_step"]
    assert "comm_bytes_inner_step" not in row
    joules = [watts * sum(seconds[WARMUP:]) for watts, seconds in zip(WATTS, SECONDS, strict=True)]
    assert row["energy_j"] == pytest.approx(sum(joules)) and row["energy_source"] == "fake"
    assert row["peak_memory_bytes"] == row["peak_host_memory_bytes"] == max(MEMORY)


def test_replicas_give_their_mean_loss_and_norm_and_what_a_round_costs(runs):
    """H = 3: the outer steps after steps 6 and 9 are timed, that after step 3 is not."""
    row, steps = runs["replicas"]["row"], runs["replicas"]["steps"]
    assert steps["loss"] == pytest.approx([sum(LOSSES)] * STEPS)
    assert steps["grad_norm"] == [fmean(NORMS)] * STEPS
    wait = max(WAITS)
    own = [seconds + WAITS[rank] for rank, ranks in enumerate(SECONDS) for seconds in ranks[2::3]]
    with_wait = [max(pair) for pair in zip(own[:3], own[3:], strict=True)]
    assert steps["step_time_s"][2::3] == with_wait and steps["outer_exposed_s"] == [0, 0, wait] * 3
    inner = [seconds - exposed for seconds, exposed in zip(steps["step_time_s"], steps["outer_exposed_s"], strict=True)]
    assert row["inner_step_time_s"] == median(inner[WARMUP:]) and row["outer_round_exposed_s"] == wait
    assert row["step_time_s"] == pytest.approx(row["inner_step_time_s"] + wait / 3)
    assert row["timed_outer_steps"] == 2 and row["outer_steps"] == 3 and row["steps_after_outer"] == 0
    assert [one["kind"] for one in runs["replicas"]["evals"]] == ["outer", "inner"]
    assert row["val_loss"] == fmean(range(HELD_OUT))


def test_the_bytes_of_replicas_are_those_of_a_round_over_its_length(runs):
    row, elements = runs["replicas"]["row"], 16 + 1  # the weights and the squared norm
    assert row["comm_bytes_inner_step"] == 0 and row["comm_bytes_outer_round"] == 2 * 4 * elements
    assert row["comm_bytes_per_step"] == row["comm_bytes_dim_replicas"] == round(2 * 4 * elements / 3)
    assert row["comm_calls_per_step"] == pytest.approx(2 / 3) and row["outer_bytes_per_round"] == 4 * elements


def test_the_norm_of_folded_replicas_is_the_mean_of_all():
    clock = two_ranks.Clock(0)
    norms = iter((3.0, 4.0, 8.0, 9.0))
    engine = build_outer(
        Outer("diloco", 4, "folded", sync_every=30),
        Recipe(global_batch=4, steps=60),
        1,
        lambda own: two_ranks.Engine(clock, next(norms), 1, own.global_batch),
        replica_group=None,
        replica_index=0,
        inner_group=None,
    )
    assert float(engine.train_step(torch.zeros(4, 9, dtype=torch.int64), 0.1).grad_norm) == 6.0
