"""Whether a case's steps and its outer loop's period go together: refused, or warned of, before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...parallelism.diloco.plan import first_outer_step, round_of, steps_after_outer
from ...results.wording import count_of

if TYPE_CHECKING:
    from .case import Case


def refusal(case: Case) -> str | None:
    """Why the outer parameters, or some of them, would end as they began; None: they would not."""
    outer, steps = case.outer, case.recipe.steps
    if outer.algorithm == "none" or steps >= first_outer_step(outer):
        return None
    if steps < outer.sync_every:
        what = "no outer step would be taken"
    elif outer.algorithm == "streaming":
        what = "some fragments would never be synchronised"
    else:
        what = "what is sent is received one round later, after the end"
    least = first_outer_step(outer)
    return (
        f"{count_of(steps, 'step')} and outer.sync_every = {outer.sync_every}{_overlap(case)}: {what}; at least "
        f"{least} steps"
    )


def warnings(case: Case) -> list[str]:
    """What a case that runs loses, one line each."""
    outer, steps, warmup = case.outer, case.recipe.steps, case.measure.warmup_steps
    if outer.algorithm == "none" or refusal(case):
        return []
    kept = case.measure.eval_sequences or case.measure.keep_weights  # what the outer parameters are looked at for
    found, dropped = [], steps_after_outer(outer, steps) if kept else 0
    at = f"{count_of(steps, 'step')} and outer.sync_every = {outer.sync_every}{_overlap(case)}"
    if dropped:
        lost = f"the last {dropped} inner steps" if dropped > 1 else "the last inner step"
        lost += " of fragment 0" if outer.algorithm == "streaming" else ""
        lost += " are" if dropped > 1 else " is"
        found.append(
            f"{at}: {lost} in no outer step, and so not in val_loss nor in the weights that are kept; with "
            f"{steps - dropped} or {steps - dropped + outer.sync_every} steps none is lost"
            + (" but the last round's, which is on its way" if outer.algorithm in ("delayed", "eager") else "")
        )
    of_round = round_of(outer, case.shape.layers)
    first = max(warmup + 1, of_round.whole_from)
    timed = {t % of_round.steps for t in range(first, min(steps, first + of_round.steps - 1) + 1)}
    missed = len(of_round.phases - timed)
    if steps > warmup and missed:
        of_all = f"{missed} of the {len(of_round.phases)} times at which a fragment is sent or applied"
        of_all += " is" if missed == 1 else " are"
        what = "no outer step is timed" if len(of_round.phases) == 1 else f"{of_all} not timed"
        found.append(f"{at}, measure.warmup_steps = {warmup}: {what}, so the run has no step time; take more steps")
    return found


def _overlap(case: Case) -> str:
    return f", outer.overlap_steps = {case.outer.overlap_steps}" if case.outer.overlap_steps else ""
