"""The held-out set: the sequences asked for, each once, whatever the batch and the ranks; and what its hash decides."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import scalade
from scalade.bench.data import DataSpec, open_source
from scalade.bench.device import Device
from scalade.bench.loop import evaluate, filled_up
from scalade.bench.loss import counted_sum
from scalade.bench.measure import Measure
from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.launch.study.study import load_study
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.engines import build_engine
from scalade.parallelism.layout import Layout

SHAPE = ModelShape(layers=2, heads=2, kv_heads=2, width=16, ffn=32, vocab=256, seq_len=8)


class Numbers:
    """Held-out sequence i is full of i."""

    def val_rows(self, start, stop):
        return np.arange(start, stop)[:, None] + np.zeros((1, 3), np.int64)


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(1, 24), st.data())
def test_every_sequence_is_in_one_row_of_one_rank(asked, batch, data):
    edges = sorted({0, batch, *data.draw(st.lists(st.integers(0, batch), max_size=5))})
    found = []
    for start in range(0, asked, batch):
        real = min(batch, asked - start)
        share = []
        for begin, end in pairwise(edges):
            rows, counted = filled_up(Numbers(), start, real, batch, begin, end)
            assert rows.shape == (end - begin, 3) and counted.shape == (end - begin,)
            found += rows[counted][:, 0].tolist()
            share.append(counted.sum() - (end - begin) * real / batch)
        assert max(map(abs, share)) < 1  # every rank its part
    assert sorted(found) == [*range(asked)]


def test_what_stands_in_a_row_that_does_not_count_is_not_seen():
    losses = torch.tensor([[1.0, 2.0], [math.nan, math.inf], [3.0, 4.0]])
    assert counted_sum(losses, torch.tensor([True, False, True])).item() == 5.0


def held_out(recipe: dict, asked: int, outer: Outer | None = None) -> dict[str, float]:
    recipe = Recipe(steps=1, **recipe)
    engine = build_engine(SHAPE, recipe, Layout(), outer or Outer(), torch.device("cpu"))
    rows = evaluate(engine, open_source(DataSpec(), 8, 0), recipe, Measure(eval_sequences=asked), Device("cpu"), 0, 0)
    assert [row["val_sequences"] for row in rows] == [asked] * len(rows)
    return {row["kind"]: row["val_loss"] for row in rows}


@pytest.mark.parametrize("batch", [1, 5, 24, 48, 96])
def test_the_loss_of_the_same_weights_is_one_number_for_every_batch(batch):
    """Spread before: .0146 nats, over 65 to 96 sequences. Over ranks: the held-out losses of test_parity.py."""
    assert held_out({"global_batch": batch}, 64)["model"] == pytest.approx(
        held_out({"global_batch": 64}, 64)["model"], rel=1e-6
    )


def test_replicas_evaluate_the_same_set():
    alone = held_out({"global_batch": 8}, 13)["model"]
    outer = Outer(algorithm="diloco", replicas=4, placement="folded", sync_every=2)
    assert held_out({"global_batch": 8}, 13, outer) == {"outer": pytest.approx(alone), "inner": pytest.approx(alone)}


STUDY = """
name = "few"
[model]
size = "tiny-100k"
seq_len = {seq_len}
[data]
source = "tokens"
path = "{path}"
vocab = 256
val_fraction = 0.5
[recipe]
global_batch = 2
[budget]
steps = 1
[measure]
eval_sequences = {asked}
"""


@pytest.mark.parametrize(("asked", "skipped"), [(6, False), (7, True), (0, False)])
def test_a_case_that_asks_for_more_than_there_are_is_not_started(tmp_path, asked, skipped):
    """100 tokens are held out: 6 windows of 16, each with the token after it."""
    np.random.default_rng(0).integers(0, 256, 200).astype("<u2").tofile(tmp_path / "t.bin")
    (tmp_path / "few.toml").write_text(STUDY.format(path=tmp_path / "t.bin", seq_len=16, asked=asked))
    (planned,) = load_study(tmp_path / "few.toml").cases()
    assert bool(planned.skip_reason) == skipped
    if skipped:
        assert "7 held-out sequences are asked for, there are 6 of 16 tokens" in planned.skip_reason
        assert load_study(tmp_path / "few.toml").cases_elsewhere()[0].skip_reason is None  # its data may be there


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(2, 5), st.integers(0, 10))
def test_the_hash_is_that_of_the_tokens_however_they_are_handed_over(rows, length, at):
    tokens = np.random.default_rng(0).integers(0, 2**32, (rows, length))
    one = scalade.val_hash(tokens)
    assert one == scalade.val_hash(tokens.astype("u4")) == scalade.val_hash(tokens.tolist())
    assert one == scalade.val_hash(part for part in (tokens[:at], tokens[at:]))
    assert one == scalade.val_hash(torch.from_numpy(tokens))
    changed = tokens.copy()
    changed[at % rows, at % length] ^= 1
    others = changed, tokens[:, :1], tokens.reshape(1, -1) if rows > 1 else tokens.reshape(-1, 1)
    assert one not in map(scalade.val_hash, others)


@pytest.mark.parametrize("wrong", [[], [[]], [[0.5]], [[-1, 0]], [[[[1]]]], [[0, 0, 0], [0, 0, 0, 0]]], ids=str)
def test_what_is_no_tokens_has_no_hash(wrong):
    with pytest.raises(ValueError, match="sequences"):
        scalade.val_hash(wrong)
