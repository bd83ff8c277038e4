"""Each of the twelve rules passes on a table that keeps it, fails with the run that breaks it, or does not apply."""

import json
import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from efficiency_table import repeats, run

from scalade.results.check.command import (
    FAIL,
    PASS,
    RULES,
    SKIP,
    CheckReport,
    agreeing,
    beyond,
    check,
    covered,
    findings,
)
from scalade.results.check.coverage import binomial_tail
from scalade.results.store.store import RunStore


def good() -> list[dict]:
    """1, 2 and 4 devices, 6 runs each: every rule passes."""
    rng = np.random.default_rng(0)
    return [row for n in (1, 2, 4) for row in repeats(n, 1.1 / n, 6, 0.02, rng)]


def test_a_good_table_passes_all_twelve():
    found = findings(good())
    assert [one.rule for one in found] == list(range(1, 13)) and len(RULES) == 12
    assert [(one.rule, one.why) for one in found if one.verdict != PASS] == []
    assert all(one.why and not one.run_ids for one in found)


BREAKS = {
    1: {"lr": 9.0},  # no run on fewer devices computes the same
    2: {"status": "failed", "reason": None},
    3: {"tokens_per_s": 1.0},
    4: {"mfu_palm": 0.9},
    8: {"step_time_p95_s": 100.0},
    9: {"data_hash": None},
    10: {"ranks_json": "[]"},
    11: {"peak_flops": None},
    12: {"step_rows": 3},
}


@pytest.mark.parametrize("rule, change", BREAKS.items())
def test_a_rule_that_is_broken_names_the_run(rule, change):
    rows = good()
    rows[-1] |= change
    found = findings(rows)[rule - 1]
    assert found.verdict == FAIL and found.run_ids == (rows[-1]["run_id"],)


@pytest.mark.parametrize(
    "rule, change",
    [
        (9, {"git_dirty": True}),
        (9, {"torch_version": "2.12.0"}),
        (9, {"device_name": None, "cpu_model": None}),
        (10, {"measure_warmup_steps": 0}),
        (10, {"ranks_json": "not json"}),
        (8, {"timed_steps": 19}),
        (8, {"step_time_p95_s": None}),
        (2, {"repeat": 8}),
        (11, {"peak_flops": None, "predicted_step_time_s": None}),
    ],
)
def test_other_ways_to_break_them(rule, change):
    rows = good()
    rows[-1] |= change
    assert findings(rows)[rule - 1].run_ids == (rows[-1]["run_id"],)


def test_a_prediction_is_a_bound_too():
    rows = [row | {"peak_flops": None, "predicted_step_time_s": 1.0} for row in good()]
    assert findings(rows)[10].verdict == PASS


def test_a_rate_of_the_replicas_that_were_there_is_one():
    """Two replicas, half of the outer steps without one: three quarters of the batches count."""
    rows = good()
    steps, tokens = rows[-1]["step_rows"], rows[-1]["tokens_per_step"]
    rows[-1] |= {
        "quorum_missed": 2,
        "tokens_seen": tokens * steps * 3 // 4,
        "model_seq_len": 8,
        "tokens_per_s": 0.75 * tokens / rows[-1]["step_time_s"],
    }
    assert findings(rows)[2].verdict == PASS
    rows[-1]["tokens_per_s"] *= 1.1
    assert findings(rows)[2].verdict == FAIL


def test_too_few_runs_break_the_fifth_and_the_seventh():
    rows = [row for row in good() if row["world_size"] < 4 or row["repeat"] < 3]
    named = tuple(row["run_id"] for row in rows if row["world_size"] == 4)
    assert findings(rows)[4].run_ids == findings(rows)[6].run_ids == named
    assert findings(rows)[5].verdict == PASS  # the other cases have enough


def test_what_does_not_apply():
    one = [run(1, 1.0, peak_flops=None)]
    verdicts = {found.rule: found.verdict for found in findings(one)}
    assert {rule for rule, verdict in verdicts.items() if verdict == SKIP} == {1, 4, 6, 7}
    nothing = [run(1, None, status="oom", reason="out of memory")]
    verdicts = [found.verdict for found in findings(nothing)]
    assert FAIL not in verdicts and verdicts.count(SKIP) == 11 and verdicts[1] == PASS


def test_no_base_on_fewer_devices():
    rows = [row | {"threads_per_rank": 8} if row["world_size"] == 1 else row for row in good()]
    found = findings(rows)[0]
    assert found.verdict == FAIL and {run_id[:2] for run_id in found.run_ids} == {"02"}  # 4 has 2 for a base


def test_a_folder_to_text_and_json(tmp_path):
    store = RunStore(tmp_path)
    for row in good()[:-1]:
        store.write_run({name: value for name, value in row.items() if name not in ("step_rows", "eval_rows")})
    report = check(tmp_path)
    content = json.loads(json.dumps(report.to_dict()))
    assert report.exit_code == 1 and not content["passed"] and content["runs"] == 17
    assert {one["rule"] for one in content["rules"] if one["verdict"] == FAIL} == {5, 7, 12}  # no steps were stored
    text = report.to_text()
    assert "FAIL  nondeterministic values have intervals: 1 of 3 cases" in text and text.endswith("0 does not apply")
    assert check(tmp_path, where="world_size == 1").findings[0].verdict == SKIP
    with pytest.raises(ValueError, match="match 'tp == 7'"):
        check(tmp_path, where="tp == 7")


QUIET = {
    "load_average": 9.0,
    "cpu_count": 4,
    "cpu_others_share": 0.05,
    "cpu_steal_share": 0.01,
    "cpu_mhz": 3000.0,
    "cgroup_throttled_share": 0.01,
    "cpu_heat_throttles": 0,
    "gpu_heat_share": 0.01,
    "gpu_mhz_min": 1980.0,
}


@pytest.mark.parametrize(
    "change, said",
    [
        ({"cpu_others_share": 0.34}, "other processes took more than 5% of the CPU time: 1 run, at worst 34%"),
        ({"cpu_steal_share": 0.02}, "the hypervisor took more than 1% of it: 1 run, at worst 2%"),
        ({"cgroup_throttled_share": 0.5}, "a CPU quota held ranks back"),
        ({"cpu_heat_throttles": 2}, "at worst 2 times"),
        ({"gpu_heat_share": 0.02}, "heat held a GPU's clock down"),
        ({"cpu_mhz": 2690.0}, "at worst 90%"),
        ({"gpu_mhz_min": 1200.0}, "gpu_mhz_min is below 90% of another run's on the same device_name"),
        ({"cpu_others_share": None}, "the load average was high: 1 run, at worst 9.0"),
    ],
)
def test_beyond_the_twelve_a_machine_that_was_not_quiet_is_named(change, said):
    rows = [row | QUIET for row in good()]
    assert beyond(rows).verdict == PASS and beyond(rows).rule not in range(1, 13)
    rows[-1] |= change
    found = beyond(rows)
    assert found.verdict == FAIL and found.run_ids == (rows[-1]["run_id"],) and said in found.why
    assert found.why.startswith("1 of 18 runs disturbed: ")
    assert len(findings(rows)) == 12 and FAIL not in {one.verdict for one in findings(rows)}


def test_a_load_that_is_the_ranks_own_and_a_clock_of_another_machine_disturb_nothing():
    rows = [row | {"load_average": 4.9, "cpu_count": 4, "threads_per_rank": 4 // row["world_size"]} for row in good()]
    assert beyond(rows).verdict == PASS
    rows = [row | {"cpu_mhz": 1000.0 * row["repeat"], "cpu_model": str(row["repeat"])} for row in good()]
    assert beyond(rows).verdict == PASS and beyond(good()).verdict == SKIP


def test_a_disturbed_run_is_a_verdict_against_the_table(tmp_path):
    store = RunStore(tmp_path)
    for row in good():
        row |= QUIET | {"cpu_steal_share": 0.3}
        store.write_run({name: value for name, value in row.items() if name not in ("step_rows", "eval_rows")})
    report = check(tmp_path)
    assert report.to_dict()["beyond"]["verdict"] == FAIL
    twelve = tuple(findings(good()))
    assert CheckReport("", 18, twelve, beyond(good())).exit_code == 0
    assert CheckReport("", 18, twelve, report.beyond).exit_code == 1
    assert "\n + FAIL  the machine was quiet: 18 of 18 runs disturbed" in report.to_text()
    assert report.to_text().splitlines()[0] == "twelve rules (Hoefler and Belli, SC'15) over 18 runs"


def stamped(number, attempt, began, wall_s, ended=None, **more):
    def iso(at):
        return datetime.fromtimestamp(at, UTC).isoformat()

    ended = began + wall_s if ended is None else ended
    return {
        "run_id": f"c{number}-r0",
        "attempt": attempt,
        "status": "ok",
        "started_at": iso(began),
        "finished_at": iso(ended),
        "wall_s": wall_s,
        "restarts": 0,
        "elapsed_s": wall_s,
        "ranks_json": '[{"rank": 0, "local_rank": 0, "host": "n1"}]',
    } | more


@pytest.mark.parametrize(
    "row, said",
    [
        (stamped(0, 2, 1000.0, 50.0, ended=1000.0 - 10_792), "finished_at - started_at is not wall_s"),
        (stamped(0, 2, 1000.0, 34e6, ended=1050.0), "finished_at - started_at is not wall_s"),
        (stamped(0, 2, 1000.0, -10_792.0), "wall_s is below 0"),
        (stamped(0, 2, 9e9, 50.0), "started_at is in the future"),
        (stamped(0, 2, 100.0, 50.0), "an attempt started before the one before it"),
        (stamped(0, 2, 530.0, 50.0), "before the one before it had ended, on one host"),
        (stamped(0, 2, 1000.0, 50.0, restarts=1, elapsed_s=None), "elapsed_s is null"),
    ],
)
def test_clocks_that_disagree_are_named(row, said):
    good = [stamped(0, 1, 500.0, 60.0), stamped(1, 1, 510.0, 60.0), stamped(2, 1, 500.0, 60.0) | {"wall_s": None}]
    elsewhere = stamped(1, 2, 530.0, 60.0, ranks_json='[{"host": "n2"}]')  # n1 was lost meanwhile
    assert agreeing([*good, elsewhere, stamped(0, 2, 559.0, 4.0)]).verdict == PASS
    found = agreeing([*good, row])
    assert found.verdict == FAIL and found.run_ids == ("c0-r0",) and said in found.why
    assert agreeing([stamped(0, 1, 0.0, 1.0) | {"started_at": None}]).verdict == SKIP


def predicted(inside: int, outside: int, repeats: int = 1) -> list[dict]:
    """Rows of cases whose interval holds what was measured, and of cases whose interval does not."""
    return [
        run(1, 1.0 + case, repeat, case_id=f"c{case:011x}")
        | {"predicted_step_time_low_s": low * (1 + case), "predicted_step_time_high_s": (low + 0.2) * (1 + case)}
        for case, low in enumerate([0.9] * inside + [1.1] * outside)
        for repeat in range(repeats)
    ]


def test_predictions_that_miss_their_stated_coverage_fail():
    assert covered(good()).verdict == SKIP
    assert covered(predicted(18, 2)).verdict == PASS
    assert covered(predicted(9, 1)).verdict == PASS
    found = covered(predicted(14, 6))
    assert found.verdict == FAIL and len(found.run_ids) == 6 and "14 of 20 cases" in found.why
    assert covered(predicted(0, 1)).verdict == PASS  # of ten such intervals one misses
    assert covered(predicted(0, 2)).verdict == FAIL


def test_runs_that_others_disturbed_say_nothing_of_the_model():
    rows = predicted(14, 6)
    busy = [row | {"cpu_others_share": 0.5} if at >= 14 else row for at, row in enumerate(rows)]
    assert covered(rows).verdict == FAIL and covered(busy).verdict == PASS
    assert covered([row | {"cpu_others_share": 0.5} for row in rows]).verdict == SKIP


def test_repeats_of_one_case_are_one_prediction():
    assert covered(predicted(9, 1, repeats=5)).verdict == PASS
    assert "9 of 10 cases" in covered(predicted(9, 1, repeats=5)).why


def test_the_tail_of_a_binomial_is_scipys():
    from scipy.stats import binom

    for hits, count in ((0, 1), (3, 10), (14, 20), (20, 20), (880, 1000)):
        assert binomial_tail(hits, count, 0.9) == pytest.approx(binom.cdf(hits, count, 0.9), rel=1e-9)


def test_a_run_without_its_number_is_a_repeat_that_is_missing():
    rows = good()
    rows[-1] |= {"repeat": None}
    assert findings(rows)[1].run_ids == (rows[-1]["run_id"],)


def test_every_file_of_a_table_is_opened_once(tmp_path, monkeypatch):
    """And no folder on the way to it anew for each: a table on a file server is read at the speed of its answers."""
    store, opened = RunStore(tmp_path), Counter()
    for row in good():
        row = {name: value for name, value in row.items() if name not in ("step_rows", "eval_rows")}
        store.write_run(row, steps={"step": [0, 1]}, evals={"step": [1]})
    system = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **more: opened.update([Path(path).name]) or system(path, *rest, **more)
    )
    assert check(tmp_path).runs == 18
    assert [opened[name] for name in ("run.json", "steps.arrow", "evals.arrow")] == [18] * 3
    assert opened["a1"] == 2 * 18  # for the row, and for the tables


def test_a_table_of_many_runs_is_checked_without_a_test_for_each_case(tmp_path):
    """Importing scipy.stats costs as much as the rest of a check of 2,000 runs."""
    store = RunStore(tmp_path)
    for row in good():
        store.write_run({name: value for name, value in row.items() if name not in ("step_rows", "eval_rows")})
    command = (
        f"import sys; from scalade.results.check.command import check; check({str(tmp_path)!r}); "
        "sys.exit('scipy.stats' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0
