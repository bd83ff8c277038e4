"""Packed messages: error bounds against float64, exact zeros, byte counts, refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalade.kernels.codec import pack, unpack_add
from scalade.parallelism.diloco.config import ALLOWANCE, NOISE, Outer
from scalade.parallelism.diloco.plan import payload_bytes

KINDS = ("bf16", "int8", "int4", "fp4")


def roundtrip(x, kind, keep=0):
    out = torch.zeros_like(x)
    unpack_add(pack(x, kind, keep), kind, out, 1.0, keep)
    return out


def nearest(block: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Reference in float64: the nearest of max|x| * levels, element by element."""
    grid = np.abs(block).max(axis=1)[:, None, None] * levels
    return np.abs(grid - block[:, :, None]).min(axis=2)


LEVELS = {
    "int8": np.arange(-127, 128) / 127,
    "int4": np.arange(-7, 8) / 7,
    "fp4": np.concatenate([-(2.0 ** np.arange(-6, 1)), [0.0], 2.0 ** np.arange(-6, 1)]),
}

blocks = st.integers(0, 2**31).flatmap(
    lambda seed: st.tuples(st.just(seed), st.integers(1, 4), st.sampled_from([8, 16, 64]), st.floats(-30, 30))
)


def draw(case) -> torch.Tensor:
    seed, rows, width, exponent = case
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator) * torch.rand(rows, width, generator=generator) ** 6
    return (x * 10.0**exponent).float()


@settings(max_examples=60, deadline=None)
@given(blocks, st.sampled_from(tuple(LEVELS)))
def test_every_element_takes_the_nearest_level(case, kind):
    x = draw(case)
    exact = x.double().numpy()
    error = np.abs(roundtrip(x, kind).double().numpy() - exact)
    scale = np.abs(exact).max(axis=1, keepdims=True)
    assert (error <= nearest(exact, LEVELS[kind]) + 1e-6 * scale).all()


@settings(max_examples=40, deadline=None)
@given(blocks)
def test_stated_error_bounds(case):
    x = draw(case)
    top = x.abs().amax(1, keepdim=True)
    assert ((roundtrip(x, "int8") - x).abs() <= top / 254 * 1.0001).all()
    assert ((roundtrip(x, "int4") - x).abs() <= top / 14 * 1.0001).all()
    assert ((roundtrip(x, "fp4") - x).abs() <= torch.maximum(x.abs() / 3, top / 128) * 1.0001).all()
    assert ((roundtrip(x, "bf16") - x).abs() <= x.abs() * 2.0**-8 + 2.0**-133).all()  # half the smallest bf16


@pytest.mark.parametrize("kind", KINDS)
def test_zero_stays_zero_and_so_does_sign(kind):
    x = torch.randn(5, 32)
    x[0] = 0
    x[1, ::2] = 0
    back = roundtrip(x, kind)
    assert (back[x == 0] == 0).all()
    assert (back * x >= 0).all()


def test_e3m0_representable_values_are_exact():
    x = torch.tensor([[3.0 * s * 2.0**-k for k in range(7) for s in (1, -1)] + [0.0, 0.0]])
    assert torch.equal(roundtrip(x, "fp4"), x)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("kind", (*KINDS, "topk"))
def test_infinity_and_nan_are_refused(kind, bad):
    x = torch.randn(3, 16)
    x[1, 5] = bad
    with pytest.raises(FloatingPointError, match=kind):
        pack(x, kind, keep=2)


def test_topk_keeps_the_largest_and_their_places():
    x = torch.randn(3, 65536)  # positions above 32767 need the whole 16 bits
    back = roundtrip(x, "topk", keep=100)
    threshold = x.abs().kthvalue(65536 - 100, dim=1, keepdim=True).values
    assert torch.equal(back != 0, x.abs() > threshold)
    assert torch.equal(back[back != 0], x[back != 0].bfloat16().float())


@settings(max_examples=40, deadline=None)
@given(st.sampled_from((*KINDS, "topk")), st.integers(1, 9), st.sampled_from([8, 24, 256]), st.floats(0.001, 1))
def test_message_is_as_long_as_predicted(kind, rows, block, density):
    topk = kind == "topk"
    outer = Outer("diloco", 2, compression=kind, block_size=block, density=density)
    message = pack(torch.randn(rows, block), kind, outer.kept_per_block if topk else 0)
    assert message.dtype == torch.uint8
    assert message.numel() == payload_bytes(outer, rows * block)


def test_accumulates_with_a_weight_in_fp32():
    x, y = torch.randn(4, 64), torch.randn(4, 64)
    for kind in KINDS:
        total = torch.zeros_like(x)
        unpack_add(pack(x, kind), kind, total, 0.25)
        unpack_add(pack(y, kind), kind, total, 0.75)
        torch.testing.assert_close(total, 0.25 * roundtrip(x, kind) + 0.75 * roundtrip(y, kind))


@pytest.mark.parametrize(
    "kind, spread", [*((kind, spread) for kind in KINDS for spread in ("normal", "even")), ("topk", "normal")]
)
def test_fp32_s_rounding_moves_a_message_by_no_more_than_its_allowance(kind, spread):
    """Two times the same values, all off by a relative difference of 256 NOISE: 16 times as far apart."""
    block, keep = (4096, 64) if kind == "topk" else (256, 0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2**19, generator=generator) if spread == "normal" else torch.rand(2**19, generator=generator) - 0.5
    x = x.double().view(-1, block)
    off = 256 * torch.where(torch.rand(x.shape, generator=generator) < 0.5, NOISE, -NOISE)
    there, here = (roundtrip(values.float(), kind, keep).double() for values in (x, x * (1 + off)))
    apart = ((here - there).norm() / there.norm()).item() / 16
    print(f"{kind}, {spread}: {apart:.1e}")
    assert ALLOWANCE[kind] / 4 < apart < ALLOWANCE[kind]
