"""`scalade compare`: pairing, verdicts and exit status, confirmation, the baseline, and what each format shows."""

from __future__ import annotations

import json
import re
from html import unescape
from xml.etree import ElementTree

import numpy as np
import pytest
from gate_rows import run, runs, stored
from hypothesis import given, settings
from hypothesis import strategies as st

from scalade.results.gate.baseline import move_baseline
from scalade.results.gate.compare import compare
from scalade.results.gate.formats import _code, to_dict, to_junit, to_markdown, to_text
from scalade.results.gate.rule import Rule
from scalade.results.table.read import printable, read_runs

A, B, C = (letter * 16 for letter in "abc")
TIMES = 0.1 * np.exp(0.02 * np.linspace(-1, 1, 8))  # 8 runs, 1.3% deviation
NOISY = 0.1 * np.exp(0.2 * np.linspace(-1, 1, 8))
MARKUP = "x|y`<script>&@all](http://a)\x1b[31m\n| --- |"


@pytest.fixture
def compared(tmp_path):
    """Compare two lists of rows, through results folders."""
    made = iter(range(100))

    def both(base, head, rule=None, **more):
        folder = tmp_path / str(next(made))
        return compare(stored(folder / "base", base), stored(folder / "head", head), rule, **more)

    return both


def verdicts(comparison):
    return {(one.case_id[0], one.metric): one.verdict for one in comparison.findings}


@pytest.mark.parametrize(
    ("factor", "verdict", "status"), [(1.0, "same", 0), (1.05, "slower", 1), (0.95, "faster", 0), (1.005, "same", 0)]
)
def test_verdicts_of_step_times(compared, factor, verdict, status):
    found = compared(runs(TIMES), runs(TIMES * factor))
    assert verdicts(found) == {("c", "step_time_s"): verdict}
    assert found.exit_code == status and found.passed == (status == 0)
    assert found.findings[0].ratio == pytest.approx(factor)


def test_noise_alone_does_not_fail_but_is_told(compared):
    found = compared(runs(NOISY), runs(NOISY * 1.05))
    assert verdicts(found) == {("c", "step_time_s"): "too noisy"} and found.exit_code == 0
    assert found.findings[0].smallest_seen > 0.2


def test_a_change_under_min_effect_is_same_however_sure(compared):
    sharp = 0.1 * np.exp(1e-4 * np.linspace(-1, 1, 8))
    found = compared(runs(sharp), runs(sharp * 1.005))
    assert found.findings[0].p_adjusted < 0.001 and found.findings[0].verdict == "same"
    assert compared(runs(sharp), runs(sharp * 1.005), Rule(min_effect=0.0)).findings[0].verdict == "slower"


def test_throughput_gets_worse_downwards_and_memory_upwards(compared):
    base = runs(TIMES, tokens_per_s=None, peak_memory_bytes=2**30)
    head = runs(TIMES, peak_memory_bytes=2**31)
    for row, more in zip(base, (1000.0, 1001.0, 1002.0, 1003.0, 1004.0, 1005.0, 1006.0, 1007.0), strict=True):
        row["tokens_per_s"] = more
    for row, more in zip(head, (900.0, 901.0, 902.0, 903.0, 904.0, 905.0, 906.0, 907.0), strict=True):
        row["tokens_per_s"] = more
    rule = Rule(metrics=("tokens_per_s", "peak_memory_bytes"))
    there = verdicts(compared(base, head, rule))
    assert there == {("c", "tokens_per_s"): "slower", ("c", "peak_memory_bytes"): "larger"}
    back = verdicts(compared(head, base, rule))
    assert back == {("c", "tokens_per_s"): "faster", ("c", "peak_memory_bytes"): "smaller"}


def test_what_is_missing_or_failed_in_head_fails(compared):
    base = runs(TIMES, A) + runs(TIMES, B)
    gone = compared(base, runs(TIMES, A))
    assert verdicts(gone) == {("b", "step_time_s"): "missing", ("a", "step_time_s"): "same"} and gone.exit_code == 1
    assert gone.findings[0].fails  # what fails comes first
    for status in ("failed", "oom", "timeout", "diverged", "skipped", "cancelled"):
        head = runs(TIMES, A) + runs(TIMES, B)
        head[-1] |= {"status": status, "reason": "so", "step_time_s": None}
        found = compared(base, head)
        assert verdicts(found)["b", "step_time_s"] == "missing" and found.exit_code == 1
        assert f"1 of 8 runs of HEAD {status}: so" in found.findings[0].reason


def test_a_number_that_head_no_longer_measures_is_missing(compared):
    base = runs(TIMES, peak_memory_bytes=2**30)
    found = compared(base, runs(TIMES))
    assert verdicts(found) == {("c", "peak_memory_bytes"): "missing", ("c", "step_time_s"): "same"}
    assert compared(runs(TIMES), base).exit_code == 0  # and one that base did not have is new
    untimed = [row | {"step_time_s": None} for row in runs(TIMES)]
    assert compared(runs(TIMES), untimed).exit_code == compared(untimed, untimed).exit_code == 1


def test_a_case_that_failed_in_base_is_no_baseline(compared):
    broken = [row | {"status": "failed", "reason": "so", "step_time_s": None} for row in runs(TIMES, B)]
    found = compared(runs(TIMES, A) + broken, runs(TIMES, A) + runs(TIMES, B))
    assert verdicts(found)["b", "step_time_s"] == "missing" and "no run of BASE is ok" in found.findings[0].reason
    partly = compared(runs(TIMES, A)[:7] + [broken[7] | {"case_id": A, "run_id": f"{A}-r7"}], runs(TIMES, A))
    assert partly.exit_code == 0 and "1 of 8 runs of BASE left out" in partly.findings[0].reason


def test_new_and_skipped_cases_pass_but_not_alone(compared):
    skipped = run(B, status="skipped", reason="heads 4 is not a multiple of tp 8", step_time_s=None)
    base, head = runs(TIMES, A) + [skipped], runs(TIMES, A) + [skipped] + runs(TIMES, C)
    found = compared(base, head)
    assert [one.verdict for one in found.findings] == ["same", "skipped", "new"] and found.exit_code == 0
    assert verdicts(compared([skipped], runs(TIMES, B)))["b", "step_time_s"] == "new"
    nothing = compared([skipped], [skipped] + runs(TIMES, C))
    assert nothing.compared == 0 and nothing.exit_code == 1


def test_few_runs_say_how_many_are_needed(compared):
    found = compared(runs(TIMES[:3]), runs(TIMES[:3] * 2))
    assert found.findings[0].verdict == "too noisy" and "4 a side could" in found.findings[0].reason
    assert found.findings[0].smallest_seen is None and found.findings[0].low is None


def test_runs_that_head_lacks_are_not_noise(compared):
    found = compared(runs(TIMES), runs(TIMES[:1]))
    assert found.findings[0].verdict == "missing" and found.exit_code == 1
    assert compared(runs(TIMES), runs(TIMES[:5])).findings[0].verdict != "missing"  # enough to tell


def test_more_cases_ask_for_more_evidence(compared):
    slower = TIMES[:5] * 1.2
    assert compared(runs(TIMES[:5]), runs(slower)).exit_code == 1
    many = [f"{k:016x}" for k in range(9)]
    base = [row for case in many for row in runs(TIMES[:5], case)]
    head = [row for case in many for row in runs(slower if case == many[0] else TIMES[:5], case)]
    found = compared(base, head)
    assert found.findings[0].p < 0.01 and found.findings[0].verdict == "too noisy" and found.exit_code == 0
    assert found.findings[0].p_adjusted == pytest.approx(9 * found.findings[0].p)


def test_interleaving_is_seen_in_the_rows(compared):
    turns = compared(runs(TIMES, minutes=range(0, 16, 2)), runs(TIMES, minutes=range(1, 17, 2)))
    blocks = compared(runs(TIMES, minutes=range(8)), runs(TIMES, minutes=range(8, 16)))
    unknown = compared(runs(TIMES), runs(TIMES))
    assert [one.findings[0].interleaved for one in (turns, blocks, unknown)] == [True, False, None]
    assert not turns.notes and "did not take turns" in blocks.notes[0]


def test_notes_name_what_differs_beside_the_revision(compared):
    sides = (runs(TIMES, cpu_model=cpu, torch_version=torch) for cpu, torch in (("old", "2.6"), ("new", "2.7")))
    found = compared(*sides)
    assert found.notes[0] == "the machines differ: cpu_model old in BASE, new in HEAD"
    assert found.notes[1] == "torch_version 2.6 in BASE, 2.7 in HEAD"


def test_the_users_mistakes(compared, tmp_path):
    with pytest.raises(ValueError, match="did you mean step_time_s"):
        Rule(metrics=("step_time",))
    with pytest.raises(ValueError, match="alpha = 5"):
        Rule(alpha=5)
    with pytest.raises(ValueError, match="margin = nan"):
        Rule(margin=float("nan"))
    with pytest.raises(ValueError, match="no results at"):
        compare(tmp_path / "nothing", tmp_path / "nothing")
    with pytest.raises(ValueError, match="no runs in BASE"):
        compared([], runs(TIMES))
    with pytest.raises(ValueError, match="no runs in BASE .* where tp >= 8"):
        compared(runs(TIMES), runs(TIMES), where="tp >= 8")
    (tmp_path / "no.json").write_text("[]")
    with pytest.raises(ValueError, match="holds neither runs nor a comparison"):
        compared(runs(TIMES), runs(TIMES), confirm=tmp_path / "no.json")


def test_an_improvement_is_confirmed_by_other_runs_only_and_then_moves_the_baseline(tmp_path):
    base = stored(tmp_path / "base", runs(TIMES, A) + runs(TIMES, B) + runs(TIMES, C))
    heads = [
        stored(tmp_path / name, runs(TIMES * 0.9, A, minutes) + runs(lucky, B, minutes) + runs(TIMES, C, minutes))
        for name, minutes, lucky in (("one", range(8), TIMES * 0.9), ("two", range(60, 68), TIMES))
    ]
    first = compare(base, heads[0])
    assert {one.confirmed for one in first.findings if one.verdict == "faster"} == {False}
    assert move_baseline(first) == []
    report = tmp_path / "first.json"
    report.write_text(json.dumps(to_dict(first)))
    with pytest.raises(ValueError, match="the same runs of HEAD"):
        compare(base, heads[0], confirm=report)
    with pytest.raises(ValueError, match="the same runs of HEAD"):
        compare(base, heads[0], confirm=heads[0])
    by_runs = compare(base, heads[1], confirm=heads[0])
    second = compare(base, heads[1], confirm=report)
    assert by_runs == second
    assert [(one.case_id, one.confirmed) for one in second.findings if one.verdict == "faster"] == [(A, True)]
    assert move_baseline(second) == [A]
    moved = read_runs(base).set_index("run_id")["step_time_s"]
    assert moved.filter(like=A).max() < 0.095 < moved.filter(like=B).min()
    assert sorted(path.name for path in (base / "runs").iterdir()) == sorted(moved.index)


def test_a_baseline_with_more_runs_than_head_keeps_none_of_them(tmp_path):
    base = stored(tmp_path / "base", runs(TIMES, A))
    first = compare(base, stored(tmp_path / "one", runs(TIMES[:6] * 0.9, A, range(6))))
    report = tmp_path / "first.json"
    report.write_text(json.dumps(to_dict(first)))
    head = stored(tmp_path / "two", runs(TIMES[:6] * 0.9, A, range(10, 16)) + runs(TIMES, B, range(10, 18)))
    assert move_baseline(compare(base, head, confirm=report)) == [A, B]  # B is new
    assert len(read_runs(base, where=f"case_id == {A}")) == 6 and len(read_runs(base)) == 14


@pytest.fixture
def hostile(compared):
    base = runs(TIMES, A, model=MARKUP) + runs(TIMES, B, model=MARKUP)
    head = runs(TIMES * 1.2, A, model=MARKUP) + [run(B, status="failed", reason=MARKUP, step_time_s=None, model=MARKUP)]
    return compared(base, head)


def rendered(text):
    """As HTML, by the parser that rich brings."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table").render(text)


def test_markdown_shows_hostile_names_as_text(hostile):
    text = to_markdown(hostile)
    html = rendered(text)
    rows = re.findall(r"<tr>\n<td>.*?</tr>", html, re.S)
    assert [row.count("<td>") for row in rows] == [11, 11]
    name = r"<code>night x¦y`&lt;script&gt;&amp;@all](http://a)\x1b[31m\n¦ --- ¦ fsdp2</code>"
    assert rows[0].startswith(f"<tr>\n<td>{name}</td>")
    assert "<script" not in html and "<a " not in html and "@all" not in re.sub(r"<code>.*?</code>", "", html)
    assert "\x1b" not in text and "❌ gate failed: 1 slower, 1 missing" in text


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30) | st.text(alphabet="`|\\ a\n", max_size=12))
def test_any_text_is_one_cell_of_code(text):
    html = rendered(f"| a | b |\n| --- | --- |\n| {_code(text)} | {_code('end')} |\n")
    shown = printable(text).replace("|", "¦").strip() or "-"
    cells = re.findall(r"<td>(.*?)</td>", html, re.S)
    assert [unescape(cell) for cell in cells] == [f"<code>{shown}</code>", "<code>end</code>"]


def test_junit_is_xml_that_a_ci_counts(hostile):
    suite = ElementTree.fromstring(to_junit(hostile).encode()).find("testsuite")
    cases = suite.findall("testcase")
    failures = [case.find("failure").get("type") for case in cases if case.find("failure") is not None]
    assert failures == ["slower", "missing"] and suite.get("failures") == "2"
    assert suite.get("tests") == str(len(cases)) == "3"
    assert "x|y`<script>" in cases[0].get("name") and "\\x1b" in cases[0].get("name")


def test_junit_of_nothing_compared_fails(compared):
    found = compared([run(A, status="skipped", reason="so", step_time_s=None)], runs(TIMES, B))
    suite = ElementTree.fromstring(to_junit(found).encode()).find("testsuite")
    assert suite.get("failures") == "2"
    assert [case.find("failure") is not None for case in suite.findall("testcase")] == [True, False, True]


def test_json_is_strict_and_whole(hostile):
    content = json.loads(json.dumps(to_dict(hostile), allow_nan=False))
    assert content["passed"] is False and content["verdicts"] == {"slower": 1, "missing": 1}
    assert [one["fails"] for one in content["findings"]] == [True, True]
    assert content["findings"][1]["ratio"] is None and len(content["evidence"]) == 8


def test_noise_fails_where_it_is_asked_to(compared, tmp_path):
    rng = np.random.default_rng(3)
    loud = [np.exp(rng.normal(0, 0.3, 6)) * 0.1 for _ in range(2)]
    quiet = compared(runs(loud[0], A) + runs(TIMES, B), runs(loud[1], A) + runs(TIMES, B))
    assert quiet.exit_code == 0 and [one.verdict for one in quiet.findings] == ["too noisy", "same"]
    found = compared(runs(loud[0], A) + runs(TIMES, B), runs(loud[1], A) + runs(TIMES, B), Rule(fail_on_noise=True))
    assert found.exit_code == 1 and [one.fails for one in found.findings] == [True, False]
    assert to_text(found)[-1] == "gate failed: 1 too noisy, 1 same (--fail-on-noise)"
    suite = ElementTree.fromstring(to_junit(found).encode()).find("testsuite")
    assert (suite.get("failures"), suite.get("skipped")) == ("1", "0")
    assert suite.find("testcase/failure").get("type") == "too noisy"
    shown, _, folded = to_markdown(found).partition("<details>")
    assert "❌" in shown and "too noisy" in shown and A in shown and B in folded
    few = compared(runs(TIMES[:2], A), runs(TIMES[:2], A), Rule(fail_on_noise=True))  # two runs exclude nothing
    assert few.exit_code == 1


GOLDEN = """\
case                                metric       verdict  base       head       head/base  interval        p        could see  runs
night tiny fsdp2  aaaaaaaaaaaaaaaa  step_time_s  slower   100.00 ms  120.00 ms  1.200      1.180 to 1.221  0.00031  3.2%       8+8
night tiny fsdp2  bbbbbbbbbbbbbbbb  step_time_s  same     100.00 ms  100.00 ms  1.000      0.983 to 1.017  1        3.2%       8+8

gate failed: 1 slower, 1 same
"""  # noqa: E501


def test_the_text_a_person_sees(compared):
    found = compared(runs(TIMES, A) + runs(TIMES, B), runs(TIMES * 1.2, A) + runs(TIMES, B))
    assert "\n".join(to_text(found)) + "\n" == GOLDEN
