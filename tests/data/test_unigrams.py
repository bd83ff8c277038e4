"""A held-out loss that cannot be: below the entropy of tokens that tell nothing of each other, or a known rate."""

import io
import math
from contextlib import redirect_stderr
from types import SimpleNamespace

import numpy as np
import pytest

from scalade.bench.data import DataSpec, open_source
from scalade.bench.data.unigrams import believed, entropy, independent
from scalade.bench.measure import Measure
from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.launch.rank.measured_columns import belief_columns
from scalade.launch.study.case import Case
from scalade.launch.sweep.display import Lines
from scalade.launch.sweep.plan import PlannedRun
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.layout import Layout
from scalade.results.schema.columns import RUNS

COLUMNS = {column.name for group in RUNS.values() for column in group}


def noise(vocab, count=100_000, seed=0):
    return np.random.default_rng(seed).integers(0, vocab, count)


def frequent(vocab, count=100_000, seed=0):
    """Zipf's frequencies, in no order."""
    weight = 1 / np.arange(1, vocab + 1)
    return np.random.default_rng(seed).choice(vocab, count, p=weight / weight.sum())


def far(vocab, distance, count=99_996):
    """Of every second stretch of so many tokens, every second is that of `distance` before; else noise."""
    tokens = noise(vocab, count).reshape(-1, 2 * distance)
    tokens[:, distance:] = np.where(np.arange(distance) % 2, tokens[:, distance:], tokens[:, :distance])
    return tokens.ravel()


def rows(tokens, length=64):
    return tokens[: len(tokens) // length * length].reshape(-1, length)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("make", [noise, frequent])
@pytest.mark.parametrize("vocab", [2, 256, 50_257])
def test_noise_is_independent(make, vocab, seed):
    tokens = make(vocab, seed=seed)
    assert independent(rows(tokens))
    assert independent(rows(tokens[:4096])) and not independent(rows(tokens[:128]))  # too few to say so
    found, spread = entropy(tokens)
    weight = np.ones(vocab) if make is noise else 1 / np.arange(1, vocab + 1)
    p = weight / weight.sum()
    assert found <= -(p * np.log(p)).sum() + 5 * max(spread, 0.01) / math.sqrt(len(tokens))


def text(spec):
    return open_source(spec, 64, 0).train_rows(0, 1600)


@pytest.mark.parametrize(
    "tokens",
    [
        text(DataSpec()),
        text(DataSpec("zipf-markov")),
        rows(np.arange(100_000) % 97),
        rows(far(256, 1)),
        rows(far(50_257, 3)),
        rows(np.where(np.arange(100_000) % 2, 0, noise(256))),
    ],
    ids=["Python", "a chain", "counting", "the last one", "the third last", "every second one 0"],
)
def test_what_is_no_noise_is_not_independent(tokens):
    assert not independent(tokens)


@pytest.fixture
def noisy(tmp_path):
    noise(256).astype("<u2").tofile(tmp_path / "noise.bin")
    return DataSpec("tokens", path=str(tmp_path / "noise.bin"), vocab=256)


def test_a_loss_below_the_entropy_of_noise_cannot_be(noisy):
    source = open_source(noisy, 32, 0)
    h1, warning = believed(source, 32, 4.9, 2048)
    assert h1 == pytest.approx(math.log(256), abs=0.01) and "val_loss 4.9000 is below 5.54" in warning
    assert believed(source, 32, 5.53, 2048)[1] is None  # as good as frequencies
    python = open_source(DataSpec(), 32, 0)
    assert 3 < believed(python, 32, 1.0, 2048)[0] < 3.4 and believed(python, 32, 1.0, 2048)[1] is None
    chain = open_source(DataSpec("zipf-markov"), 32, 0)
    rate = chain.columns()["data_entropy_nats"]
    assert "which nothing can beat" in believed(chain, 32, rate - 0.7, 2048, rate)[1]
    assert believed(chain, 32, rate - 0.02, 2048, rate)[1] is None  # a lucky draw of 2048 tokens


@pytest.mark.parametrize(("val_loss", "warns"), [(4.9, True), (5.6, False), (None, False)])
def test_the_row_and_the_terminal_say_so(noisy, val_loss, warns):
    shape = ModelShape(layers=1, heads=1, kv_heads=1, width=8, ffn=8, vocab=256, seq_len=32)
    case = Case(shape, noisy, Recipe(global_batch=4, steps=8), Layout(), Outer(), Measure())
    row = {"val_loss": val_loss, "val_sequences": 64, "data_entropy_nats": None, "tokens_per_s": None}
    found = belief_columns(case, open_source(noisy, 32, 0), row)
    assert set(found) <= COLUMNS and bool(found.get("val_warning")) == warns and bool(found) == (val_loss is not None)
    display = Lines()
    run = PlannedRun(case, 0)
    display.plan([run])
    with redirect_stderr(io.StringIO()) as said:
        display.ended(run, SimpleNamespace(status="ok", reason=None, bad=False), row | found, None)
    assert ("warning: val_loss 4.9000 is below" in said.getvalue()) == warns
