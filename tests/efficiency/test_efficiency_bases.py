"""The base of each layout: what an exhaustive search finds, and at a cost that grows with the layouts and no faster."""

import pytest
from efficiency_table import run
from hypothesis import given, settings
from hypothesis import strategies as st

from scalade.results.check.command import findings
from scalade.results.efficiency import workload
from scalade.results.efficiency.grouping import groups
from scalade.results.efficiency.series import Options, read_series
from scalade.results.efficiency.workload import Bases, differing, work_keys

A_GROUP = st.fixed_dictionaries(
    {
        "devices": st.sampled_from([1, 2, 4, 8]),
        "step_time_s": st.sampled_from([0.1, 0.2, 0.4]),
        "tp": st.sampled_from([1, 2]),
        "engine": st.sampled_from(["torch", "megatron"]),
        "global_batch": st.sampled_from([64, 128, None]),
        "lr": st.sampled_from([1e-3, 2e-3]),
        "model_width": st.sampled_from([64, 128]),
        "threads_per_rank": st.sampled_from([1, 2]),
    }
)


def made(settings_):
    rows = []
    for i, one in enumerate(settings_):
        one = dict(one)
        devices, seconds, batch = one.pop("devices"), one.pop("step_time_s"), one.pop("global_batch")
        tp = min(one.pop("tp"), devices)
        rows.append(
            run(devices, seconds, case_id=f"c{i:03d}", tp=tp, dp_replicate=devices // tp, **one)
            | {"global_batch": batch, "tokens_per_step": 128 * (batch or 32)}
        )
    return groups(rows)[0]


def exhaustive(group, found, mode, allow, declared):
    """The rule of docs/efficiency.md, by trying every group."""
    candidates = [
        other
        for other in (found if declared is None else declared)
        if other is not group
        and not differing(group, other, mode, allow)
        and (
            declared is not None
            or (
                other.devices < group.devices
                and other["engine"] == group["engine"]
                and other.family in ("single", group.family)
            )
        )
    ]
    return min(((other.devices, other.cost_s) for other in candidates), default=None)


@given(
    st.lists(A_GROUP, min_size=2, max_size=14),
    st.sampled_from(["strong", "weak"]),
    st.sampled_from([(), ("threads_per_rank",), ("lr", "global_batch")]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_base_is_that_of_an_exhaustive_search(some, mode, allow, declare):
    found = made(some)
    declared = found[:2] if declare else None
    bases = Bases(found, mode, allow, declared)
    for group in found:
        base, names = bases.of(group)
        wanted = exhaustive(group, found, mode, allow, declared)
        if wanted is None:
            assert base is None or names == differing(group, base, mode, allow) != []
        else:
            assert names == [] == differing(group, base, mode, allow)
            assert (base.devices, base.cost_s) == wanted


@given(A_GROUP, A_GROUP, st.sampled_from(["strong", "weak"]), st.sampled_from([(), ("lr",), ("global_batch",)]))
@settings(max_examples=60, deadline=None)
def test_the_key_of_the_work_says_what_differing_says(one, other, mode, allow):
    found = made([one, other])
    if len(found) == 2:
        keys = work_keys(found, mode, allow)
        assert (keys[0] == keys[1]) == (not differing(*found, mode, allow))


def ladder(sizes, comparable):
    return [
        run(
            devices,
            0.4 / devices,
            lr=1e-3 * (i + 1),
            case_id=f"l{i:04d}d{devices}",
            step_rows=30,
            threads_per_rank=1 if comparable else devices,
        )
        for i in range(sizes)
        for devices in (1, 2)
    ]


@pytest.mark.parametrize("comparable", [True, False])
def test_twice_the_layouts_cost_twice_and_not_four_times(comparable, monkeypatch):
    compared = []
    whole = workload.differing
    monkeypatch.setattr(workload, "differing", lambda *some: compared.append(some) or whole(*some))
    costs = []
    for sizes in (60, 120):
        rows = ladder(sizes, comparable)
        compared.clear()
        series, refused = read_series(groups(rows)[0], {}, Options("strong", draws=0))
        assert len(refused) == (0 if comparable else sizes)
        assert all(one.columns == ("threads_per_rank",) for one in refused)
        costs.append(len(compared))
        findings(rows)
        assert len(compared) == costs[-1]  # the check of bases compares no two groups at all
    assert costs[1] == 2 * costs[0]
