"""`scalade plan` as a person meets it: what is shown and written, and one line for every mistake."""

from __future__ import annotations

import json
import sys

import pytest

from scalade.cli import app as cli

SMALL = "layers=4,heads=4,width=256,vocab=512,seq_len=128"


@pytest.fixture
def plan(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["scalade", "plan", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


def test_the_best_layouts_are_shown_and_their_study_can_be_planned(plan, tmp_path, monkeypatch, capsys):
    file = tmp_path / "best.toml"
    code, out, _ = plan("--model", SMALL, "--devices", "4", "--machine", "h100", "--top", "3", "--write", str(file))
    assert code == 0
    assert "the best 3" in out and "time against memory" in out and "refused" in out and "const. MFU" in out
    monkeypatch.setattr(sys, "argv", ["scalade", "run", "--dry-run", "--json", str(file)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    assert "runs" in capsys.readouterr().out


def test_json_is_an_object_and_nothing_else(plan):
    code, out, err = plan("--model", SMALL, "--devices", "4", "--machine", "h100", "--json", "--global-batch", "8")
    content = json.loads(out)
    assert code == 0 and err == ""
    assert content["global_batch"] == 8 and len(content["best"]) == 10
    assert content["best"][0]["step_time_low_s"] < content["best"][0]["step_time_s"]


def test_a_study_names_the_model_its_recipe_and_data(plan, tmp_path):
    study = tmp_path / "own.toml"
    study.write_text(
        '[model]\nsize = "tiny-300k"\nseq_len = 64\ntied = false\n[recipe]\nglobal_batch = 24\nlr = 5e-3\n'
        '[budget]\nsteps = 3\n[data]\nsource = "zipf-markov"\nvocab = 300\n[layout]\ndp_shard = [1, 2]\n'
    )
    file = tmp_path / "best.toml"
    code, out, _ = plan(
        "--model", str(study), "--devices", "2", "--machine", "h100", "--write", str(file), "--top", "4"
    )
    assert code == 0 and "24 sequences of 64 tokens" in out and "fp32" in out
    from scalade.launch.study.study import load_study

    first, own = load_study(file).all_cases[0], load_study(study).all_cases[0]
    assert (first.shape, first.data, first.recipe.lr) == (own.shape, own.data, 5e-3)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--devices", "8"], "--model is needed"),
        (["--model", "llama3-8b"], "--devices is needed"),
        (["--model", "llama3-8", "--devices", "8"], "did you mean 'llama3-8b'"),
        (["--model", "gone.toml", "--devices", "8"], "gone.toml: cannot be read"),
        (["--model", SMALL, "--devices", "-4"], "--devices -4: must be at least 1"),
        (["--model", SMALL, "--devices", "4", "--global-batch", "-1"], "--global-batch -1: must be at least 1"),
        (["--model", SMALL, "--devices", "97", "--global-batch", "6"], "96 and 128 would work"),
        (["--model", "llama3-405b", "--devices", "8"], "fits into 85.0 GB of machine h100"),
        (["--model", SMALL, "--devices", "4", "--precision", "int8"], "--precision int8"),
        (["--model", SMALL, "--devices", "4", "--write", "best.txt"], "a study file ends in .toml"),
        (["--model", SMALL, "--devices", "4", "--stack", "nemoo"], "did you mean 'nemo'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(plan, words, line):
    code, out, err = plan(*words, "--machine", "h100")
    assert code == 2 and out == ""
    assert line in err and err.count("\n") == 1, err


def test_a_machine_without_a_bandwidth_is_one_line(plan, tmp_path):
    from scalade.parallelism.predict.machine import FOLDER

    profile = tmp_path / "mine.toml"
    lines = (FOLDER / "h100.toml").read_text().splitlines()
    profile.write_text("\n".join(line for line in lines if not line.startswith("bandwidth = { value = 45e9")))
    code, _, err = plan("--model", SMALL, "--devices", "4", "--machine", str(profile))
    assert code == 2 and "link cluster lacks bandwidth" in err and err.count("\n") == 1
