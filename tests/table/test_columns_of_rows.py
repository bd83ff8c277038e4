"""Grouping, telling apart and summarising by whole columns gives what going row by row gives."""

from fractions import Fraction
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from efficiency_table import repeats, run
from hypothesis import given, settings
from hypothesis import strategies as st

from scalade.results.efficiency import efficiency
from scalade.results.efficiency.grouping import ALIKE, groups
from scalade.results.efficiency.workload import MODEL
from scalade.results.schema.rows import rows_of
from scalade.results.schema.schema import arrow_schema
from scalade.results.stats.rank_intervals import pseudo_median, resampled_pseudo_medians
from scalade.results.store.store import RunStore
from scalade.results.table import read, step_columns
from scalade.results.table.column_codes import NULL, Coded, coded, first_of, joint, parts
from scalade.results.table.distinguishing import differing, differing_in_parts, implied_by
from scalade.results.table.step_columns import read_step_columns
from scalade.results.table.work import levels, rate_of, work_of

CELLS = {
    "model": st.sampled_from(["a", "b", "", None]),
    "layout": st.sampled_from(["dp2", "tp2", None]),
    "world_size": st.sampled_from([1, 2, 2**53 + 1, None]),
    "lr": st.sampled_from([0.0, -0.0, 1e-3, None]),
    "compile": st.sampled_from([True, False, None]),
    "engine": st.just("torch"),
    "hpz": st.none(),
}
ROWS = st.lists(st.fixed_dictionaries(CELLS), max_size=12)


def in_two_chunks(rows):
    at = len(rows) // 2
    return pa.concat_tables([pa.Table.from_pylist(some, arrow_schema("runs")) for some in (rows[:at], rows[at:])])


def as_given(rows):
    """The same rows in each of the ways in which they come."""
    table = in_two_chunks(rows)
    return rows, table, rows_of(table), rows_of(table)[::-1][::-1], [dict(row) for row in rows_of(table)]


def values(row, names):
    return tuple(row.get(name) for name in names)


@settings(deadline=None, max_examples=50)
@given(ROWS)
def test_codes_are_equal_where_values_are(rows):
    for some in as_given(rows):
        found = Coded(some)
        for name in CELLS:
            codes = found.of(name).tolist()
            for i, one in enumerate(rows):
                assert (codes[i] == NULL) == (one[name] is None)
                assert [codes[i] == code for code in codes] == [one[name] == other[name] for other in rows]
        assert found.of("no such column").tolist() == [NULL] * len(rows)


@settings(deadline=None, max_examples=50)
@given(ROWS, st.lists(st.sampled_from(sorted(CELLS)), max_size=5))
def test_joint_codes_are_of_tuples_in_the_order_of_their_first(rows, names):
    seen = {}
    wanted = [seen.setdefault(values(row, names), len(seen)) for row in rows]
    for some in as_given(rows):
        key = Coded(some).joint(names)
        assert key.tolist() == wanted
        assert [part.tolist() for part in parts(key)] == [
            [i for i, one in enumerate(wanted) if one == part] for part in range(len(seen))
        ]
        assert first_of(key).tolist() == [wanted.index(part) for part in range(len(seen))]


def test_joint_codes_of_more_columns_than_an_integer_holds():
    rng = np.random.default_rng(0)
    columns = [rng.integers(0, 50_000, 300) for _ in range(9)]
    for one in columns:
        one[150:] = one[:150]
    assert joint(columns, 300).tolist() == [*range(150), *range(150)]
    assert coded(["b", None, "a", "b"]).tolist() == [0, NULL, 1, 0]


@settings(deadline=None, max_examples=50)
@given(ROWS, st.sampled_from([None, ("lr",), ()]))
def test_what_differs_is_what_holds_two_values(rows, nulls):
    wanted = []
    for name in CELLS:
        found = {row[name] for row in rows}
        found -= set() if nulls is None or name in nulls else {None}
        wanted += [name] if len(found) > 1 else []
    for some in as_given(rows):
        assert differing(some, CELLS, nulls) == wanted


@settings(deadline=None, max_examples=50)
@given(ROWS, st.integers(1, 3))
def test_what_differs_within_a_part(rows, most):
    part_of = [row["model"] for row in rows]
    wanted = []
    for row in rows:
        twins = [other for other in rows if other["model"] == row["model"]]
        wanted.append(tuple([name for name in CELLS if len({other[name] for other in twins}) > 1][:most]))
    for some in as_given(rows):
        assert differing_in_parts(some, part_of, tuple(CELLS), most) == wanted


@settings(deadline=None, max_examples=50)
@given(ROWS)
def test_what_other_columns_say(rows):
    by, names = ("model", "layout"), ["world_size", "lr", "engine", "hpz"]
    told = {}
    for row in rows:
        for name in names:
            told.setdefault((name, values(row, by)), set()).add(row[name])
    wanted = [
        name
        for name in names
        if all(len(some) == 1 and None not in key for (one, key), some in told.items() if one == name)
    ]
    for some in as_given(rows):
        assert implied_by(some, names, by) == wanted


A_RUN = st.fixed_dictionaries(
    {
        "devices": st.sampled_from([1, 2, 4]),
        "step_time_s": st.sampled_from([0.1, 0.2, None]),
        "status": st.sampled_from(["ok", "ok", "failed"]),
        "lr": st.sampled_from([1e-3, 2e-3]),
        "device_type": st.sampled_from(["cpu", "cuda"]),
        "omp_wait_policy": st.sampled_from([None, "active"]),
        "model_width": st.sampled_from([32, 64]),
        "tokens": st.sampled_from([None, 8192, 100_000, 103_000, 200_000]),
    }
)


def made(i, one):
    one = dict(one)
    tokens, devices, seconds = one.pop("tokens"), one.pop("devices"), one.pop("step_time_s")
    row = run(devices, seconds, i, case_id=f"c{i:02d}", reason=None, **one)
    if tokens != 8192:  # steps that differ in tokens, or nothing known of them
        row |= {"tokens_per_step": None, "tokens_seen": tokens, "steps": 10, "step_rows": 10}
        row |= {"tokens_per_s": tokens and seconds and tokens / 10 / seconds}
    return row


def row_by_row(rows):
    """What `groups` does, in the plainest way: members as indices, with their levels."""

    def timed(row):
        return row["status"] == "ok" and row["step_time_s"] and row["world_size"] and rate_of(row) and work_of(row)

    def levelled(told, names, repeats=False):
        result = {}
        for at, row, work in told:
            pool = [other for _, like, other in told if values(like, names) == values(row, names)]
            result[at] = levels(pool, repeats)[work]
        return result

    level = levelled([(i, row, work_of(row)) for i, row in enumerate(rows) if timed(row)], ALIKE, True)
    kept, lost = {}, {}
    for i, row in enumerate(rows):
        if timed(row):
            waits = row["omp_wait_policy"] if row["device_type"] == "cpu" else None
            kept.setdefault((values(row, ALIKE), level[i], waits), []).append(i)
        else:
            lost.setdefault(values(row, ALIKE), []).append(i)
    work = {key: [work_of(rows[i]) for i in some] for key, some in kept.items()}
    mean = {
        key: type(some[0])(sum((one.tokens for one in some), Fraction(0)) / len(some), any(one.varies for one in some))
        for key, some in work.items()
    }
    whole = levelled([(key, rows[some[0]], mean[key]) for key, some in kept.items()], MODEL)
    share = levelled(
        [(key, rows[some[0]], mean[key].over(rows[some[0]]["world_size"])) for key, some in kept.items()], MODEL
    )
    found = [(some, lost.get(key[0], []), mean[key], (whole[key], share[key])) for key, some in kept.items()]
    found.sort(
        key=lambda one: (rows[one[0][0]]["world_size"], "torch", rows[one[0][0]]["layout"], rows[one[0][0]]["case_id"])
    )
    return found, [i for some in lost.values() for i in some]


@given(st.lists(A_RUN, max_size=14))
@settings(deadline=None, max_examples=60)
def test_groups_are_those_of_going_row_by_row(some):
    rows = [made(i, one) for i, one in enumerate(some)]
    wanted = row_by_row(rows)
    for given_rows in (rows, rows_of(in_two_chunks(rows))):
        number = {row["case_id"]: i for i, row in enumerate(rows)}
        found, lost = groups(given_rows)
        told = [
            (
                [number[row["case_id"]] for row in one.rows],
                [number[row["case_id"]] for row in one.not_ok],
                one.work,
                one.levels,
            )
            for one in found
        ]
        assert (told, [number[row["case_id"]] for row in lost]) == wanted


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9), st.integers(0, 2**32 - 1))
def test_medians_of_resamples_are_exact(halves, seed):
    logs = np.array(halves) * 0.1
    picks = np.random.default_rng(seed).integers(0, len(logs), (40, len(logs)))
    with mock.patch("scalade.results.stats.rank_intervals.AT_ONCE", 100):  # in several parts
        assert (resampled_pseudo_medians(logs, picks) == pseudo_median(logs[picks])).all()


# steps


@pytest.fixture
def folder(tmp_path):
    store = RunStore(tmp_path)
    for devices in (1, 2):
        for row in repeats(devices, 0.4 / devices, 2):
            row = {name: value for name, value in row.items() if name not in ("step_rows", "eval_rows")}
            loss = [4.0, None, float("nan"), 3.0 + row["repeat"]]
            steps = {"step": range(4), "warmup": [True, False, None, False], "loss": loss, "outer_exposed_s": [0.1] * 4}
            store.write_run({k: v for k, v in row.items() if v is not None}, steps if row["repeat"] else None)
    return tmp_path


def test_steps_are_slices_of_whole_columns(folder):
    runs = ["02dp2-r1", "01single-r1", "01single-r0", "none"]
    found = read_step_columns(folder, runs, ("warmup", "loss"))
    assert list(found) == ["01single-r1", "02dp2-r1"] and "none" not in found and len(found) == 2
    one = found["02dp2-r1"]
    np.testing.assert_array_equal(one["loss"], [4.0, np.nan, np.nan, 4.0])
    np.testing.assert_array_equal(one["warmup"], [1, 0, np.nan, 0])
    assert np.shares_memory(one["loss"], found.columns["loss"]) and set(one) == {"warmup", "loss"}
    assert len(read_step_columns(folder, [], ("loss",))) == 0 == len(read_step_columns(folder, ["none"], ("loss",)))


def test_each_form_reads_no_more_of_the_steps_than_it_needs(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        step_columns,
        "rows_table",
        lambda *some, **more: asked.append(more["columns"]) or read.rows_table(*some, **more),
    )
    efficiency(folder, mode="strong", draws=0).to_text()
    assert asked == []  # of rows that say it themselves, or that have no outer loop, no step is read
    efficiency(folder, mode="strong", target_loss=3.9, loss_window=1, draws=0).to_text()
    assert asked == [["run_id", "step", "loss"]]


def test_a_page_of_thousands_of_series_names_some_and_counts_the_rest(tmp_path):
    rows = [run(n, 0.4 / n, lr=1e-3 * (i + 1), case_id=f"l{i:04d}d{n}") for i in range(90) for n in (1, 2)]
    rows += [run(n, 0.4 / n, lr=1.0, case_id=f"l{n}") for n in (1, 2, 4)]
    rows = [row | {"loss": None} for row in rows]
    with mock.patch("scalade.results.efficiency.reading.runs_table", lambda *some, **more: in_two_chunks(rows)):
        found = efficiency(tmp_path, mode="strong", draws=0)
    text = found.to_text().splitlines()
    assert len(found.series) == 91 == len(found.to_dict()["series"])
    assert sum(line.startswith("torch, ") for line in text) == 20
    assert "20 of 91 series are shown, those of most layouts: --json has all, --filter keeps a part" in text
    assert any("dp4" in line for line in text)  # the series of most points is among them
    assert "  and 31 more: --json has all, --filter keeps a part" in text  # of 91 workloads
