"""The convergence gate: a tolerance learned from seeds, at equal tokens."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from gate_rows import run
from scipy.stats import t

from scalade.launch.study.case import PARTS
from scalade.results.gate.convergence import DECIDED, compare_losses

LOSSES = [3.01, 2.99, 3.02, 2.98, 3.00]


def seeds(losses, **more):
    """One case a seed, which differ in nothing else."""
    return [run(f"{seed:016x}", seed=seed, loss=loss, tokens_seen=1000, **more) for seed, loss in enumerate(losses)]


def gate(base, head, alpha=0.05, declared=0.01):
    return compare_losses(base, head, alpha, declared)


def test_the_tolerance_is_the_prediction_interval_of_the_mean():
    (found,) = gate(seeds(LOSSES), seeds([loss + 0.005 for loss in LOSSES]))
    by_hand = t.ppf(0.975, 4) * np.std(LOSSES, ddof=1) * np.sqrt(2 / 5)
    assert found.verdict == "same" and found.learned and found.tolerance == pytest.approx(by_hand)
    assert (found.base_seeds, found.head_seeds, found.tokens_seen) == (5, 5, 1000)
    assert found.difference == pytest.approx(0.005)


@pytest.mark.parametrize(("change", "verdict"), [(0.1, "worse"), (-0.1, "better"), (0.0, "same")])
def test_verdicts(change, verdict):
    (found,) = gate(seeds(LOSSES), seeds([loss + change for loss in LOSSES]))
    assert found.verdict == verdict and found.fails == (verdict == "worse")


def test_other_seeds_of_the_same_recipe_are_false_alarms_as_rarely_as_stated():
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(600):
        base, head = 3 + 0.02 * random.standard_normal((2, 4))
        (found,) = gate(seeds(base), seeds(head))
        alarms += found.verdict != "same"
    assert 0.02 < alarms / 600 < 0.08  # 5%: neither more nor a tolerance that sees nothing


def test_too_few_seeds_fall_back_on_the_declared_tolerance_and_say_so():
    (found,) = gate(seeds([3.0, 3.1]), seeds([3.06, 3.16]))
    assert found.verdict == "worse" and not found.learned and found.tolerance == pytest.approx(0.0305)
    assert "declared, not learned: 2 of 3 seeds" in found.reason
    assert gate(seeds([3.0]), seeds([3.02]))[0].verdict == "same"


def test_repeats_of_a_seed_are_no_seeds():
    repeats = [row | {"repeat": k, "run_id": f"{row['case_id']}-r{k}"} for row in seeds([3.0]) for k in range(6)]
    assert gate(repeats, repeats)[0].base_seeds == 1


def test_rounding_is_not_worse_where_all_seeds_agree():
    assert gate(seeds([3.0] * 4), seeds([3.0 + 1e-6] * 4))[0].verdict == "same"
    assert gate(seeds([3.0] * 4), seeds([3.001] * 4))[0].verdict == "worse"


def test_recipes_are_groups_of_their_own():
    slow, fast = seeds(LOSSES, lr=1e-4), seeds([loss - 0.5 for loss in LOSSES], lr=1e-3)
    for row in fast:
        row["case_id"] = "f" + row["case_id"][1:]
    assert [one.verdict for one in gate(slow + fast, slow + fast)] == ["same", "same"]


def test_the_validation_loss_counts_where_every_run_has_one():
    base, head = seeds(LOSSES, val_loss=3.2), seeds(LOSSES, val_loss=3.2)
    assert gate(base, head)[0].loss == "val_loss"
    head[0]["val_loss"] = None
    assert gate(base, head)[0].loss == "loss"


def test_what_cannot_be_compared_fails():
    head = seeds(LOSSES)
    head[0]["tokens_seen"] = 999
    (found,) = gate(seeds(LOSSES), head)
    assert found.fails and "no loss at equal tokens: tokens_seen is 1000 and 999" in found.reason
    (found,) = gate(seeds(LOSSES), seeds([None] * 5))
    assert found.fails and found.reason == "5 of 10 runs have no loss"
    assert gate(seeds([None]), seeds([None])) == []  # nothing that a loss was measured of


def test_groups_go_by_every_field_of_a_case_but_the_seed():
    """A field added to a part of a case must keep groups apart: its column is in DECIDED by its group."""
    prefix = {"shape": "model_", "data": "data_", "outer": "outer_", "measure": "measure_"}
    said = {prefix.get(part, "") + field.name for part, kind in PARTS.items() for field in fields(kind)}
    assert said - set(DECIDED) == {"seed"}


@pytest.mark.parametrize("seen, verdict", [((1000, 1005), "same"), ((1000, 1050), "missing")])
def test_packed_runs_are_compared_at_nearly_equal_tokens(seen, verdict):
    sides = [[run(loss=2.0, tokens_seen=tokens, parity="not checked")] for tokens in seen]
    (found,) = compare_losses(*sides, alpha=0.05, declared=0.01)
    assert found.verdict == verdict and f"{seen[0]}" in found.reason and f"{seen[1]}" in found.reason
    fixed = [[row | {"tokens_per_step": 10} for row in side] for side in sides]
    assert compare_losses(*fixed, alpha=0.05, declared=0.01)[0].verdict == "missing"
