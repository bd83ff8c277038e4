"""docs/data.md keeps what it promises: its studies are valid, its example runs, its figures are the defaults'."""

import re
import sys
import tomllib
import types

import numpy as np
import pytest
from places import ROOT

from scalade.bench.data import SOURCES, DataSpec, open_source, vocab_of

PAGE = ROOT.joinpath("docs", "data.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```toml\n(.*?)```", PAGE, re.S))
def test_studies_are_valid(block):
    settings = tomllib.loads(block)["data"]
    spec = DataSpec(**settings)
    if spec.source == "zipf-markov":
        assert spec == DataSpec("zipf-markov")  # the page shows the defaults


def test_the_example_source_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r'```python\n("""digits.*?)```', PAGE, re.S)
    (line,) = re.findall(r'`"digits": (\{.*?\}),` in `SOURCES`', PAGE)
    module = types.ModuleType("scalade.bench.data.digits")
    module.__package__ = "scalade.bench.data"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, module.__dict__)
    monkeypatch.setitem(SOURCES, "digits", eval(line))
    (tmp_path / "pi").write_text("31415926535897932384626433832795" * 9)
    spec = DataSpec("digits", path=str(tmp_path / "pi"))
    assert vocab_of(spec) == 10
    rows = open_source(spec, 4, 0).train_rows(0, 8)
    assert rows.shape == (8, 5) and rows.max() <= 9


def test_the_losses_of_partial_knowledge():
    """The class of a token among K is token * K // V; the last token is distributed as in the long run."""
    source = open_source(DataSpec("zipf-markov"), 8, 0)
    size = source.vocab
    p = np.empty((size, size))
    np.put_along_axis(p, source.table.astype(np.int64), source.probabilities[None, :], axis=1)
    stationary = np.full(size, 1 / size)
    for _ in range(200):
        stationary = stationary @ p
    losses = [np.log(size)]
    for classes in (1, 8, 64, 512):
        joint = np.zeros((classes, size))
        np.add.at(joint, np.arange(size) * classes // size, stationary[:, None] * p)
        losses.append(-(joint * np.log(joint / joint.sum(axis=1, keepdims=True))).sum())
    stated = [(float(a), float(b)) for a, b in re.findall(r"\| (\d\.\d{3}) \| ([\d.]+) \|", PAGE)]
    assert stated == [(round(loss, 3), round(loss - source.entropy_nats, 3)) for loss in losses]
