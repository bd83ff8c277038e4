"""The orders of a pipeline's actions are those of torch's own schedules."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from scalade.parallelism.layout import LOOPED, SCHEDULES, V_SHAPED
from scalade.parallelism.predict.orders import Action, most_alive, order_of

SIZES = [
    (schedule, pp, v, m)
    for schedule in SCHEDULES
    for pp in (2, 3, 4, 8)
    for v in ((2,) if schedule in V_SHAPED else (2, 3) if schedule in LOOPED else (1,))
    for m in (pp, pp + 1, 2 * pp, 2 * pp + 1, 4 * pp, 6 * pp)
    if not (schedule == "DualPipeV" and m < 2 * pp)
    and not (schedule in ("Interleaved1F1B", "InterleavedZeroBubble") and m % max(1, m // pp))
]
KINDS = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}


def torch_order(schedule: str, pp: int, v: int, m: int) -> list[list[Action]]:
    """What torch's schedule of that name would execute, its methods called without stages."""
    from torch.distributed.pipelining.schedules import get_schedule_class

    kind = get_schedule_class(schedule)
    if v == 1:  # these describe their order, too, but 1F1B not as it is executed (the last rank's first microbatch)
        return [executed(kind, rank, pp, m) for rank in range(pp)]
    made = SimpleNamespace(
        _n_microbatches=m,
        num_stages=pp * v,
        pp_group_size=pp,
        _stages=[None] * v,
        n_local_stages=v,
        microbatches_per_round=m // max(1, m // pp),
    )
    of_ranks = [kind._calculate_single_rank_operations(made, rank) for rank in range(pp)]
    return [[each for action in actions for each in flat(action)] for actions in of_ranks]


def executed(kind: type, rank: int, pp: int, m: int) -> list[Action]:
    """What a schedule of one stage a rank has its stage do, the messages left out."""
    done: list[Action] = []
    stage = MagicMock(stage_index=rank)
    stage.forward_one_chunk.side_effect = lambda i, *args, **options: done.append(Action("F", rank, i))
    stage.backward_one_chunk.side_effect = lambda i, **options: done.append(Action("B", rank, i))
    for name in ("get_fwd_recv_ops", "get_fwd_send_ops", "get_bwd_recv_ops", "get_bwd_send_ops"):
        getattr(stage, name).return_value = []
    schedule = MagicMock(_stage=stage, _n_microbatches=m, _num_stages=pp)
    schedule._check_inputs.return_value = ([()] * m, [{}] * m)
    kind._step_microbatches(schedule, target_mbs=[None] * m)
    return done


def flat(action) -> list[Action]:
    """Our actions of one of torch's; those that only reduce gradients are none."""
    if action is None or action.computation_type.name == "REDUCE_GRAD":
        return []
    if action.sub_actions:
        first, second = (flat(each)[0] for each in action.sub_actions)
        return [first._replace(paired=True), second]
    return [Action(KINDS[action.computation_type.name], action.stage_index, action.microbatch_index)]


@pytest.mark.parametrize(("schedule", "pp", "v", "m"), SIZES)
def test_our_order_is_torchs(schedule, pp, v, m):
    assert order_of(schedule, pp, v, m) == torch_order(schedule, pp, v, m)


@pytest.mark.parametrize(("schedule", "pp", "v", "m"), SIZES)
def test_each_pass_of_each_microbatch_comes_once_and_in_its_order(schedule, pp, v, m):
    actions = [each for rank in order_of(schedule, pp, v, m) for each in rank]
    passes = {(kind, a.stage, a.microbatch) for a in actions for kind in ("IW" if a.kind == "B" else a.kind)}
    assert passes == {(kind, stage, i) for kind in "FIW" for stage in range(pp * v) for i in range(m)}
    assert len(actions) == len({a[:3] for a in actions})


def test_passes_alive_at_once():
    assert [most_alive(each) for each in order_of("1F1B", 4, 1, 16)] == [4, 3, 2, 1]
    assert [most_alive(each) for each in order_of("GPipe", 4, 1, 16)] == [16] * 4
    assert [most_alive(each) for each in order_of("Interleaved1F1B", 4, 2, 16)] == [11, 9, 7, 5]
    assert [most_alive(each) for each in order_of("ZBVZeroBubble", 4, 2, 16)] == [8] * 4


def test_too_few_microbatches_cost_one_line():
    with pytest.raises(ValueError, match="DualPipeV: microbatches = 7: must be at least 8 with pp = 4"):
        order_of("DualPipeV", 4, 2, 7)
    with pytest.raises(ValueError, match="Interleaved1F1B: microbatches = 9: must be a multiple of 2"):
        order_of("Interleaved1F1B", 4, 2, 9)
