"""Start values: a shard alone is that part of the whole; normal, independent, scaled; norms are one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scalade.bench import init
from scalade.bench.init import fill, normal_at, std_of


def whole(name: str, shape: tuple[int, int], seed: int = 0, std: float = 1.0, layers: int = 3) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=torch.float64)
    fill(tensor, name, shape, (0, 0), seed, layers, std)
    return tensor


@st.composite
def cuts(draw):
    """(whole shape, offset, part shape) of a part inside a matrix."""
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    top, left = draw(st.integers(0, rows)), draw(st.integers(0, columns - 1))
    return (rows, columns), (top, left), (draw(st.integers(0, rows - top)), draw(st.integers(1, columns - left)))


@settings(max_examples=60, deadline=None)
@given(cuts(), st.integers(0, 2**63 - 1), st.sampled_from([1, 7, 64, 1 << 18]))
def test_a_part_filled_alone_is_that_part_of_the_whole(cut, seed, chunk):
    shape, (top, left), (rows, columns) = cut
    expected = whole("head.weight", shape, seed)[top : top + rows, left : left + columns]
    part = torch.full((rows, columns), torch.nan, dtype=torch.float64)
    before, init.CHUNK = init.CHUNK, chunk
    try:
        fill(part, "head.weight", shape, (top, left), seed, 3, 1.0)
    finally:
        init.CHUNK = before
    assert torch.equal(part, expected)


def test_a_part_that_is_a_view_is_filled_in_place():
    table = torch.zeros(6, 8)
    fill(table[2:4, 3:5], "head.weight", (6, 8), (2, 3), 0, 3, 1.0)
    inside = torch.zeros(6, 8, dtype=torch.bool)
    inside[2:4, 3:5] = True
    assert torch.equal(table, torch.where(inside, whole("head.weight", (6, 8)).float(), 0.0))


def test_values_are_those_of_the_published_generator():
    """SplitMix64 and Box-Muller by Python's integers and numpy: also pins the start values of earlier tables."""
    key, mask = 0xFEDCBA9876543210, 2**64 - 1
    expected = []
    for index in range(50):
        z = (index + key) * 0x9E3779B97F4A7C15 & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        z ^= z >> 31
        u, v = (z >> 32) + 0.5, z & 0xFFFFFFFF
        expected.append(np.sqrt(-2 * np.log(u / 2**32)) * np.cos(2 * np.pi * v / 2**32))
    found = normal_at(torch.arange(50), key)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_distribution_is_standard_normal():
    x = whole("blocks.0.mlp.up.weight", (1000, 1000)).numpy().ravel()
    n = x.size  # standard errors: mean 1/sqrt(n), variance sqrt(2/n), skewness sqrt(6/n), kurtosis sqrt(24/n)
    assert abs(x.mean()) < 4 / n**0.5
    assert abs(x.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs(stats.skew(x)) < 4 * (6 / n) ** 0.5
    assert abs(stats.kurtosis(x)) < 4 * (24 / n) ** 0.5
    assert stats.kstest(x[:100_000], "norm").pvalue > 1e-3
    assert 4.3 < np.abs(x).max() < 6.8


@pytest.mark.parametrize(
    "other",
    [("blocks.1.mlp.up.weight", 0), ("blocks.0.mlp.gate.weight", 0), ("blocks.0.mlp.up.weight", 1)],
    ids=["layer", "matrix", "seed"],
)
def test_names_and_seeds_are_independent(other):
    a = whole("blocks.0.mlp.up.weight", (300, 300)).ravel()
    b = whole(other[0], (300, 300), other[1]).ravel()
    limit = 4 / a.numel() ** 0.5
    for shift in (0, 1, 300):  # also not the same stream, shifted
        assert abs(torch.corrcoef(torch.stack((a, b.roll(shift))))[0, 1]) < limit
        assert abs(torch.corrcoef(torch.stack((a.square(), b.square().roll(shift))))[0, 1]) < limit
    assert not np.isin(a.numpy(), b.numpy()).any()


def test_neighbours_are_independent():
    x = whole("head.weight", (300, 300))
    for first, second in ((x[:, 1:], x[:, :-1]), (x[1:], x[:-1])):
        pair = torch.stack((first.ravel(), second.ravel()))
        assert abs(torch.corrcoef(pair)[0, 1]) < 4 / pair.shape[1] ** 0.5


def test_scale_by_kind_of_parameter():
    assert std_of("blocks.0.attention.wo.weight", 8, 0.02) == pytest.approx(0.02 / 4)  # sqrt(2 x 8 layers)
    assert std_of("blocks.0.mlp.down.weight", 8, 0.02) == pytest.approx(0.02 / 4)
    for name in ("embedding.weight", "head.weight", "blocks.0.attention.wq.weight", "blocks.0.mlp.gate.weight"):
        assert std_of(name, 8, 0.02) == 0.02
    for name in ("norm.weight", "blocks.0.attention_norm.weight", "blocks.0.attention.q_norm.weight"):
        norm = torch.full((5,), torch.nan)
        fill(norm, name, (5,), (0,), 0, 8, 0.02)
        assert torch.equal(norm, torch.ones(5))
    assert whole("blocks.0.mlp.down.weight", (400, 400), std=0.02, layers=8).std() == pytest.approx(0.005, rel=0.01)


def test_bf16_parameters_are_the_rounded_values():
    part = torch.empty(20, 20, dtype=torch.bfloat16)
    fill(part, "head.weight", (20, 20), (0, 0), 0, 3, 0.02)
    assert torch.equal(part, whole("head.weight", (20, 20), std=0.02).bfloat16())
