"""The report's figures: what is drawn is what was measured; the same table gives the same picture."""

import re

import numpy as np
import pytest
import report_table as simulated

from scalade.results.efficiency.series import MODES
from scalade.results.gate.compare import compare
from scalade.results.report import (
    frontier,
    gate,
    layouts,
    losses,
    outer,
    outer_law,
    page,
    parts,
    predicted,
    published,
    scaling,
    tables,
)
from scalade.results.report.drawing import (
    DENSE,
    Drawn,
    Undrawn,
    chunks,
    dense,
    encoded,
    look,
    new_figure,
    powers,
    short,
    style,
    with_intervals,
)
from scalade.results.report.page import rendered
from scalade.results.report.source import read_source
from scalade.results.report.tables import kept
from scalade.results.stats.rank_intervals import median
from scalade.results.store.store import RunStore


def read(tmp_path, rows):
    return read_source(simulated.stored(tmp_path / "t", rows), None, MODES, None, (), "mfu_palm", 0.95)


def test_scaling_draws_the_measured_points_and_the_ideal(tmp_path):
    rows = [row for n in (1, 2, 4) for row in simulated.several(n, 0.4 / n**0.8, 6)]
    with style():
        strong, weak = scaling.scaling(read(tmp_path, rows))
        encoded(strong.figure, "svg")
    assert isinstance(weak, Undrawn) and strong.runs == 18
    left, right = strong.figure.axes
    ideal, dots = left.lines[0], next(line for line in left.lines if line.get_marker() == "o")
    medians = [np.median([r["tokens_per_s"] for r in rows if r["world_size"] == n]) for n in (1, 2, 4)]
    assert np.allclose(dots.get_ydata(), medians)
    assert np.allclose(ideal.get_ydata(), [medians[0], 4 * medians[0]])
    measured = next(line for line in right.lines if line.get_marker() == "o")
    assert np.allclose(measured.get_ydata(), [1, 2**-0.2, 4**-0.2], rtol=0.05)
    assert "95% over runs" in strong.interval and "tokens/s" in strong.convention


def test_two_device_counts_are_no_trend(tmp_path):
    rows = simulated.several(1, 0.4, 2) + simulated.several(2, 0.2, 2)
    with style():
        found = scaling.scaling(read(tmp_path, rows))[0]
    assert "no trend: dp" in found.reading and "range from least to most" in found.interval
    assert all(line.get_linestyle() == "None" for line in found.figure.axes[0].lines[1:] if len(line.get_xdata()) > 1)


def test_bytes_sent_by_hand():
    plain = {"comm_bytes_per_step": 800, "world_size": 4, "steps": 10, "outer_algorithm": "none"}
    assert outer.sent(plain) == 800 / 4 * 10
    inside = plain | {"outer_algorithm": "diloco", "outer_bytes_per_rank": 300, "comm_bytes_inner_step": 600}
    assert outer.sent(inside) == 600 / 4 * 10 + 300  # the run's
    inside |= {"outer_sync_every": 6, "outer_bytes_per_round": 300}
    assert outer.sent_a_step(inside) == 600 / 4 + 300 / 6 and outer.sent_a_step(plain) == 800 / 4
    assert outer.sent(inside | {"comm_bytes_inner_step": None}) is None
    assert outer.sent(plain | {"comm_bytes_per_step": None}) is None
    assert outer.sent(plain | {"comm_bytes_per_step": 0}) is None  # folded: nothing is sent, and 0 has no logarithm


def test_diloco_beside_data_parallel(tmp_path):
    with style():
        (found,) = outer.diloco(read(tmp_path, simulated.outer()))
    # data parallel: 1.2 MB x 60 steps; the least: M 4, int4, H 30: 150 kB twice
    assert "240.0 times less" in found.reading and "1 layout whose replicas are folded" in found.reading
    x = sorted(
        {round(float(line.get_xdata()[0]), 3) for line in found.figure.axes[0].lines if line.get_marker() != "None"}
    )
    assert x[0] == 0.3 and 72.0 in x


def test_without_data_parallel_there_is_nothing_to_set_diloco_against(tmp_path):
    rows = [row for row in simulated.outer() if row["outer_algorithm"] == "diloco"]
    assert isinstance(outer.diloco(read(tmp_path, rows))[0], Undrawn)


def test_diloco_law_finds_the_exponents_that_made_the_table(tmp_path):
    with style():
        (found,) = outer_law.diloco_law(read(tmp_path, simulated.outer_sweep()))
        encoded(found.figure, "svg")
    number = r"(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]"
    alpha, beta, plain = re.findall(rf"(?:alpha|beta) = {number}", found.reading)
    for (value, low, high), true in ((alpha, -0.0985), (beta, 0.0116), (plain, -0.0953)):
        assert float(low) < true < float(high) and float(value) == pytest.approx(true, abs=0.002)
    assert re.search(r"at N = 30M: M = 1 [+-].*, M = 2 .*, M = 4 \+2\.\d\d%", found.reading)
    assert found.runs == 48 and "95% of the law by 1000 resamples" in found.interval
    assert "sync every 30, compression none; about 20 tokens per parameter" in found.convention


def test_diloco_law_takes_the_best_setting_of_a_sweep_and_needs_a_ladder(tmp_path):
    rows = simulated.outer_sweep(1)
    worse = [
        row
        | {
            "lr": 0.1,
            "loss": 2 * row["loss"],
            "val_loss": 2 * row["loss"],
            "case_id": f"{row['case_id']}w",
            "run_id": f"{row['case_id']}w-r0",
        }
        for row in rows
    ]
    with style():
        alone, both = (
            outer_law.diloco_law(read(tmp_path / str(n), some))[0] for n, some in enumerate((rows, rows + worse))
        )
        few = outer_law.diloco_law(read(tmp_path / "few", simulated.outer()))[0]
    assert both.reading == alone.reading and both.runs == alone.runs == 16
    assert isinstance(few, Undrawn) and "there are 2" in few.needs


def test_published_rows_stand_beside_ours_only_under_one_convention(tmp_path):
    source = read(tmp_path / "a", simulated.on_a100() + simulated.several(1, 0.4, 2))
    with style():
        (found,) = published.published(source)
    ours, *theirs = (line for line in found.figure.axes[0].lines if line.get_marker() in ("D", "o"))
    assert list(ours.get_xdata()) == [pytest.approx(100 * np.median([r["mfu_palm"] for r in simulated.on_a100()]))]
    assert theirs and found.runs == 6 and "same device, precision, peak" in found.convention
    table = published.table(source)
    assert all(float(row[5].value) == pytest.approx(100 * row[3].value / row[4].value) for row in table.rows)
    assert "2 layouts: the source gives no mfu_palm" in table.note and "1 layout: differs in precision" in table.note
    nothing = read(tmp_path / "b", simulated.several(1, 0.4, 2))
    assert published.table(nothing) is None and "refused: " in published.published(nothing)[0].needs


def test_gate_draws_what_it_compared(tmp_path):
    base = simulated.several(1, 0.4, 8, noise=0.01)
    head = [row | {"step_time_s": 1.2 * row["step_time_s"]} for row in base]
    done = compare(*(simulated.stored(tmp_path / n, rows) for n, rows in (("a", base), ("b", head))))
    with style():
        (found,) = gate.figures(done)
    crosses = [line for line in found.figure.axes[0].lines if line.get_marker() == "X"]
    assert [line.get_xdata()[0] for line in crosses] == [pytest.approx(1.2, rel=0.02)] and found.runs == 32
    assert gate.failing(done)[0].startswith("s m single, step_time_s: slower, 1.2")
    nothing = compare(tmp_path / "a", simulated.stored(tmp_path / "c", simulated.several(2, 0.2, 1)))
    assert isinstance(gate.figures(nothing)[0], Undrawn) and "missing" in gate.failing(nothing)[0]


def test_flops_are_powers_of_ten():
    assert [powers(value) for value in (1e15, 1e12, 3.16e17, 2.5e9)] == ["1e15", "1e12", "3.16e17", "2.5e9"]


def test_shares_of_the_step_add_up(tmp_path):
    with style():
        (found,) = layouts.time_breakdown(read(tmp_path, simulated.several(2, 0.2, 2)))
        encoded(found.figure, "svg")
    axes = found.figure.axes[0]
    widths = [bar.get_width() for group in axes.containers for bar in group]
    assert np.allclose(sorted(widths), [1, 6, 23, 70]) and "1 layout has more than 5%" in found.reading


PIPELINE = {
    "pp": 2,
    "dp_replicate": 1,
    "pp_schedule": "1F1B",
    "microbatches": 4,
    "layout": "pp2",
    "compute_time_s": 0.14,
    "optimizer_time_s": 0.02,
    "data_time_s": 0.002,
    "exposed_comm_time_s": 0.02,
    "exposed_comm_time_min_s": 0.016,
    "bubble_time_s": 0.04,
    "optimizer_wait_s": 0.01,
}


def test_what_was_waited_for_is_drawn_and_told_beside_the_formula(tmp_path):
    source = read(tmp_path, simulated.several(2, 0.2, 2, noise=0.0, **PIPELINE))
    with style():
        (found,) = layouts.time_breakdown(source)
    axes = found.figure.axes[0]
    widths = [bar.get_width() for group in axes.containers for bar in group]
    assert np.allclose(sorted(widths), [1, 5, 10, 19, 20, 45])
    (mark,) = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "|"]
    assert mark == pytest.approx(45 + 10 + 75 / 5)  # 1/5 of forward and backward, after compute and communication
    told = parts.table(source)
    row = {name: cell.text for (name, _), cell in zip(told.columns, told.rows[0], strict=True)}
    assert row | {"layout": ""} == {
        "layout": "",
        "step ms": "200.0",
        "compute": "45.0",
        "exposed comm": "10.0",
        "least rank": "8.0",
        "bubble": "20.0",
        "data": "1.0",
        "optimizer": "5.0",
        "residual": "19.0 !",
        "bubble of f+b": "26.7",
        "by formula": "20.0",
    }


def test_predicted_against_measured(tmp_path):
    with style():
        (found,) = predicted.predicted(read(tmp_path, simulated.ladders(2)))
    assert re.search(r"step time: 100% of \d+ layouts within 20%, predicted/measured 0\.9", found.reading)


def test_a_prediction_is_shown_with_its_interval_its_parts_and_the_naive_ones(tmp_path):
    rows = simulated.ladders(2)
    for row in rows:
        step = row["step_time_s"]
        inside = row["world_size"] > 1
        row |= {
            "predicted_step_time_s": 1.1 * step,
            "predicted_step_time_low_s": (0.9 if inside else 1.05) * step,
            "predicted_step_time_high_s": 1.2 * step,
            "predicted_constant_mfu_step_time_s": 1.5 * step,
            "predicted_smallest_scale_step_time_s": 2.0 * step,
            "compute_time_s": 0.6 * step,
            "predicted_compute_time_s": 0.3 * step,
        }
    with style():
        whole, parts = predicted.predicted(read(tmp_path, rows))
    groups = {(row["case_id"], row["world_size"]) for row in rows}
    share = sum(size > 1 for _, size in groups) / len(groups)
    assert f"{share:.0%} inside the 90% interval" in whole.reading and 0 < share < 1
    assert "median error of constant MFU 50%" in whole.reading
    assert "median error of as at the smallest scale 100%, of the model 10%" in whole.reading
    assert "forward and backward: 0% of" in parts.reading and "predicted/measured 0.50 in the median" in parts.reading


def test_host_memory_is_not_compared_with_a_prediction_of_the_device(tmp_path):
    rows = simulated.several(2, 0.2, 2, peak_memory_bytes=None, predicted_step_time_s=None)
    source = read(tmp_path, rows)
    assert isinstance(predicted.predicted(source)[0], Undrawn)
    with style():
        assert "resident memory" in layouts.memory(source)[0].convention


def test_a_run_that_did_not_come_to_its_end_shows_its_curve_up_to_there(tmp_path):
    rows = simulated.several(2, 0.2, 2)
    folder = simulated.stored(tmp_path / "t", rows)
    known = ("model", "params_total", "world_size", "layout", "steps")
    dead = {name: rows[0][name] for name in known} | {"case_id": "dead", "run_id": "dead-r0", "repeat": 0}
    steps = {"step": [0, 1, 2], "loss": [5.0, 4.5, 4.2], "tokens_seen": [100, 200, 300], "step_time_s": [0.5] * 3}
    for run_id, table in (("dead-r0", steps), ("bad-r0", steps | {"loss": [float("nan")] * 3}), ("none-r0", None)):
        RunStore(folder).write_run(dead | {"run_id": run_id, "status": "failed", "reason": "killed"}, table)
    with style():
        (found,) = losses.curves(read_source(folder, None, MODES, None, (), "mfu_palm", 0.95))
        encoded(found.figure, "svg")
    curves = [[line for line in axes.lines if line.get_marker() == "x"] for axes in found.figure.axes]
    for (line,), ends in zip(curves, (300, 300 * 6 * dead["params_total"], 3 * 0.5 * 2), strict=True):
        assert line.get_ydata().tolist() == pytest.approx([5.0, 4.5, 4.2])
        assert line.get_xdata()[-1] == pytest.approx(ends)
    assert "Dashed, to a cross: runs that were not ok, as far as they came (1)." in found.reading and found.runs == 2


def test_isoflop_and_frontier_find_the_law_that_made_the_table(tmp_path):
    source = read(tmp_path, simulated.sweep())
    with style():
        (curves,), (final,) = frontier.isoflop_curves(source), frontier.final_loss(source)
    true = simulated.BETA / (simulated.ALPHA + simulated.BETA)
    assert float(re.search(r"N\* ~ C\^(0\.\d+)", curves.reading)[1]) == pytest.approx(true, abs=0.03)
    assert float(re.search(r"N\* ~ C\^(0\.\d+)", final.reading)[1]) == pytest.approx(true, abs=0.03)
    assert float(re.search(r"alpha = (0\.\d+)", final.reading)[1]) == pytest.approx(simulated.ALPHA, abs=0.05)
    assert "95% of the law" in final.interval and final.runs == 48


def test_no_law_from_too_few_sizes(tmp_path):
    rows = [row for row in simulated.sweep() if row["case_id"] in ("s00", "s11", "s22", "s03")]
    with style():
        (final,) = frontier.final_loss(read(tmp_path, rows))
    assert "No law is drawn: Chinchilla's law needs 8" in final.reading and final.interval == "none"


def test_loss_curves_in_tokens_flops_and_hours(tmp_path):
    rows = simulated.several(2, 36.0, 1)
    with style():
        (found,) = losses.curves(read(tmp_path, rows))
    tokens, flops, hours = (axes.lines[0].get_xdata() for axes in found.figure.axes[:3])
    assert tokens[-1] == rows[0]["tokens_per_step"] * 30
    assert np.allclose(flops, tokens * rows[0]["flops_per_token_6n"])
    assert hours[-1] == pytest.approx(rows[0]["step_time_s"] * 30 * 2 / 3600)


def test_the_same_table_gives_the_same_svg(tmp_path):
    source = read(tmp_path, simulated.several(1, 0.4, 2) + simulated.several(2, 0.2, 2))
    with style():
        once, again = (encoded(layouts.memory(source)[0].figure, "svg") for _ in range(2))
    assert once == again and b"<svg" in once


def test_series_are_told_apart_without_colour():
    looks = [(one["marker"], str(one["linestyle"])) for one in map(look, range(40))]
    assert len(set(looks)) == 40
    assert (
        len(
            {
                (one["color"], *pair)
                for one, pair in zip(
                    map(look, range(280)),
                    [(o["marker"], str(o["linestyle"])) for o in map(look, range(280))],
                    strict=True,
                )
            }
        )
        == 280
    )


def test_a_figure_is_laid_out_once_and_drawn_once_for_each_format(monkeypatch):
    from matplotlib.figure import Figure

    counts = {"laid out": 0, "drawn": 0}
    whole = Figure.draw

    def draw(self, renderer):
        counts["drawn"] += 1
        return whole(self, renderer)

    monkeypatch.setattr(Figure, "draw", draw)
    with style():
        figure, (axes,) = new_figure(4, 3)
        engine = figure.get_layout_engine()
        lay_out = engine.execute

        def execute(of):
            counts["laid out"] += 1
            lay_out(of)

        monkeypatch.setattr(engine, "execute", execute)
        axes.plot([1, 2], [1, 2])
        svg, png = encoded(figure, "svg"), encoded(figure, "png")
        assert counts == {"laid out": 1, "drawn": 2} and png.startswith(b"\x89PNG") and encoded(figure, "svg") == svg


def test_many_points_do_not_make_a_large_file():
    rng = np.random.default_rng(0)
    with style():
        sizes = []
        for more in ({}, dense(4000)):
            figure, (axes,) = new_figure(4, 3)
            axes.plot(rng.random(4000), rng.random(4000), linestyle="none", marker="o", **more)
            with_intervals(axes, rng.random(4000), [median([1.0, 2.0])] * 4000, "#000000")
            sizes.append(len(encoded(figure, "svg")))
    assert sizes[1] < 150_000 < sizes[0] and dense(DENSE) == {}


def test_intervals_drawn_together_are_those_of_each():
    estimates = [median(np.exp(np.linspace(0, 1, n))) for n in (1, 3, 6, 9)]
    with style():
        _, (axes,) = new_figure(4, 3)
        with_intervals(axes, [1, 2, 4, 8], estimates, "#000000", 10.0)
    ends = {
        round(path.vertices[0, 0]): path.vertices[:, 1] / 10 for bars in axes.collections for path in bars.get_paths()
    }
    for x, one in zip((1, 2, 4, 8), estimates, strict=True):
        wanted = (one.least, one.most) if one.low is None else (one.low, one.high)
        assert np.allclose(ends[x], wanted)
    caps = [line for line in axes.lines if len(line.get_xdata())]
    assert {x for line in caps for x in line.get_xdata()} == {4, 8}  # where runs are enough for an interval


def test_large_tables_are_cut_and_say_of_how_many(tmp_path, monkeypatch):
    rows = [
        simulated.row(1, 0.1, repeat, lr=1e-3 * (i + 1), case_id=f"l{i:02d}", compute_time_s=0.05)
        for i in range(12)
        for repeat in range(2)
    ] + simulated.troubles()
    source = read(tmp_path, rows)
    whole = rendered(source, [], [], None)
    assert "evenly spaced" not in whole and "Every run" in whole
    for module, name, most in (
        (tables, "RUNS_SHOWN", 7),
        (tables, "LAYOUTS", 4),
        (tables, "REASONS", 3),
        (parts, "LAYOUTS", 5),
        (page, "RUNS_NAMED", 2),
    ):
        monkeypatch.setattr(module, name, most)
    found = {
        "runs": tables.runs(source),
        "layouts": tables.layouts(source),
        "failures": tables.failures(source),
        "parts": parts.table(source),
    }
    assert {name: (len(one.rows), one.of) for name, one in found.items()} == {
        "runs": (7, 39),
        "layouts": (4, 12),
        "failures": (3, 15),
        "parts": (5, 12),
    }
    ids = [row[0].text for row in found["runs"].rows]
    every = [row["run_id"] for row in source.rows]
    assert (ids[0], ids[-1]) == (every[0], every[-1]) and ids == sorted(ids)
    html = rendered(source, [], [], None)
    assert "7 of 39 are shown, evenly spaced" in html and "Every run" not in html and len(html) < len(whole)
    assert re.search(r"<summary>24 runs</summary>l00-r0, l00-r1 and 22 more<", html)
    assert kept(range(10), 10) == (list(range(10)), 0) and kept(range(10), 4) == ([0, 3, 6, 9], 10)


def test_long_studies_are_cut_into_several_figures(tmp_path):
    rows = [row for i in range(60) for row in [simulated.row(1, 0.1, lr=1e-3 * (i + 1), case_id=f"l{i:02d}")]]
    with style():
        found = layouts.memory(read(tmp_path, rows))
    assert [one.name for one in found] == ["memory-1", "memory-2", "memory-3"] and all(
        isinstance(f, Drawn) for f in found
    )
    names = [text.get_text() for one in found for text in one.figure.axes[0].get_yticklabels()]
    assert len(set(names)) == 60 and all(" lr 0.0" in name for name in names)
    assert [len(part) for part in chunks(list(range(60)), "x")[0]] == [20, 20, 20]
    parts, told = chunks(list(range(1000)), "x", 10)
    assert [len(part) for part in parts] == [10] * 2 and told[0].title == "x, 980 more"
    assert "20 of 1,000 are drawn" in told[0].needs
    parts, told = chunks(list(range(60)), "x", 10)
    assert [len(part) for part in parts] == [10] * 6 and not told


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (0.004, "0.004"), (12, "12"), (999.9, "1k"), (1234, "1.23k"), (5.6e9, "5.6G"), (1e18, "1e+18")],
)
def test_short_numbers(value, said):
    assert short(value) == said
