"""Whether a case's steps and its outer loop's period go together: refused, or warned of, before anything runs."""

from __future__ import annotations

from ...bench.measure import Measure
from ...parallelism.diloco.config import Outer
from ...parallelism.diloco.plan import first_outer_step, round_of, steps_after_outer
from ...results.wording import count_of


def refusal(outer: Outer, steps: int) -> str | None:
    """Why the outer parameters, or some of them, would end as they began; None: they would not."""
    if outer.algorithm == "none" or steps >= first_outer_step(outer):
        return None
    assert outer.sync_every is not None  # only `none` has no period
    if steps < outer.sync_every:
        consequence = "no outer step would be taken"
    elif outer.algorithm == "streaming":
        consequence = "some fragments would never be synchronised"
    else:
        consequence = "what is sent is received one round later, after the end"
    return f"{_setting(outer, steps)}: {consequence}; at least {first_outer_step(outer)} steps"


def warnings(outer: Outer, steps: int, measure: Measure, layers: int) -> list[str]:
    """What a case that runs loses, one line each. layers: of the model."""
    if outer.algorithm == "none" or refusal(outer, steps):
        return []
    lines = (_lost_steps(outer, steps, measure), _untimed(outer, steps, measure.warmup_steps, layers))
    return [line for line in lines if line]


def _lost_steps(outer: Outer, steps: int, measure: Measure) -> str | None:
    """Inner steps after the last outer step, where the outer parameters are evaluated or kept."""
    dropped = steps_after_outer(outer, steps) if measure.eval_sequences or measure.keep_weights else 0
    if not dropped:
        return None
    assert outer.sync_every is not None
    of_fragment = " of fragment 0" if outer.algorithm == "streaming" else ""
    lost = f"the last {dropped} inner steps{of_fragment} are" if dropped > 1 else f"the last inner step{of_fragment} is"
    under_way = " but the last round's, which is on its way" if outer.algorithm in ("delayed", "eager") else ""
    return (
        f"{_setting(outer, steps)}: {lost} in no outer step, and so not in val_loss nor in the weights that are kept; "
        f"with {steps - dropped} or {steps - dropped + outer.sync_every} steps none is lost{under_way}"
    )


def _untimed(outer: Outer, steps: int, warmup: int, layers: int) -> str | None:
    """Parts of the outer round that no timed step covers: without all of them there is no mean step time."""
    of_round = round_of(outer, layers)
    first = max(warmup + 1, of_round.whole_from)
    timed = {t % of_round.steps for t in range(first, min(steps, first + of_round.steps - 1) + 1)}
    missed, phases = len(of_round.phases - timed), len(of_round.phases)
    if steps <= warmup or not missed:
        return None
    if phases == 1:
        gap = "no outer step is timed"
    else:
        verb = "is" if missed == 1 else "are"
        gap = f"{missed} of the {phases} times at which a fragment is sent or applied {verb} not timed"
    return (
        f"{_setting(outer, steps)}, measure.warmup_steps = {warmup}: {gap}, so the run has no step time; "
        "take more steps"
    )


def _setting(outer: Outer, steps: int) -> str:
    overlap = f", outer.overlap_steps = {outer.overlap_steps}" if outer.overlap_steps else ""
    return f"{count_of(steps, 'step')} and outer.sync_every = {outer.sync_every}{overlap}"
