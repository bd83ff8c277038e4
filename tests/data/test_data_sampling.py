"""The order of the data: permutations, epochs, and the same global batch however it is cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalade.bench.data.shuffle import GAMMA, key, mix64, permute
from scalade.bench.data.windows import Text, WindowedSource, Windows, hold_out


def numbered(tokens: int, fraction: float = 0.2, seq_len: int = 7, seed: int = 0) -> WindowedSource:
    """A source whose token at place i is i, so that a token tells where it was read."""
    train, val = hold_out(np.arange(tokens, dtype=np.uint32), fraction)
    return WindowedSource(Text(train, val, tokens, str, "data"), seq_len, seed)


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(n, order):
    assert np.array_equal(np.sort(permute(np.arange(n), n, order)), np.arange(n))


def test_permute_needs_no_memory_for_a_billion():
    n = 10**9 + 7
    places = permute(np.arange(n - 50_000, n), n, 1)
    assert len(np.unique(places)) == 50_000
    assert places.min() >= 0 and places.max() < n
    assert abs(places.mean() / n - 0.5) < 5 * (1 / 12 / 50_000) ** 0.5  # uniform: 5 standard errors


@pytest.mark.parametrize("n", [2, 3, 5, 8, 30])
def test_every_place_is_equally_likely(n):
    """Chi-square of where index 0 goes and what follows it, over many keys."""
    orders = 3000
    moved = np.array([permute(np.arange(2), n, key(order)) for order in range(orders)])
    places = np.bincount(moved[:, 0], minlength=n)
    distances = np.bincount((moved[:, 1] - moved[:, 0]) % n, minlength=n)
    assert distances[0] == 0
    for cells in (places, distances[1:]):
        expected = orders / len(cells)
        chi2 = ((cells - expected) ** 2 / expected).sum()
        freedom = len(cells) - 1
        assert chi2 < freedom + 6 * (2 * max(freedom, 1)) ** 0.5


@given(
    tokens=st.integers(60, 400),
    seq_len=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
    start=st.integers(0, 500),
    cuts=st.lists(st.integers(0, 60), max_size=5),
)
@settings(deadline=None)
def test_any_split_joins_to_the_whole(tokens, seq_len, seed, start, cuts):
    source = numbered(tokens, seq_len=seq_len, seed=seed)
    edges = [start, *sorted(start + cut for cut in cuts), start + 60]
    parts = [source.train_rows(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    whole = numbered(tokens, seq_len=seq_len, seed=seed).train_rows(start, start + 60)
    assert whole.shape == (60, seq_len + 1) and whole.dtype == np.int64
    assert np.array_equal(np.concatenate(parts), whole)


@given(tokens=st.integers(60, 400), seq_len=st.integers(1, 9), seed=st.integers(0, 9), epoch=st.integers(0, 5))
@settings(deadline=None)
def test_an_epoch_takes_every_window_once(tokens, seq_len, seed, epoch):
    source = numbered(tokens, seq_len=seq_len, seed=seed)
    count = source.train.count
    rows = source.train_rows(epoch * count, (epoch + 1) * count)
    targets = rows[:, 1:].ravel()
    assert len(np.unique(targets)) == count * seq_len == source.columns()["data_tokens"]
    assert np.array_equal(rows[np.argsort(rows[:, 0])], source.train.read(np.arange(count)))


def test_epochs_and_seeds_differ_in_order():
    source, other = numbered(4000), numbered(4000, seed=1)
    count = source.train.count
    first, second = source.train_rows(0, count)[:, 0], source.train_rows(count, 2 * count)[:, 0]
    assert np.mean(first == second) < 0.05
    assert np.mean(first == other.train_rows(0, count)[:, 0]) < 0.05
    assert np.mean(np.diff(first) == 7) < 0.05  # neighbours are torn apart
    assert np.array_equal(source.val_rows(0, 50), other.val_rows(0, 50))


@given(
    st.integers(10, 20_000),
    st.floats(0, 0.9),
    st.integers(1, 50),
    st.none() | st.lists(st.integers(0, 20_000), max_size=300),
)
@settings(deadline=None)
def test_no_held_out_token_is_trained_on(tokens, fraction, seq_len, documents):
    if documents is not None:
        documents = np.unique([0] + [start for start in documents if start < tokens])
    train, val = hold_out(np.arange(tokens), fraction, documents)
    assert np.array_equal(np.sort(np.concatenate(train + val)), np.arange(tokens))
    seen = np.unique(Windows(train, seq_len).read(np.arange(Windows(train, seq_len).count)))
    held = np.unique(Windows(val, seq_len).read(np.arange(Windows(val, seq_len).count)))
    assert not np.intersect1d(seen, held).size


def test_held_out_blocks_are_the_fraction_spread_over_the_text():
    tokens = np.arange(20_000_000, dtype=np.uint32)
    train, val = hold_out(tokens, 0.06)
    assert len(val) == 64 and sum(map(len, val)) == 1_200_000
    assert abs(np.mean([piece.mean() for piece in val]) / len(tokens) - 0.5) < 0.01
    train, val = hold_out(tokens, 0)
    assert sum(map(len, val)) == 0 and sum(map(len, train)) == len(tokens)


def test_whole_documents_are_held_out():
    rng = np.random.default_rng(0)
    documents = np.append(0, np.cumsum(rng.integers(1, 2000, 5000)))
    tokens = np.arange(documents[-1])
    _, val = hold_out(tokens, 0.1, documents[:-1])
    assert all(piece[0] in documents and piece[-1] + 1 in documents for piece in val if len(piece))
    assert abs(sum(map(len, val)) / len(tokens) - 0.1) < 0.01
    _, val = hold_out(tokens, 0.1, np.array([0]))  # one document: it must be cut
    assert sum(map(len, val)) == len(tokens) // 10


def test_validation_never_wraps_and_says_how_many_there_are():
    source = numbered(400)
    assert source.val_rows(0, source.val_windows).shape == (source.val_windows, 8)
    with pytest.raises(ValueError, match=rf"there are {source.val_windows} of 7 tokens"):
        source.val_rows(0, source.val_windows + 1)
    nothing = numbered(400, fraction=0)
    assert nothing.val_windows == 0 and nothing.val_rows(0, 0).shape == (0, 8)
    with pytest.raises(ValueError, match="there are 0"):
        nothing.val_rows(0, 1)


def test_too_little_to_train_on():
    with pytest.raises(ValueError, match="7 tokens to train on, fewer than the 8 of one sequence"):
        numbered(7, fraction=0)
    assert numbered(8, fraction=0).train.count == 1


@given(st.lists(st.integers(0, 12), min_size=1, max_size=20), st.integers(1, 10))
def test_windows_run_on_over_pieces(lengths, seq_len):
    joined = np.arange(sum(lengths))
    pieces = np.split(joined, np.cumsum(lengths)[:-1])
    windows = Windows(pieces, seq_len)
    assert windows.count == max(0, (len(joined) - 1) // seq_len)
    for i, row in enumerate(windows.read(np.arange(windows.count))):
        assert np.array_equal(row, joined[i * seq_len : (i + 1) * seq_len + 1])


def test_unique_tokens_counts_targets_touched():
    source = numbered(400)
    for sequences in (0, 1, source.train.count, source.train.count + 5):
        targets = source.train_rows(0, sequences)[:, 1:]
        assert source.unique_tokens(sequences) == len(np.unique(targets))


def test_a_known_batch_stays_the_same():
    """Results written last year are comparable only while the order of the data is the same."""
    assert permute(np.arange(6), 1000, 42).tolist() == GOLDEN_PERMUTE
    assert numbered(400).train_rows(0, 3)[:, 0].tolist() == GOLDEN_STARTS


def test_mix64_is_splitmix64s():
    """The first outputs of splitmix64 with seed 1234567 (the reference C code's)."""
    state = np.arange(1, 4).astype(np.uint64) * GAMMA + np.uint64(1234567)
    assert mix64(state).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_keys_take_numbers_of_any_kind():
    assert key("train", 3, 1) == key("train", np.int64(3), 1) != key("train", 1, 3)


GOLDEN_PERMUTE = [713, 76, 62, 833, 759, 608]
GOLDEN_STARTS = [126, 119, 70]
