"""`scalade calibrate`: simulated measurements are found again, files are whole, a mistake costs a line."""

import json
import tomllib
from dataclasses import replace

import numpy as np
import pytest

from scalade.bench.shape import ModelShape
from scalade.launch.calibrate import command, from_results
from scalade.launch.calibrate.grid import CPU, CUDA, layouts_for, references
from scalade.launch.calibrate.numbers import Facts, fit_machine, fit_products, reference_mfu, reference_rows
from scalade.launch.calibrate.profile_file import table_of, to_toml, write_profile
from scalade.launch.predict.cases import calibration_of
from scalade.parallelism.predict import STACKS, load_machine, predict_step
from scalade.parallelism.predict.configs import from_cases
from scalade.parallelism.predict.host import BACKWARD, FORWARD, calls
from scalade.parallelism.predict.interval import Spread
from scalade.parallelism.predict.layer import ATTENTION_BACKWARD, Compute
from scalade.parallelism.predict.machine import FOLDER, Link, Machine, Products
from scalade.parallelism.predict.matmul import product_time
from scalade.parallelism.predict.step import OPTIMIZER_BYTES
from scalade.parallelism.predict.tuning import Tuning
from scalade.results.store.store import RunStore

TRUE = Machine(
    name="true", description="", device="cpu", peaks={"fp32": 80e9, "bf16": 90e9}, memory_bytes=8e9,
    memory_bandwidth=12e9, products=Products(0.95, half_m=20.0, half_n=6.0, half_k=30.0, floor_s=1e-7, contention=1.2),
    attention_forward=0.3, attention_backward=0.25, elementwise=0.6, launch_s=1.5e-6, elementwise_contention=1.5,
    optimizer=0.7, links=(Link("node", float("inf"), 1.5e9, 8e-5),), node_ranks=2, reserved_bytes=2.5e8,
)  # fmt: skip


def product(machine, precision, m, n, k):
    element = {"fp32": 4, "bf16": 2}[precision]
    return float(product_time(machine, machine.peaks[precision], m, n, k, element))


def case(shape, batch=8, precision="fp32", **layout):
    from scalade.bench.recipe import Recipe
    from scalade.parallelism.diloco.config import Outer
    from scalade.parallelism.layout import Layout

    return ModelShape(**shape), Recipe(batch, 1, precision=precision), Layout(**layout), Outer()


def steps(machine, ranks):
    """The reference model's steps as that machine takes them."""
    rows = []
    for reference in references(False):
        for layout in layouts_for(ranks):
            one = (*case(reference.shape, reference.global_batch)[:2], layout, case(reference.shape)[3])
            configs = from_cases([one])
            counted, shape = calls(configs), one[0]
            dispatch = float(np.sum(shape.layers * counted.update + counted.step)) * machine.launch_s
            moved = shape.params_total * OPTIMIZER_BYTES / machine.memory_bandwidth / machine.optimizer
            settings = {key: value for key, value in vars(layout).items() if value != getattr(type(layout)(), key)}
            time_s = float(predict_step(configs, machine, STACKS["torch"]).step_time_s[0])
            rows.append(
                {"shape": reference.shape, "global_batch": reference.global_batch, "layout": settings,
                 "step_time_s": time_s, "update_s": moved + dispatch}
            )  # fmt: skip
    return rows


def simulated(machine=TRUE):
    """What ranks on that machine would have measured, without noise."""
    blocks = {}
    for precision in CPU.precisions:
        blocks[precision] = []
        for shape, batch in CPU.blocks:
            if batch == 1:
                blocks[precision].append([FORWARD * machine.launch_s, BACKWARD * machine.launch_s])
                continue
            found = Compute(from_cases([case(shape, batch, precision)]), machine, STACKS["torch"], Tuning()).block()
            blocks[precision].append([float(found.forward[0]), float(found.backward[0])])
    attention = {
        precision: [
            (*shape, flops / machine.peaks[precision] / machine.attention_forward,
             flops * ATTENTION_BACKWARD / machine.peaks[precision] / machine.attention_backward)
            for shape in CPU.attention
            if (flops := 2.0 * shape[0] * shape[1] * shape[2] ** 2 * shape[3])
        ]
        for precision in CPU.precisions
    }  # fmt: skip
    grid = {name: [(*s, product(machine, name, *s)) for s in CPU.products] for name in CPU.precisions}
    alone = {
        "products": grid, "attention": attention, "blocks": blocks, "bandwidth": machine.memory_bandwidth,
        "launch_s": None, "resident_bytes": machine.reserved_bytes, "steps": steps(machine, 1),
        "datasheet": machine.peaks,
    }  # fmt: skip
    together = {
        "products": {"fp32": [(*row[:3], 1.2 * row[3]) for row in grid["fp32"][-4:]]},
        "bandwidth": machine.memory_bandwidth / 1.5,
        "steps": steps(machine, 2),
    }
    return Facts("cpu", 2, alone, [together, together], [(8e-5, 1.5e9)] * 3, 8e9)


def test_what_was_put_in_is_found_again():
    found, errors = fit_machine(simulated())
    assert errors["products"] < 1e-3
    for name in ("efficiency", "half_m", "half_n", "half_k", "contention"):
        assert getattr(found.products, name) == pytest.approx(getattr(TRUE.products, name), rel=0.03), name
    for name in ("attention_forward", "attention_backward", "launch_s", "elementwise_contention", "optimizer"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=0.01), name
    assert found.elementwise == pytest.approx(TRUE.elementwise, rel=0.05)
    assert (found.links[0].latency_s, found.links[0].bandwidth) == (8e-5, 1.5e9)


def test_the_machine_found_predicts_as_the_true_one():
    """Models and layouts that calibration has not seen."""
    found, _ = fit_machine(simulated())
    shape = {"layers": 6, "heads": 4, "kv_heads": 2, "width": 144, "ffn": 400, "seq_len": 192, "vocab": 512}
    rows = [case(shape), case(shape, dp_replicate=2), case(shape, tp=2), case(shape, pp=2, microbatches=4)]
    rows += [case(shape, precision="bf16"), case(shape, dp_shard=2), case(shape, recompute="full")]
    times = [predict_step(from_cases(rows), each, STACKS["torch"]).step_time_s for each in (found, TRUE)]
    assert times[0] == pytest.approx(times[1], rel=0.03)


def test_a_slow_product_does_not_bend_the_curve():
    measured = {"fp32": [list(row) for row in simulated().alone["products"]["fp32"]]}
    measured["fp32"][5][3] *= 4
    found, _ = fit_products(TRUE, measured, ("efficiency", "half_m", "half_n", "half_k"))
    assert found.efficiency == pytest.approx(0.95, rel=0.1)
    assert found.half_m == pytest.approx(20, rel=0.3)


def test_a_profile_that_is_written_reads_back(tmp_path):
    facts = simulated()
    found, errors = fit_machine(facts)
    table = table_of(found, 'measured by scalade calibrate 2026-01-01 on "here"', reference_mfu(facts, found), errors)
    configs, times = reference_rows(facts)
    table["calibration"] = {"torch": command.fitted(configs, times, found).to_table()}
    write_profile(tmp_path / "machines" / "this.toml", table)
    read = load_machine(tmp_path / "machines" / "this.toml")
    same = ("peaks", "memory_bandwidth", "products", "attention_forward", "elementwise", "launch_s", "optimizer",
            "elementwise_contention", "links", "node_ranks", "reserved_bytes")  # fmt: skip
    assert {name: getattr(read, name) for name in same} == {name: getattr(found, name) for name in same}
    assert read.sources["peaks.fp32"] == 'measured by scalade calibrate 2026-01-01 on "here"'
    assert 0 < read.reference_mfu < 1 and read.calibration["torch"]["tuning"]
    assert [each.name for each in (tmp_path / "machines").iterdir()] == ["this.toml"]


@pytest.mark.parametrize(
    "table",
    [
        {"a": {"value": 1e-7, "source": "x\ny \u00fc"}, "b": {"c": {"d": [1.5, True, "q"]}, "e e": 2}},
        {
            "links": [{"n": 1}, {"n": 2, "t": {"value": 3, "source": "s"}}],
            "empty": [],
            "nested": {"workload:1x2:0": 0.5},
        },
    ],
)
def test_toml_is_what_a_reader_reads(table):
    assert tomllib.loads(to_toml(table)) == table


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"minutes": 0.01}, "--minutes 0.01: must be at least 0.2"),
        ({"ranks": 999}, r"--ranks 999: this machine has \d+ core"),
        ({"ranks": -1}, "--ranks -1: this machine has"),
    ],
)
def test_mistakes_cost_one_line(tmp_path, arguments, said):
    asked = {"minutes": 1.0, "ranks": None, "out": tmp_path / "p.toml", "say": print} | arguments
    with pytest.raises(ValueError, match=said):
        command.measure_here(**asked)
    assert not (tmp_path / "p.toml").exists()


def test_a_rank_that_fails_leaves_the_old_profile(tmp_path, monkeypatch):
    old = tmp_path / "this.toml"
    old.write_text("old")

    def failing(*args):
        raise ValueError("calibrate: 1 rank did not finish: rank 0: no memory")

    monkeypatch.setattr(command, "run_ranks", failing)
    with pytest.raises(ValueError, match="did not finish: rank 0"):
        command.measure_here(1.0, None, old, print)
    assert old.read_text() == "old" and [each.name for each in tmp_path.iterdir()] == ["this.toml"]


def written_rows(folder, machine, factor, device="cpu"):
    """Runs of two models in some layouts, `factor` times as slow as the machine's model."""
    from scalade.bench.data.spec import DataSpec
    from scalade.bench.measure import Measure
    from scalade.launch.study.case import Case

    store = RunStore(folder)
    for width in (64, 96, 128):
        shape = {"layers": 4, "heads": 4, "kv_heads": 4, "width": width, "ffn": 256, "seq_len": 64, "vocab": 256}
        for layout in ({}, {"dp_replicate": 2}, {"tp": 2}, {"dp_shard": 2}):
            s, recipe, lay, outer = case(shape, **layout)
            time_s = factor * float(
                predict_step(from_cases([(s, recipe, lay, outer)]), machine, STACKS["torch"]).step_time_s[0]
            )
            whole = Case(s, DataSpec(), recipe, lay, outer, Measure())
            row = {"run_id": f"{whole.case_id}-r0", "repeat": 0, "status": "ok", "step_time_s": time_s}
            store.write_run(whole.columns() | row | {"device_type": device}, {"step": [0], "loss": [4.0]})


def test_rows_improve_a_profile_and_say_what_for(tmp_path):
    base = tmp_path / "base.toml"
    write_profile(base, table_of(TRUE, "true", 0.3, {}))
    written_rows(tmp_path / "results", TRUE, 1.3)
    done = from_results.improve(tmp_path / "results", str(base), tmp_path / "better.toml")
    assert done.engines["torch"]["rows"] == 12 and "12 rows" in done.engines["torch"]["how"]
    better = load_machine(tmp_path / "better.toml")
    shape = {"layers": 6, "heads": 4, "kv_heads": 4, "width": 112, "ffn": 304, "seq_len": 64, "vocab": 256}
    rows = from_cases([case(shape), case(shape, dp_replicate=2)])
    true = 1.3 * predict_step(rows, TRUE, STACKS["torch"]).step_time_s
    before = calibration_of(load_machine(base), "torch").predict(rows)
    after = calibration_of(better, "torch").predict(rows)
    assert np.all(np.abs(after.step_time_s / true - 1) < 0.05)
    assert np.all(np.abs(before.step_time_s / true - 1) > 0.2)
    assert np.all((after.low_s < true) & (true < after.high_s))
    assert np.all(after.high_s / after.low_s < before.high_s / before.low_s)
    json.dumps(done.to_dict())
    assert load_machine(base).calibration == {}  # what was improved stays as it was


def test_rows_of_another_kind_of_device_are_left_aside(tmp_path):
    written_rows(tmp_path / "results", replace(TRUE), 1.0)
    said = "nothing to calibrate on: 12 rows: measured on cpu, the profile is of cuda"
    with pytest.raises(ValueError, match=said):
        from_results.improve(tmp_path / "results", "h100", tmp_path / "out.toml")
    assert not (tmp_path / "out.toml").exists() and (FOLDER / "h100.toml").is_file()


def cuda_facts():
    """What a GPU like the H100's profile would have measured: tiles and waves instead of half sizes."""
    true, grid = load_machine("h100"), CUDA
    products = {p: [(*s, product(true, p, *s)) for s in grid.products] for p in grid.precisions}
    attention = {
        p: [
            (*s, flops / true.peaks[p] / true.attention_forward,
             flops * ATTENTION_BACKWARD / true.peaks[p] / true.attention_backward)
            for s in grid.attention
            if (flops := 2.0 * s[0] * s[1] * s[2] ** 2 * s[3])
        ]
        for p in grid.precisions
    }  # fmt: skip
    blocks = {
        p: [
            [float(found.forward[0]), float(found.backward[0])]
            for shape, batch in grid.blocks
            if (found := Compute(from_cases([case(shape, batch, p)]), true, STACKS["torch"], Tuning()).block())
        ]
        for p in grid.precisions
    }
    reference = references(True)[0]
    alone = {
        "products": products, "attention": attention, "blocks": blocks, "bandwidth": true.memory_bandwidth,
        "launch_s": 9e-6, "resident_bytes": 3e9, "units": 132, "memory_bytes": 85e9,
        "datasheet": {name: true.peaks[name] for name in grid.precisions},
        "steps": [{"shape": reference.shape, "global_batch": reference.global_batch, "layout": {},
                   "step_time_s": 0.5, "update_s": None}],
    }  # fmt: skip
    return true, Facts("cuda", 8, alone, [], [(3e-5, 3.6e11)], 85e9)


def test_a_gpu_has_tiles_and_waves():
    true, facts = cuda_facts()
    found, errors = fit_machine(facts)
    assert errors["products"] < 0.02 and found.products.units == 132
    assert found.products.efficiency == pytest.approx(true.products.efficiency, rel=0.03)
    assert found.attention_backward == pytest.approx(true.attention_backward, rel=1e-6)
    assert found.elementwise == pytest.approx(true.elementwise, rel=0.1)
    assert found.launch_s == 9e-6 and found.reserved_bytes == 0 and found.products.contention == 1.0


@pytest.mark.parametrize("had_core, fitted", [(0.97, True), (0.4, False)])
def test_a_busy_machine_is_said_and_nothing_is_fitted_to_ranks_that_wait(tmp_path, monkeypatch, had_core, fitted):
    facts = simulated()
    alone, together = dict(facts.alone, had_core=0.99), [dict(each, had_core=had_core) for each in facts.together]
    monkeypatch.setattr(command, "_measure", lambda *args: replace(facts, alone=alone, together=together))
    lines = []
    done = command.measure_here(1.0, 1, tmp_path / "p.toml", lines.append)
    calibration = calibration_of(load_machine(tmp_path / "p.toml"), "torch")
    assert ("from 14 rows" in done.how) == fitted and done.how.startswith("one rank alone, on a busy machine") != fitted
    assert (calibration.spread == Spread()) != fitted
    assert bool(lines) != fitted and load_machine(done.path).node_ranks == 2
    if not fitted:
        assert lines[0].startswith("warning: other programs had the cores for 60% of the time")
    assert any(str(tmp_path / "p.toml") in line for line in done.to_text())
