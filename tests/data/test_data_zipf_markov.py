"""zipf-markov: its entropy rate is what is said, its structure has several scales, its sequences stand alone."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalade.bench.data import DataSpec, open_source
from scalade.bench.data.zipf_markov import transitions, zipf


def source(seq_len=64, seed=0, **chain):
    return open_source(DataSpec("zipf-markov", **chain), seq_len, seed)


def matrix(source) -> np.ndarray:
    """P[s, x]: the probability of token x after token s."""
    p = np.empty((source.vocab, source.vocab))
    np.put_along_axis(p, source.table.astype(np.int64), source.probabilities[None, :], axis=1)
    return p


@given(st.integers(2, 300), st.floats(0, 8))
@settings(deadline=None)
def test_entropy_formula(vocab, exponent):
    p, entropy = zipf(vocab, exponent)
    assert math.isclose(math.fsum(p), 1, rel_tol=1e-14)
    assert math.isclose(entropy, -math.fsum(q * math.log(q) for q in p), rel_tol=1e-12, abs_tol=1e-14)
    assert entropy <= math.log(vocab) * (1 + 1e-15)


def test_known_entropies():
    assert zipf(256, 0)[1] == pytest.approx(math.log(256), rel=1e-15)
    assert zipf(2, 1)[1] == pytest.approx(-(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3), rel=1e-15)


@given(st.integers(2, 120), st.integers(1, 6), st.integers(0, 99))
@settings(deadline=None)
def test_every_row_is_a_permutation(vocab, levels, chain_seed):
    table = transitions(vocab, min(levels, vocab), chain_seed)
    assert np.array_equal(np.sort(table, axis=1), np.tile(np.arange(vocab), (vocab, 1)))


@pytest.mark.parametrize("chain", [{}, {"vocab": 17, "zipf_exponent": 1.7}, {"vocab": 64, "zipf_levels": 1}], ids=str)
@pytest.mark.parametrize("split", ["train_rows", "val_rows"])
def test_cross_entropy_of_the_true_model_is_the_entropy_rate(chain, split):
    """Also at the first and at the last target of a sequence: the bound holds at every place."""
    true = source(**chain)
    surprise = -np.log(matrix(true))
    rows = getattr(true, split)(0, 20_000)
    nats = surprise[rows[:, :-1], rows[:, 1:]]
    spread = math.sqrt(float(true.probabilities @ (np.log(true.probabilities) + true.entropy_nats) ** 2))
    for part in (nats, nats[:, 0], nats[:, -1]):
        assert abs(part.mean() - true.columns()["data_entropy_nats"]) < 4.5 * spread / math.sqrt(part.size)


def test_transitions_happen_as_often_as_their_probability():
    """Chi-square over all pairs of a small chain: nothing but the stated matrix made this text."""
    true = source(seq_len=100, vocab=12, zipf_exponent=0.8)
    rows = true.train_rows(0, 5000)
    counts = np.zeros((12, 12))
    np.add.at(counts, (rows[:, :-1], rows[:, 1:]), 1)
    expected = counts.sum(axis=1, keepdims=True) * matrix(true)
    freedom = 12 * 11
    assert abs(((counts - expected) ** 2 / expected).sum() - freedom) < 5 * math.sqrt(2 * freedom)
    # What a model that fits the counts would reach (plug-in, Miller-Madow corrected), without looking at the matrix.
    plug_in = -(counts * np.log(counts / counts.sum(axis=1, keepdims=True))).sum() / counts.sum()
    plug_in += freedom / (2 * counts.sum())
    assert abs(plug_in - true.entropy_nats) < 0.005


def test_order_one_and_no_more():
    """Given the last token, the one before says nothing: mutual information within its bias."""
    rows = source(seq_len=200, vocab=6).train_rows(0, 5000)
    counts = np.zeros((6, 6, 6))
    np.add.at(counts, (rows[:, :-2], rows[:, 1:-1], rows[:, 2:]), 1)
    before, after, here = (counts.sum(axis=axis, keepdims=True) for axis in (2, 0, (0, 2)))
    g = 2 * (counts * np.log(counts * here / (before * after))).sum()  # chi-square with 6 * 5 * 5 degrees of freedom
    assert abs(g - 150) < 5 * math.sqrt(300)


def test_there_is_something_to_learn_at_every_level():
    """The loss of a model that knows the class of the last token at level l falls with l, down to the entropy rate."""
    true = source(vocab=216, zipf_levels=4)
    p = matrix(true)
    stationary = np.full(216, 1 / 216)
    for _ in range(200):
        stationary = stationary @ p
    losses = []
    for classes in (1, 6, 36, 216):
        joint = np.zeros((classes, 216))
        np.add.at(joint, np.arange(216) * classes // 216, stationary[:, None] * p)
        losses.append(-(joint * np.log(joint / joint.sum(axis=1, keepdims=True))).sum())
    assert losses[0] < math.log(216) - 0.5
    assert all(fine < coarse - 0.05 for coarse, fine in zip(losses[:-1], losses[1:], strict=True))
    assert losses[-1] == pytest.approx(true.entropy_nats, rel=1e-12)


@given(st.integers(0, 2**40), st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(0, 2**63 - 1))
@settings(deadline=None, max_examples=30)
def test_a_sequence_depends_on_its_position_only(start, widths, seed):
    edges = np.cumsum([start, *widths]).tolist()
    parts = [source(8, seed, vocab=9).train_rows(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    assert np.array_equal(np.concatenate(parts), source(8, seed, vocab=9).train_rows(start, edges[-1]))


def test_streams_differ():
    base = source()
    train, val = base.train_rows(0, 200), base.val_rows(0, 200)
    assert train.shape == (200, 65) and train.dtype == np.int64
    assert len(np.unique(np.concatenate([train, val]), axis=0)) == 400
    assert not np.array_equal(train, source(seed=1).train_rows(0, 200))
    assert np.array_equal(val, source(seed=1).val_rows(0, 200))  # evaluations of all seeds compare
    other = source(chain_seed=1)
    assert not np.array_equal(other.table, base.table) and not np.array_equal(other.val_rows(0, 200), val)
    assert np.array_equal(source(32).train_rows(5, 6), train[5:6, :33])  # longer sequences begin as shorter ones


def test_columns():
    base = source()
    columns = base.columns()
    assert columns["data_tokens"] is None and base.val_windows is None and base.unique_tokens(7) == 7 * 64
    assert columns == source(seed=5).columns()
    for chain in ({"chain_seed": 1}, {"zipf_exponent": 1.1}, {"zipf_levels": 3}, {"vocab": 511}):
        assert source(**chain).columns()["data_hash"] != columns["data_hash"]


def test_the_chain_stays_the_same():
    """A table and a text from years ago must come out again."""
    assert source(vocab=8, zipf_levels=3).table[:2].tolist() == GOLDEN_TABLE
    assert source(11, 1).train_rows(3, 4)[0].tolist() == GOLDEN_ROW


GOLDEN_TABLE = [[1, 3, 6, 0, 4, 5, 7, 2], [1, 3, 5, 0, 4, 6, 7, 2]]
GOLDEN_ROW = [252, 365, 171, 304, 309, 237, 456, 406, 214, 332, 420, 406]
