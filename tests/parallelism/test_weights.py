"""Canonical weights as a file: exact, whole or not at all, and nothing in it is executed."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import scalade
from scalade.bench import weights
from scalade.bench.shape import ModelShape
from scalade.launch.run import run_study
from scalade.launch.study.study import load_study
from scalade.results.store.store import RunStore

SHAPE = ModelShape(layers=2, heads=2, kv_heads=2, width=8, ffn=16, vocab=16, seq_len=8)


def some() -> weights.Weights:
    return {name: torch.randn(size) for name, size in weights.shapes_of(SHAPE).items()}


def test_what_is_written_is_read(tmp_path):
    written = some()
    weights.write(tmp_path / "weights.npz", written)
    found = weights.read(tmp_path / "weights.npz")
    assert list(found) == list(written) and all(torch.equal(found[name], written[name]) for name in written)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.npz"]
    assert weights.problem_with(found, SHAPE) is None


def test_weights_of_another_model_are_told(tmp_path):
    wrong = some()
    del wrong["head.weight"]
    assert weights.problem_with(wrong, SHAPE) == "weights of another model: head.weight is missing, wanted (16, 8)"
    wrong = some() | {"norm.weight": torch.zeros(9), "more": torch.zeros(1)}
    told = weights.problem_with(wrong, SHAPE)
    assert told == "weights of another model: norm.weight is (9,), wanted (8,) (2 differ)"


class Bomb:
    def __reduce__(self):
        return open, ("exploded", "w")


@pytest.mark.parametrize("content", ["cut", "text", "empty", "pickle", "pickled array", "float64", "npy"])
def test_a_damaged_or_hostile_file_is_one_line_and_runs_nothing(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = Path("weights.npz")
    weights.write(file, some())
    if content == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif content in ("text", "empty"):
        file.write_text("hello" * (content == "text"))
    elif content == "pickle":
        file.write_bytes(pickle.dumps(Bomb()))
    elif content == "pickled array":
        np.savez(file, a=np.array([Bomb()], dtype=object))
    elif content == "float64":
        np.savez(file, a=np.zeros(3))
    else:
        np.save(open(file, "wb"), np.zeros(3))
    with pytest.raises(ValueError, match="weights.npz holds no weights: ") as told:
        weights.read(file)
    assert "\n" not in str(told.value) and not Path("exploded").exists()


STUDY = """
[model]
size = "tiny-100k"
seq_len = 32
[recipe]
global_batch = 8
lr = 1e-2
[budget]
steps = 4
[measure]
eval_sequences = 8
keep_weights = true
[layout]
"""


@pytest.mark.slow
def test_a_run_starts_from_what_another_kept(tmp_path):
    (tmp_path / "first.toml").write_text(STUDY + "dp_replicate = 2\n[run]\nmax_ranks = 2\n")
    summary, folder = run_study(tmp_path / "first.toml", quiet=True, results=tmp_path / "first")
    (run_id,) = summary.outcomes
    kept = RunStore(folder).run_folder(run_id) / "weights.npz"
    text = STUDY.replace("keep_weights", "eval_start").replace("lr = 1e-2", f"lr = 0.0\nstart_weights = {str(kept)!r}")
    (tmp_path / "second.toml").write_text(text)
    run_study(tmp_path / "second.toml", quiet=True, results=tmp_path / "second")
    trained = scalade.read_runs(tmp_path / "first")["val_loss"].item()
    evals = scalade.read_evals(tmp_path / "second")
    found = scalade.read_runs(tmp_path / "second").to_dict("records")[0]
    assert found["status"] == "ok" and found["val_loss"] == pytest.approx(trained, rel=1e-6)
    assert evals["step"].tolist() == [0, 4]


def test_a_file_that_is_not_there_is_a_skipped_case(tmp_path):
    text = STUDY.replace("lr = 1e-2", 'start_weights = "no such.npz"')
    (tmp_path / "t.toml").write_text(text)
    (planned,) = load_study(tmp_path / "t.toml").cases()
    assert planned.skip_reason == 'recipe.start_weights = "no such.npz": there is no such file'
