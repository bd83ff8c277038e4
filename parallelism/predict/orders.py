"""The order of actions on each rank of a pipeline, by schedule: what torch's schedules execute, without torch.

GPipe (arXiv 1811.06965), 1F1B and its interleaved form (2104.04473), looped BFS (2211.05953), zero bubble and ZBV
(2401.10241), DualPipeV (2412.19437, github.com/deepseek-ai/DualPipe). Rank r holds stage r and, looped, each pp-th
after it; V-shaped: stages r and 2 pp - 1 - r. A test holds the orders against torch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..layout import LOOPED, V_SHAPED

F, B, BI, W = "F", "B", "I", "W"  # forward; backward whole, by the input, by the weight


class Action(NamedTuple):
    """One pass of a microbatch through a stage. paired: its result is sent only after the next action (DualPipeV runs
    a forward and a backward pass as one action, and sends after both)."""

    kind: str
    stage: int
    microbatch: int
    paired: bool = False


Order = list[list[Action]]
"""The actions of each rank."""


def order_of(schedule: str, pp: int, virtual_stages: int, microbatches: int) -> Order:
    """The actions of each of the `pp` ranks in a step of `microbatches`.

    Raises
    ------
    ValueError: the schedule does not take this number of stages or microbatches
    """
    reason = refused(schedule, pp, virtual_stages, microbatches)
    if reason:
        raise ValueError(reason)
    return [MAKERS[schedule](rank, pp, virtual_stages, microbatches) for rank in range(pp)]


def refused(schedule: str, pp: int, virtual_stages: int, microbatches: int) -> str | None:
    """Why a schedule does not take so many stages or microbatches, or None where it does."""
    if schedule not in MAKERS:
        return f"pp_schedule = {schedule!r}: allowed are {', '.join(MAKERS)}"
    stages = 2 if schedule in V_SHAPED else virtual_stages if schedule in LOOPED else 1
    if virtual_stages != stages:
        return f"{schedule}: virtual_stages = {virtual_stages}: must be {stages}"
    least, rounds = LEAST.get(schedule, 0) * pp, max(1, microbatches // pp)
    if microbatches < max(least, 1):
        return f"{schedule}: microbatches = {microbatches}: must be at least {max(least, 1)} with pp = {pp}"
    if schedule in ROUNDS and microbatches % rounds:
        return f"{schedule}: microbatches = {microbatches}: must be a multiple of {rounds}, its rounds with pp = {pp}"
    return None


def _gpipe(rank: int, pp: int, v: int, m: int) -> list[Action]:
    return [Action(kind, rank, i) for kind in (F, B) for i in range(m)]


def _one_f_one_b(rank: int, pp: int, v: int, m: int) -> list[Action]:
    ahead = min(m, pp - rank)
    actions = [Action(F, rank, i) for i in range(ahead)]
    for i in range(m):
        actions.append(Action(B, rank, i))
        if i + ahead < m:
            actions.append(Action(F, rank, i + ahead))
    return actions


def _looped_bfs(rank: int, pp: int, v: int, m: int) -> list[Action]:
    stages = range(rank, pp * v, pp)
    forward = [Action(F, stage, i) for stage in stages for i in range(m)]
    return forward + [Action(B, stage, i) for stage in reversed(stages) for i in reversed(range(m))]


def _interleaved(rank: int, pp: int, v: int, m: int) -> list[Action]:
    passes, ahead, forward, backward = _rounds(rank, pp, v, m, hop=2)
    actions = forward[:ahead]
    for i in range(passes - ahead):
        actions += [forward[ahead + i], Action(B, *backward[i][1:])]
    return actions + [Action(B, *each[1:]) for each in backward[passes - ahead :]]


def _interleaved_zero_bubble(rank: int, pp: int, v: int, m: int) -> list[Action]:
    """The weights' gradients of a pass follow `rank` passes later."""
    passes, ahead, forward, backward = _rounds(rank, pp, v, m, hop=1)
    actions = forward[:ahead]
    for i in range(passes):
        actions += forward[ahead + i : ahead + i + 1] + [Action(BI, *backward[i][1:])]
        if i >= rank:
            actions.append(Action(W, *backward[i - rank][1:]))
    return actions + [Action(W, *each[1:]) for each in backward[passes - min(rank, passes) :]]


def _rounds(rank: int, pp: int, v: int, m: int, hop: int) -> tuple[int, int, list[Action], list[Action]]:
    """Of the interleaved schedules: (passes of a rank, forward passes ahead of the first backward pass, the forward
    passes, the backward passes); microbatches go in rounds of about pp through one stage after the other."""
    each, passes = m // max(1, m // pp), v * m
    ahead = min((v - 1) * each + hop * (pp - 1 - rank), passes)
    forward, backward = [], []
    for start in range(0, m, each):
        for local in range(v):
            forward += [Action(F, local * pp + rank, start + i) for i in range(each)]
            backward += [Action(BI, (v - 1 - local) * pp + rank, start + i) for i in range(each)]
    return passes, ahead, forward, backward


class _Counted:
    """A rank's list of actions, in which the microbatches of each (kind, stage) count up by themselves."""

    def __init__(self) -> None:
        self.actions: list[Action] = []
        self.next: dict[tuple[str, int], int] = {}
        self.pending: list[tuple[int, int]] = []  # (stage, microbatch) whose weights' gradients are to come

    def add(self, kind: str, stage: int, paired: bool = False) -> None:
        way = F if kind == F else BI
        microbatch = self.next.get((way, stage), 0)
        self.next[way, stage] = microbatch + 1
        self.actions.append(Action(kind, stage, microbatch, paired))
        if kind == BI:
            self.pending.append((stage, microbatch))

    def weights(self) -> None:
        if self.pending:
            self.actions.append(Action(W, *self.pending.pop(0)))

    def pair(self, forward: int, backward: int) -> None:
        self.add(F, forward, paired=True)
        self.add(B, backward)


def _zbv(rank: int, pp: int, v: int, m: int) -> list[Action]:
    """Planned for 2 pp - 1 microbatches at least; those that there are not are left out."""
    planned, down, up = max(2 * pp - 1, m), rank, 2 * pp - 1 - rank
    order = _Counted()

    def whole(stage: int) -> None:  # both halves of a backward pass
        order.add(BI, stage)
        order.actions.append(Action(W, *order.pending.pop()))

    for _ in range(2 * (pp - rank) - 1):
        order.add(F, down)
    for _ in range(rank):
        order.add(F, up)
        order.add(F, down)
    for _ in range(pp - rank):
        order.add(F, up)
        whole(up)
    while order.next.get((F, up), 0) < order.next[F, down] or order.next[F, down] < planned:
        if order.next[F, down] < planned:
            order.add(F, down)
        whole(down)
        order.add(F, up)
        whole(up)
    for _ in range(rank):
        order.add(BI, down)
        order.add(BI, up)
    late = {stage: [each for each in order.pending if each[0] == stage] for stage in (down, up)}
    for _ in range(pp - rank):
        order.add(BI, down)
        late[down].append((down, order.next[BI, down] - 1))
        order.actions.append(Action(W, *late[down].pop(0)))
    order.actions += [Action(W, *each) for each in late[up] + late[down]]
    return [action for action in order.actions if action.microbatch < m]


def _dual_pipe_v(rank: int, pp: int, v: int, m: int) -> list[Action]:
    down, up, behind = rank, 2 * pp - 1 - rank, pp - rank - 1  # behind: ranks after this one
    order = _Counted()
    for _ in range(2 * behind):
        order.add(F, down)
    for _ in range(rank + 1):
        order.add(F, down)
        order.add(F, up)
    for _ in range(behind):
        order.add(BI, up)
        order.weights()
        order.add(F, up)
    for i in range(m - 2 * pp + rank + 1):
        if i == 0 and behind == 0:
            order.add(F, down)
            order.add(B, up)
        else:
            order.pair(down, up)
        order.pair(up, down)
    for _ in range(behind):
        order.add(B, up)
        order.pair(up, down)
    half, split = (rank + 1) // 2, False  # the second half of what is left splits its backward passes
    for i in range(rank + 1):
        split = split or (i == half and rank % 2 == 1)
        order.add(BI if split else B, up)
        split = split or (i == half and rank % 2 == 0)
        order.add(BI if split else B, down)
    for _ in range(behind):
        order.weights()
        order.add(BI if split else B, down)
    while order.pending:
        order.weights()
    return order.actions


MAKERS: dict[str, Callable[[int, int, int, int], list[Action]]] = {
    "GPipe": _gpipe,
    "1F1B": _one_f_one_b,
    "Interleaved1F1B": _interleaved,
    "LoopedBFS": _looped_bfs,
    "InterleavedZeroBubble": _interleaved_zero_bubble,
    "ZBVZeroBubble": _zbv,
    "DualPipeV": _dual_pipe_v,
}
LEAST = {"DualPipeV": 2}  # microbatches, times pp
ROUNDS = ("Interleaved1F1B", "InterleavedZeroBubble")  # microbatches go through a rank's stages in rounds of about pp


def most_alive(actions: list[Action]) -> int:
    """Of one rank: the most passes whose activations are held at once, from the forward pass to the last backward."""
    held = most = 0
    for action in actions:
        held += {F: 1, B: -1, BI: 0, W: -1}[action.kind]
        most = max(most, held)
    return most
