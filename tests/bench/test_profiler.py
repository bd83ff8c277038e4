"""Operations of profiled steps: what is measured, that nothing else changes by it, and what is read from it."""

from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from scalade import read_evals, read_ops, read_runs, read_steps
from scalade.bench import profiler as profiler
from scalade.bench.device import Device
from scalade.bench.host_waits import Wait
from scalade.bench.profiler import profile
from scalade.cli.app import app
from scalade.launch.run import run_study
from scalade.launch.study.study import load_study
from scalade.results.op_profile import REST, WAIT, case_ops, group_of
from scalade.results.store.store import RunStore

STUDY = """
name = "s"
[model]
size = "tiny-100k"
seq_len = 32
tied = false
[recipe]
global_batch = 4
[budget]
steps = 6
[measure]
eval_sequences = 4
profile_steps = {profiled}
[run]
threads_per_rank = 1
max_ranks = 2
{layouts}
"""
LAYOUTS = "[[layout]]\ndp_replicate = 2\n[[layout]]\npp = 2\nmicrobatches = 2\n"


def study(folder, profiled, layouts=""):
    (folder / f"s{profiled}.toml").write_text(STUDY.format(profiled=profiled, layouts=layouts))
    return folder / f"s{profiled}.toml"


def written(folder, layout, runs, status="ok"):
    """runs: of each, of each rank, its rows (part, op, calls, time_s, device_time_s)."""
    for repeat, ranks in enumerate(runs):
        rows = [(rank, *row) for rank, each in enumerate(ranks) for row in each]
        names = ("rank", "part", "op", "calls", "time_s", "device_time_s")
        row = dict(
            run_id=f"{layout}-r{repeat}",
            case_id=layout,
            repeat=repeat,
            status=status,
            layout=layout,
            model="m",
            world_size=len(ranks),
            step_time_s=0.5,
            started_at=f"2026-01-0{repeat + 1}",
            reason=None if status == "ok" else "x",
        )
        RunStore(folder).write_run(row, ops=dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else None)


def test_the_profile_of_known_operations():
    a = torch.randn(64, 64)
    calls = []
    columns = profile(lambda: calls.append((a @ a).add_(a)), 5, False, False, Device("cpu"))
    assert len(calls) == 6  # one to settle
    rows = {(part, op): (n, time_s) for _, part, op, n, time_s, _ in zip(*columns.values(), strict=True)}
    assert rows["op", "aten::mm"][0] == 1 and rows["op", "aten::add_"][0] == 1 and rows["step", "step"][0] == 1
    assert 0 < rows["op", "aten::mm"][1]
    assert sum(t for (part, _), (_, t) in rows.items() if part == "op") <= rows["step", "step"][1]
    assert set(columns["rank"]) == {0} and set(columns["device_time_s"]) == {None}


@pytest.mark.parametrize(
    "op, group",
    [
        ("aten::addmm", "products"),
        ("aten::mm", "products"),
        ("aten::mul", "other ops"),
        ("aten::copy_", "copies"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::_fused_adamw_", "update"),
        ("aten::_foreach_mul_", "update"),
        ("aten::_foreach_copy_", "copies"),
        ("c10d::allreduce_", "messages"),
        ("LinearBackward", REST),
        ("autograd::engine::evaluate_function: MmBackward0", "other ops"),
    ],
)
def test_groups(op, group):
    assert group_of(op) == group


def test_mean_over_ranks_and_median_over_runs(tmp_path):
    def rank(product_s, wait_s):
        return [
            ("op", "aten::mm", 4.0, product_s, None),
            ("op", "Node", 1.0, 9.0, None),
            ("background", "gloo:all_reduce", 1.0, 7.0, None),
            ("wait", "collectives", 2.0, wait_s, None),
            ("step", "step", 1.0, 10.0, None),
        ]

    written(tmp_path, "a", [[rank(1.0, 2.0), rank(3.0, 0.0)], [rank(5.0, 1.0)] * 2, [rank(100.0, 1.0)] * 2])
    written(tmp_path, "b", [[[("op", "aten::mm", 1.0, 1.0, 4.0), ("step", "step", 1.0, 10.0, None)]]])
    written(tmp_path, "c", [[]])  # not profiled
    written(tmp_path, "d", [[rank(1.0, 1.0)]], status="diverged")
    a, b = case_ops(tmp_path)
    assert (a.layout, a.runs, a.ranks, a.step_s) == ("a", 3, 2, 10.0) and a.ops["aten::mm"] == (4.0, 5.0)
    assert (a.groups["products"], a.groups[WAIT], a.groups[REST]) == (5.0, 1.0, 4.0)
    assert (b.groups["products"], b.groups[REST]) == (4.0, 6.0)  # the device's time, where there is one


def test_what_is_printed(tmp_path):
    for layout, seconds in (("fast", 0.1), ("slow", 0.3)):
        ops = [("op", "aten::mm", 4.0, seconds, None), ("op", f"aten::only_{layout}", 1.0, 0.05, None)]
        written(tmp_path, layout, [[[*ops, ("step", "step", 1.0, 0.5, None)]]])

    def printed(*options):
        return CliRunner().invoke(app, ["ops", str(tmp_path), *options])

    assert [line.split()[:2] for line in printed().stdout.splitlines()[1:3]] == [["m", "fast"], ["m", "slow"]]
    told = printed("--filter", "layout == slow", "--against", "layout == fast").stdout
    assert ["products", "300.0", "100.0", "+200.0", "3.00"] in [line.split() for line in told.splitlines()]
    assert ["aten::mm", "4", "4", "300.0", "100.0", "+200.0", "3.00"] in [line.split() for line in told.splitlines()]
    assert "aten::only_fast" in told and "aten::only_slow" in told
    with pytest.raises(ValueError, match="--filter is to leave one profiled case, it leaves 2: m fast, m slow"):
        raise printed("--against", "layout == fast").exception
    with pytest.raises(ValueError, match="it leaves none"):
        raise printed("--filter", "layout == slow", "--against", "tp == 7").exception


def test_nothing_profiled(tmp_path):
    written(tmp_path, "a", [[]])
    assert "measure.profile_steps = 3 asks for it" in CliRunner().invoke(app, ["ops", str(tmp_path)]).stdout


def test_ids_stay_what_they_were_without_it(tmp_path):
    (without,), (with_it,) = (load_study(study(tmp_path, n)).all_cases for n in (0, 2))
    assert without.case_id != with_it.case_id
    assert without.case_id == "ba67ecec05d59f6d"  # as at 2f8805c, which knew no profile_steps


def test_a_quorum_is_not_profiled(tmp_path):
    text = "[outer]\nalgorithm = 'diloco'\nreplicas = 2\nquorum = 1"
    (case,) = load_study(study(tmp_path, 2, text)).cases()
    assert "set measure.profile_steps = 0" in case.skip_reason


def test_what_is_computed_inside_a_wait_is_no_waiting():
    """DDP's wait is timed from before its own bookkeeping to after it, and operations run in between."""

    def event(name, start, end, self_us, is_async=False):
        return SimpleNamespace(
            name=name,
            time_range=SimpleNamespace(start=start, end=end),
            self_cpu_time_total=self_us,
            is_async=is_async,
            is_user_annotation=name == profiler.CLOCK,
            device_type=torch.autograd.DeviceType.CPU,
        )

    waits = [Wait("comm", 100.0, 100.2), Wait("comm", 101.0, 101.5)]
    events = [
        event(profiler.CLOCK, 0, 1e6, 1e6),  # ended at 99 on the other clock: 98 s are between them
        event("aten::mm", 1.9e6, 2.0e6, 1e5),  # before the first
        event("aten::copy_", 2.1e6, 2.15e6, 4e4),
        event("aten::add", 2.9e6, 2.95e6, 5e4),  # between them
        event("aten::copy_", 3.2e6, 3.3e6, 1e5),
        event("gloo:all_reduce", 3.2e6, 3.3e6, 1e5, is_async=True),
    ]
    assert profiler._computed_in(waits, events, 99.0) == pytest.approx(0.14)


@pytest.mark.slow
def test_profiled_runs_compute_the_same(tmp_path):
    layouts = LAYOUTS
    plain, _ = run_study(study(tmp_path, 0, layouts), tmp_path / "plain", quiet=True)
    summary, results = run_study(study(tmp_path, 2, layouts), tmp_path / "profiled", quiet=True)
    assert [outcome.status for outcome in summary.outcomes.values()] == ["ok", "ok"]

    def losses(folder):
        runs = read_runs(folder).set_index("run_id")["layout"]
        steps, evals = read_steps(folder), read_evals(folder)
        return {
            runs[run]: (list(steps[steps["run_id"] == run]["loss"]), list(evals[evals["run_id"] == run]["val_loss"]))
            for run in runs.index
        }

    assert losses(results) == losses(tmp_path / "plain")
    ops, runs = read_ops(results), read_runs(results)
    assert list(runs["op_rows"]) == [len(ops[ops["run_id"] == run]) for run in runs["run_id"]]
    for run, layout in zip(runs["run_id"], runs["layout"], strict=True):
        for rank in (0, 1):
            mine = ops[(ops["run_id"] == run) & (ops["rank"] == rank)]
            (step_s,) = mine[mine["part"] == "step"]["time_s"]
            seen = mine[(mine["part"] == "op") & mine["op"].str.contains("::")]["time_s"].sum()
            waited = dict(mine[mine["part"] == "wait"][["op", "time_s"]].itertuples(index=False))
            assert 0 < seen + sum(waited.values()) <= step_s * 1.001, (layout, rank)
            assert set(waited) == ({"pipeline"} if layout.startswith("pp") else {"collectives"}), waited
        assert {"aten::mm"} <= set(mine["op"])
