"""Messages with known sizes: of a whole model, of large worlds, and as the column of a prediction."""

from __future__ import annotations

import pytest

from scalade.bench.recipe import Recipe
from scalade.bench.shape import SIZES, ModelShape
from scalade.launch.predict.cases import predict_cases
from scalade.launch.study.study import load_study
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.diloco.plan import bytes_per_sync
from scalade.parallelism.layout import Layout
from scalade.parallelism.predict.machine import load_machine
from scalade.parallelism.predict.messages import all_messages, step_messages

LLAMA = ModelShape(**SIZES["llama3-8b"])


def messages(layout: Layout, batch: int, outer: Outer | None = None, precision: str = "bf16"):
    return step_messages(LLAMA, Recipe(global_batch=batch, steps=10, precision=precision), layout, outer)


def test_ddp_reduces_fp32_gradients_once_a_step_whatever_the_microbatches():
    found = messages(Layout(dp_replicate=8, microbatches=4), 32)
    assert found.bytes == {("all_reduce", "dp_replicate"): 4 * LLAMA.params_total}


def test_fsdp_gathers_twice_in_bf16_and_scatters_once_in_fp32():
    """arXiv 2304.11277: but for embedding and head, which stay gathered from the forward to the backward pass."""
    found = messages(Layout(dp_shard=64), 64)
    blocks = LLAMA.layers * LLAMA.params_layer
    others = LLAMA.params_total - blocks
    assert found.bytes["all_gather", "dp_shard"] == 2 * (2 * blocks + others)
    assert found.bytes["reduce_scatter", "dp_shard"] == 4 * LLAMA.params_total
    assert found.calls["all_gather", "dp_shard"] == 2 * LLAMA.layers + 1


def test_sequence_parallel_moves_as_much_as_without():
    """arXiv 2205.05198, section 4.2.2: two all-reduces are two reduce-scatters and two all-gathers."""
    both = [messages(Layout(tp=8, sp=sp), 1).totals()["dim"]["tp"]["bytes"] for sp in (True, False)]
    tokens, norms = LLAMA.seq_len, 4 * (2 * LLAMA.layers + 1) * LLAMA.width
    loss_and_norm = 12 * tokens + 4
    stream = 2 * tokens * LLAMA.width
    assert both[0] == stream * (8 * LLAMA.layers + 4) + loss_and_norm + norms
    assert both[1] == stream * (4 * LLAMA.layers + 2) + loss_and_norm
    # A reduction counts once here, and is a scatter and a gather in a ring.
    assert both[0] - norms - loss_and_norm == 2 * (both[1] - loss_and_norm)


@pytest.mark.parametrize(("schedule", "v", "borders"), [("1F1B", 1, 3), ("Interleaved1F1B", 2, 7), ("DualPipeV", 2, 6)])
def test_each_border_of_stages_is_crossed_twice_by_each_microbatch(schedule, v, borders):
    layout = Layout(pp=4, pp_schedule=schedule, virtual_stages=v, microbatches=8)
    found = all_messages(LLAMA, Recipe(global_batch=8, steps=10, precision="bf16"), layout)
    assert found.bytes["send_recv", "pp"] == 2 * 8 * borders * 2 * LLAMA.seq_len * LLAMA.width


def test_an_outer_step_counts_for_its_share_of_a_round():
    outer = Outer("diloco", replicas=4, sync_every=50)
    found = messages(Layout(), 4, outer)
    # The norm of each bucket is in its message; padding there is none.
    assert found.bytes["all_reduce", "replicas"] * 50 == pytest.approx(bytes_per_sync(outer, _sizes()))
    assert messages(Layout(), 4, Outer("diloco", replicas=4, placement="folded")).bytes == {}


def _sizes() -> list[int]:
    from scalade.parallelism.predict.messages import TorchRank

    rank = TorchRank(LLAMA, Recipe(global_batch=1, steps=1), Layout(), Outer(), 0, 0)
    sizes = [each.rows * each.rest for each in rank.parameters()]
    assert sum(sizes) == LLAMA.params_total
    return sizes


def test_the_column_of_a_prediction_is_the_sum_over_the_ranks(tmp_path):
    path = tmp_path / "some.toml"
    path.write_text(
        'name = "some"\n[model]\nsize = "tiny-100k"\n[recipe]\nglobal_batch = 8\n[budget]\nsteps = 5\n'
        '[[layout]]\ndp_replicate = 4\n[[layout]]\nengine = "deepspeed"\ntp = 2\n'
    )
    cases = [each.case for each in load_study(path).cases_elsewhere()]
    ours, other = predict_cases(cases, load_machine("h100"))
    assert ours.columns["predicted_comm_bytes_per_step"] == 4 * 4 * cases[0].shape.params_total
    assert "predicted_comm_bytes_per_step" not in other.columns
