"""The run to buy: a law read back predicts as the fit does, budgets by hand, sites, and one line for every mistake."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scalade.bench.shape import SIZES, ModelShape
from scalade.cli import app as cli
from scalade.parallelism.plan import Question, budget_report, search
from scalade.parallelism.plan.budget import Budget, Market, Site, flop_optimal, purchases, smaller_batch
from scalade.parallelism.plan.ladder import LAYERS, shapes
from scalade.parallelism.plan.law_file import FittedLaw, read_law
from scalade.parallelism.predict import load_machine
from scalade.parallelism.predict.outer import exposed_in_round
from scalade.results.laws import fit_file, get_law

H100 = load_machine("h100")
TRUE = {"A": 482.0, "alpha": 0.348, "B": 2085.4, "beta": 0.366, "E": 1.817}  # Besiroglu et al., arXiv 2404.10102
RULE = {"params": (1e7, 1e11), "tokens": (1e8, 1e13)}


def law(resamples=0, columns=None, **values):
    natural = np.array(list((TRUE | values).values()))
    draws = natural * np.exp(0.01 * np.random.default_rng(1).standard_normal((resamples, 5)))
    columns = columns or {"params": "params_total", "tokens": "tokens_seen"}
    return FittedLaw(Path("fit.json"), get_law("chinchilla"), natural, draws, "val_loss", columns, RULE)


def diloco(beta=0.0116):
    natural = np.array([19.226, -0.0985, beta])  # arXiv 2503.09799, table 10
    ranges = {"params": (1e7, 1e11), "replicas": (1.0, 8.0)}
    columns = {"params": "params_total", "replicas": "outer.replicas"}
    return FittedLaw(Path("m.json"), get_law("diloco_joint"), natural, np.zeros((0, 3)), "val_loss", columns, ranges)


def market(amount=100.0, unit="device-hours", devices=8, **more):
    settings = {"global_batch": 64, "recompute": ("none",), "engine": "megatron"} | more
    return Market(Budget(amount, unit), H100, devices, law(), **settings)


def models(*layers):
    return {f"{n}x{128 * n}": each for n in layers for each in [shapes(None, 512)[f"{n}x{128 * n}"]]}


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(7, 10, 60), 10 ** rng.uniform(8.5, 11.5, 60)
    loss = 1.8 + 480 / n**0.35 + 2000 / d**0.37
    return pd.DataFrame({"n": n, "d": d, "loss": loss * np.exp(0.003 * rng.standard_normal(60))})


@pytest.fixture(scope="module")
def fitted(table):
    keywords = {"params": "n", "tokens": "d", "bootstrap": 120, "compare": [], "profile": False, "sensitivity": False}
    return fit_file(table, **keywords)


def test_a_law_that_is_read_back_predicts_as_the_fit_does(fitted, table, tmp_path):
    file = tmp_path / "fit.json"
    file.write_text(json.dumps(fitted.to_dict()))
    read = read_law(file)
    new = {"params": np.array([3e9, 7e10]), "tokens": np.array([1e11, 2e12])}
    loss, draws = read.predict(new)
    assert loss == pytest.approx(fitted.fit.predict(new))
    assert len(draws) == 100
    theirs = np.exp(fitted.fit.log_predict(new, fitted.fit.draws[:100]))
    assert draws == pytest.approx(theirs)
    assert read.ranges["params"] == (table["n"].min(), table["n"].max())
    assert read.columns == {"params": "n", "tokens": "d"} and read.unit == "nats/token"


def test_device_hours_by_hand():
    shape = models(8)
    (bought,), refused = purchases(market(), shape)
    assert not refused
    alone = search(Question(shape["8x1024"], 8, H100, 64, engine="megatron", recompute=("none",)), top=1).best[0]
    steps = 100 * 3600 / (8 * alone.step_time_s)
    assert bought.steps == pytest.approx(steps)
    assert bought.tokens == pytest.approx(steps * 64 * 512)
    n = shape["8x1024"].params_total
    assert bought.loss == pytest.approx(1.817 + 482 / n**0.348 + 2085.4 / bought.tokens**0.366)
    assert bought.low < bought.loss < bought.high
    assert bought.days == pytest.approx(100 / 8 / 24)


@pytest.mark.parametrize("unit", ["days", "joules", "dollars"])
def test_every_unit_is_what_the_steps_cost(unit):
    machine = replace(H100, dollars_per_device_hour=2.5, busy_w=700.0, idle_w=100.0)
    asked = replace(market(5e6 if unit == "joules" else 3.0, unit), machine=machine)
    (bought,), _ = purchases(asked, models(6))
    seconds, busy = bought.steps * bought.step_time_s, bought.steps * bought.candidate.parts["compute_time_s"]
    costs = {
        "days": seconds / 86400,
        "dollars": 8 * seconds / 3600 * 2.5,
        "joules": 8 * (700 * busy + 100 * (seconds - busy)),
    }
    assert costs[unit] == pytest.approx(asked.budget.amount)


def test_the_interval_holds_law_and_speed():
    (plain,), _ = purchases(market(), models(8))
    (doubtful,), _ = purchases(replace(market(), law=law(resamples=80)), models(8))
    assert doubtful.loss == pytest.approx(plain.loss)
    assert doubtful.low < plain.low < plain.high < doubtful.high


def test_time_takes_another_model_than_flops_where_small_ones_keep_the_machine_idle():
    """A law of little to gain by size: FLOPs would take a small model, which a GPU runs at a part of its speed."""
    asked = replace(market(20.0), law=law(alpha=0.30, beta=0.40))
    found, _ = purchases(asked, models(4, 6, 8, 10, 12, 16, 20, 24))
    best = budget_report.choose(found)
    assert best.loss == min(each.loss for each in found)
    by_flops = flop_optimal(asked, best, found)
    flops = 6 * best.shape.params_total * best.tokens
    losses = {
        each.name: 1.817 + 482 / each.shape.params_total**0.30 + 2085.4 / (flops / 6 / each.shape.params_total) ** 0.40
        for each in found
    }
    assert by_flops.name == min(losses, key=losses.get)
    assert by_flops.loss >= best.loss
    told = "\n".join(budget_report.to_text(asked, found, {}))
    assert ("the law alone takes the same model" in told) == (by_flops.name == best.name)


def test_the_smallest_batch_loses_little_speed():
    asked = market(global_batch=256)
    found, _ = purchases(asked, models(6))
    smaller = smaller_batch(asked, found[0])
    assert smaller.global_batch <= 256 and smaller.tokens >= 0.98 * found[0].tokens
    (half,), _ = purchases(replace(asked, global_batch=smaller.global_batch // 2), models(6))
    assert half.tokens < 0.98 * found[0].tokens


def test_sites_wait_for_their_link_and_replicas_cost_loss():
    link = 10e9
    ways = (Site(link, 2), Site(link, 2, 30), Site(link, 2, 30, bits=4), Site(link, 4, 30))
    asked = replace(market(), sites=ways, diloco=diloco())
    found, refused = purchases(asked, models(16))
    assert not refused
    parallel, h30, packed, four = found
    shape = parallel.shape
    message = 16 * shape.params_total / link  # two sites: 2 (M - 1) / M = 1
    late = float(exposed_in_round(parallel.candidate.step_time_s, message, 16)) + 1e-2
    assert parallel.step_time_s == pytest.approx(parallel.candidate.step_time_s + late)
    assert h30.step_time_s == pytest.approx(h30.candidate.step_time_s + late / 30)
    assert h30.tokens > 2 * parallel.tokens and packed.tokens > h30.tokens
    alone, _ = law().predict({"params": np.array([shape.params_total]), "tokens": np.array([h30.tokens])})
    assert h30.loss == pytest.approx(float(alone[0]) * 2**0.0116)
    assert four.candidate.layout.ranks == 2 and four.how == "DiLoCo M=4 H=30"
    assert packed.how == "DiLoCo M=2 H=30, 4 bits" and parallel.how == "data parallel over 2 sites"


def test_a_model_that_does_not_fit_has_its_reason():
    found, refused = purchases(market(), models(4) | {"llama3-405b": ModelShape(**SIZES["llama3-405b"])})
    assert [each.name for each in found] == ["4x512"]
    assert "fits into 85.0 GB" in refused["llama3-405b"]


def test_the_law_counts_parameters_as_its_column_does():
    other = law(columns={"params": "params_non_embedding", "tokens": "tokens_seen"})
    (bought,), _ = purchases(replace(market(), law=other), models(8))
    n = bought.shape.params_non_embedding
    assert bought.loss == pytest.approx(1.817 + 482 / n**0.348 + 2085.4 / bought.tokens**0.366)


def test_outside_of_the_law_is_said():
    far = replace(law(), ranges={"params": (1e7, 2e7), "tokens": (1e8, 1e13)})
    found, _ = purchases(replace(market(), law=far), models(8))
    assert found[0].beyond == {"params": pytest.approx(found[0].shape.params_total / 2e7)}
    assert any(line.startswith("outside of what the law") for line in budget_report.to_text(market(), found, {}))


def test_the_ladder_is_one_rule_or_a_family():
    ladder = shapes(None, None)
    assert len(ladder) == len(LAYERS)
    assert all(each.width == 128 * each.layers and each.head_dim == 128 for each in ladder.values())
    family = shapes("llama3", 4096)
    assert list(family) == ["llama3-8b", "llama3-70b", "llama3-405b"]
    assert {each.seq_len for each in family.values()} == {4096}
    assert list(shapes("diloco-35m,gpt2-xl", None)) == ["diloco-35m", "gpt2-xl"]
    with pytest.raises(ValueError, match="no model or family 'lama3': did you mean 'llama3'"):
        shapes("lama3", None)


@pytest.fixture
def files(fitted, tmp_path):
    report = fitted.to_dict()

    def write(name, **changes):
        (tmp_path / name).write_text(json.dumps(report | changes))

    write("fit.json")
    write("bits.json", response="val_bits_per_byte")
    write("open.json", convergence=report["convergence"] | {"converged": False})
    parameters = [{"name": name, "at_optimum": v} for name, v in (("A", 19.2), ("alpha", -0.0985), ("beta", 0.0116))]
    own = {"law": "diloco_joint", "parameters": parameters, "resamples": []}
    own |= {"columns": {"params": "n", "replicas": "m"}, "ranges": {"params": [1e7, 1e10], "replicas": [1, 8]}}
    write("m.json", **own)
    write("mbits.json", **own, response="bpb")
    (tmp_path / "table.json").write_text("{}")
    (tmp_path / "no.json").write_text("N,D,loss")
    (tmp_path / "free.toml").write_text(
        "\n".join(
            x
            for x in Path(load_machine.__code__.co_filename)
            .with_name("machines")
            .joinpath("h100.toml")
            .read_text()
            .splitlines()
            if not x.startswith(("busy_w", "dollars_per"))
        )
    )
    return tmp_path


def plan(monkeypatch, capsys, folder, *words):
    monkeypatch.chdir(folder)
    base = ["scalade", "plan", "--machine", "h100", "--devices", "8", "--model", "tiny-5m", "--seq-len", "128"]
    monkeypatch.setattr(sys, "argv", [*base, *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    return ended.value.code or 0, captured.out, captured.err


def test_the_command_tells_the_best(monkeypatch, capsys, files):
    code, out, _ = plan(monkeypatch, capsys, files, "--budget", "2", "--law", "fit.json")
    assert code == 0 and "best: tiny-5m" in out and "<- best" in out and "smallest batch" in out
    words = ["--budget", "2", "--law", "fit.json", "--json", "--diloco-law", "m.json"]
    words += ["--sites", "2", "--site-gbps", "1", "--sync-every", "30", "--sync-every", "1"]
    code, out, _ = plan(monkeypatch, capsys, files, *words)
    content = json.loads(out)
    assert code == 0 and {each["how"] for each in content["purchases"]} == {
        "data parallel over 2 sites",
        "DiLoCo M=2 H=30",
    }
    assert content["best"]["loss_low"] < content["best"]["loss"] < content["best"]["loss_high"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--budget", "-3", "--law", "fit.json"], "--budget -3: must be more than 0 device-hours"),
        (["--budget", "nan", "--law", "fit.json"], "must be more than 0"),
        (["--budget", "3", "--law", "fit.json", "--unit", "euros"], "--unit euros: allowed are device-hours"),
        (["--budget", "3"], "--budget needs --law FIT"),
        (["--budget", "3", "--law", "gone.json"], "gone.json: cannot be read"),
        (["--budget", "3", "--law", "no.json"], "no.json: no JSON: write it with"),
        (["--budget", "3", "--law", "table.json"], "table.json: not a fit: lacks law"),
        (["--budget", "3", "--law", "open.json"], "did not converge"),
        (["--budget", "3", "--law", "m.json"], "law diloco_joint has no tokens (D)"),
        (["--budget", "3", "--law", "fit.json", "--loss-unit", "bits/byte"], "is in nats/token, not in bits/byte"),
        (
            ["--budget", "3", "--law", "fit.json", "--diloco-law", "mbits.json"],
            "is in bits/byte, that of --law in nats",
        ),
        (["--budget", "3", "--law", "fit.json", "--diloco-law", "fit.json"], "has no replicas (M)"),
        (["--budget", "3", "--law", "fit.json", "--sites", "2"], "--sites needs --site-gbps"),
        (
            ["--budget", "3", "--law", "fit.json", "--sites", "2", "--site-gbps", "9", "--sync-every", "9"],
            "--diloco-law",
        ),
        (
            ["--budget", "3", "--law", "fit.json", "--sites", "3", "--site-gbps", "9"],
            "--devices 8 is not a multiple of 3",
        ),
        (["--budget", "3", "--law", "fit.json", "--unit", "joules", "--machine", "free.toml"], "has no power"),
        (["--budget", "3", "--law", "fit.json", "--unit", "dollars", "--machine", "free.toml"], "has no price"),
        (["--budget", "3", "--law", "fit.json", "--write", "x.toml"], "--write goes with --model and --devices"),
        (["--budget", "3", "--law", "fit.json", "--global-batch", "0"], "--global-batch 0: must be at least 1"),
    ],
)
def test_a_mistake_about_a_budget_is_one_line(monkeypatch, capsys, files, words, line):
    code, out, err = plan(monkeypatch, capsys, files, *words)
    assert code == 2 and out == ""
    assert line in err and err.count("\n") == 1, err
