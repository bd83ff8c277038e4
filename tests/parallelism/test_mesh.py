"""The mesh: coordinates and neighbours, and rows that tile the batch exactly once."""

from math import prod

from hypothesis import given
from hypothesis import strategies as st

from scalade.bench.comm_probe import CommProbe
from scalade.parallelism.context import positions_of
from scalade.parallelism.layout import Layout
from scalade.parallelism.mesh import DIMENSIONS, Mesh, coordinates, ranks_along

SIZES = st.fixed_dictionaries({name: st.integers(1, 3) for name in DIMENSIONS})


@given(SIZES)
def test_places_are_all_different_and_the_last_dimension_is_nearest(sizes):
    places = [tuple(coordinates(rank, sizes).values()) for rank in range(prod(sizes.values()))]
    assert places == sorted(set(places))  # ranks in order of their places: tp fastest, replicas slowest
    assert all(tuple(coordinates(rank, sizes)) == DIMENSIONS for rank in (0, len(places) - 1))
    assert places[-1] == tuple(sizes[name] - 1 for name in DIMENSIONS)


@given(SIZES, st.sets(st.sampled_from(DIMENSIONS)))
def test_sets_of_ranks_differ_in_their_dimensions_alone(sizes, along):
    world = prod(sizes.values())
    sets = ranks_along(tuple(along), sizes)
    assert sorted(rank for ranks in sets for rank in ranks) == list(range(world))
    for ranks in sets:
        assert ranks == sorted(ranks) and len(ranks) == prod(sizes[name] for name in along)
        fixed = [{name: at for name, at in coordinates(rank, sizes).items() if name not in along} for rank in ranks]
        assert all(each == fixed[0] for each in fixed)


@given(SIZES, st.integers(1, 4))
def test_rows_of_all_ranks_tile_the_batch_once_for_each_copy(sizes, each):
    """Ranks of one (cp, tp, pp) copy read every row of their replica once; the copies read the same rows."""
    layout = Layout(**{name: sizes[name] for name in DIMENSIONS if name != "replicas"})
    batch = each * layout.dp
    seen: dict[tuple, list[int]] = {}
    for rank in range(prod(sizes.values())):
        at = coordinates(rank, sizes)
        first, last = Mesh(layout, sizes, at, {}, None).rows(batch)
        assert last - first == each
        copy = tuple(at[name] for name in ("replicas", "pp", "cp", "tp"))
        seen.setdefault(copy, []).extend(range(first, last))
    assert len(seen) == prod(sizes[name] for name in ("replicas", "pp", "cp", "tp"))
    assert all(rows == list(range(batch)) for rows in seen.values())


@given(st.integers(1, 8), st.integers(1, 6))
def test_context_parallel_ranks_hold_every_position_once_and_equal_work(cp, chunk):
    length = 2 * cp * chunk
    held = [positions_of(rank, cp, length).tolist() for rank in range(cp)]
    assert sorted(position for each in held for position in each) == list(range(length))
    # Causal attention costs position + 1: the same on every rank.
    assert len({sum(position + 1 for position in each) for each in held}) == 1


def test_traffic_among_the_ranks_of_one_dimension_is_that_dimension_s():
    """`inside` a replica of FSDP alone are the very ranks of dp_shard."""
    probe = CommProbe({"replicas": (0, 2), "dp_shard": (0, 1), "inside": (0, 1)})
    assert probe.dimension == {(0, 2): "replicas", (0, 1): "dp_shard"}
