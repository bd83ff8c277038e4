"""How often FSDP2 gathers the parameters of a block, and those outside of blocks, in a step.

Gathered: at a forward or backward pass that finds them sharded. Sharded again: after a block's forward pass under
reshard_after_forward (what lies outside of blocks stays gathered), after a backward pass where there is no pipeline. In
a pipeline backward passes leave everything gathered, and torch's looped schedules gather the next three stages of a
rank before they are needed and shard those that are not among them.
"""

from __future__ import annotations

from functools import lru_cache

from ..layout import LOOPED
from .orders import Action, F, W, order_of

AHEAD = 3  # stages that a looped schedule keeps gathered: _add_unshard_reshard's max_active_stages


def gathers_without_pipeline(microbatches: int, reshard: bool) -> tuple[int, int]:
    """(of each block, of what is outside of blocks) in a step."""
    return microbatches * (2 if reshard else 1), microbatches


@lru_cache(maxsize=1024)
def gathers_in_pipeline(
    schedule: str, pp: int, v: int, microbatches: int, rank: int, reshard: bool
) -> dict[int, tuple[int, int]]:
    """By stage of the rank: (of each block, of what is outside of blocks) in a step."""
    actions = order_of(schedule, pp, v, microbatches)[rank]
    states = {action.stage: _Gathered() for action in actions}
    for i, action in enumerate(actions):
        if schedule in LOOPED:
            coming = _next_stages(actions[i:])
            for stage, state in states.items():
                state.keep(stage in coming)
        state = states[action.stage]
        if action.kind != W:
            state.use()
        if action.kind == F and reshard:
            state.blocks_there = False
    return {stage: (state.blocks, state.others) for stage, state in states.items()}


def _next_stages(actions: list[Action]) -> list[int]:
    found: list[int] = []
    for action in actions:
        if action.stage not in found:
            found.append(action.stage)
            if len(found) == AHEAD:
                break
    return found


class _Gathered:
    """Of one stage: whether its parameters are gathered, and how often they have been. A looped schedule gathers once
    when a stage becomes one of those to come; later only a pass does."""

    def __init__(self) -> None:
        self.blocks_there = self.others_there = self.active = False
        self.blocks = self.others = 0

    def use(self) -> None:
        self.blocks += not self.blocks_there
        self.others += not self.others_there
        self.blocks_there = self.others_there = self.active = True

    def keep(self, coming: bool) -> None:
        if coming and not self.active:
            self.use()
        elif not coming:
            self.blocks_there = self.others_there = self.active = False
