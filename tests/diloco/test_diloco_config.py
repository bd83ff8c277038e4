"""Settings of the outer step: the papers' defaults, what excludes what, and the messages."""

import pytest

from scalade.parallelism.diloco.config import Outer


def test_defaults_are_the_papers():
    assert [Outer("diloco", m).lr for m in (1, 2, 3, 4, 8, 16)] == [0.4, 0.6, 0.6, 0.6, 0.8, 0.8]
    diloco, streaming = Outer("diloco", 2), Outer("streaming", 2)
    assert (diloco.sync_every, diloco.momentum, diloco.nesterov) == (30, 0.9, True)
    assert (streaming.lr, streaming.fragment_layers, streaming.fragment_order) == (0.4, 3, "strided")
    assert (streaming.overlap_steps, streaming.mixing_alpha) == (1, 0.5)
    sparse = Outer("diloco", 8, compression="topk")
    assert (sparse.lr, sparse.momentum, sparse.error_decay, sparse.kept_per_block) == (1.0, 0.0, 0.95, 64)


def test_what_an_algorithm_does_not_use_is_none_so_that_grids_make_no_case_twice():
    assert Outer("none", sync_every=10, momentum=0.5, compression="int4") == Outer()
    assert Outer("localsgd", 2, lr=0.3) == Outer("localsgd", 2)
    assert Outer("diloco", 2, overlap_steps=5, block_size=64) == Outer("diloco", 2)
    assert Outer("diloco", 2, momentum=0.0) == Outer("diloco", 2, momentum=0.0, nesterov=False)
    assert Outer("diloco", 2, exchange="twoshot") == Outer("diloco", 2)  # fp32: a ring does both shots
    assert Outer("diloco", 2, lr=0.6) == Outer("diloco", 2)  # the default, said


def test_a_case_read_back_is_the_same():
    from dataclasses import asdict

    for outer in (Outer(), Outer("streaming", 4, "folded", compression="fp4"), Outer("diloco", 2, compression="topk")):
        assert Outer(**asdict(outer)) == outer


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(algorithm="diloko"), "outer.algorithm = 'diloko': allowed are none, localsgd, diloco"),
        (dict(replicas=2), "outer.replicas = 2: algorithm 'none' has one replica"),
        (dict(algorithm="diloco", replicas=0), "outer.replicas = 0: must be at least 1"),
        (dict(algorithm="diloco", sync_every=0), "outer.sync_every = 0: must be between 1"),
        (dict(algorithm="diloco", lr=float("nan")), "outer.lr = nan"),
        (dict(algorithm="diloco", momentum=1.5), "outer.momentum = 1.5"),
        (dict(algorithm="streaming", overlap_steps=30), "outer.overlap_steps = 30: must be below outer.sync_every"),
        (dict(algorithm="streaming", mixing_alpha=-0.1), "outer.mixing_alpha = -0.1"),
        (dict(algorithm="diloco", compression="int4", block_size=12), "outer.block_size = 12: must be a multiple of 8"),
        (dict(algorithm="diloco", compression="topk", density=0.0), "outer.density = 0"),
        (
            dict(algorithm="diloco", compression="topk", exchange="twoshot"),
            "outer.exchange = 'twoshot' with outer.compression = 'topk': the sum of what they kept is no longer "
            "sparse; set exchange = 'allgather'",
        ),
        (
            dict(algorithm="diloco", replicas=2, compression="int4", exchange="twoshot", quorum=1),
            "outer.exchange = 'twoshot' with outer.quorum = 1: an owner may be missing; set exchange = 'allgather'",
        ),
        (dict(algorithm="diloco", exchange="ring"), "outer.exchange = 'ring': allowed are allgather, twoshot"),
        (dict(algorithm="diloco", compression="int3"), "outer.compression = 'int3': allowed are none, bf16"),
    ],
)
def test_mistakes_cost_one_clear_line(settings, message):
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(")) as caught:
        Outer(**settings)
    assert "\n" not in str(caught.value)


def test_names_are_short():
    assert Outer().name() == ""
    assert Outer("diloco", 8, compression="int4", exchange="twoshot").name() == "diloco.M8.H30.int4.twoshot"
    assert Outer("streaming", 4, "folded", compression="int4").name() == "streaming.M4.H30.int4.folded"
