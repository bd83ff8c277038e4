"""What a study may say of its data, and what it is told when it is wrong."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from scalade.bench.data import DataSpec, open_source, vocab_of
from scalade.bench.data.spec import SOURCES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "c4"}, r"data\.source = 'c4': allowed are stdlib, tokens, zipf-markov"),
        ({"source": "tokens"}, r"data\.path is missing"),
        ({"path": "x.bin"}, r"data\.path = 'x\.bin': not for source 'stdlib', which takes val_fraction"),
        ({"val_fraction": 1.0}, r"data\.val_fraction = 1\.0: must be at least 0 and less than 1"),
        ({"val_fraction": -0.1}, r"data\.val_fraction = -0\.1"),
        ({"val_fraction": float("nan")}, r"data\.val_fraction = nan"),
        ({"source": "tokens", "path": "x", "dtype": "int8"}, r"data\.dtype = 'int8': allowed are auto, uint8, int16,"),
        ({"source": "tokens", "path": "x", "vocab": 0}, r"data\.vocab = 0: must be between 1"),
        ({"source": "tokens", "path": "x", "val_path": "y", "val_fraction": 0.1}, r"this or data\.val_path, not both"),
        ({"source": "zipf-markov", "vocab": 1}, r"data\.vocab = 1: must be between 2 and 4096"),
        ({"source": "zipf-markov", "vocab": 5000}, r"data\.vocab = 5000: must be between 2 and 4096"),
        ({"source": "zipf-markov", "zipf_exponent": float("inf")}, r"data\.zipf_exponent = inf"),
        ({"source": "zipf-markov", "vocab": 3, "zipf_levels": 4}, r"data\.zipf_levels = 4: must be at most"),
        ({"source": "zipf-markov", "chain_seed": -1}, r"data\.chain_seed = -1"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        DataSpec(**settings)


SPECS = [
    DataSpec(),
    DataSpec("tokens", path="a b.bin"),
    DataSpec("tokens", path="a", val_path="b", vocab=5),
    DataSpec("zipf-markov", vocab=64),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.source)
def test_a_spec_survives_json(spec):
    assert DataSpec(**json.loads(json.dumps(asdict(spec)))) == spec


def test_settings_of_other_sources_are_null():
    assert asdict(DataSpec()) == dict.fromkeys(asdict(DataSpec())) | {"source": "stdlib", "val_fraction": 0.05}
    assert DataSpec("zipf-markov").val_fraction is None and DataSpec("zipf-markov").zipf_exponent == 1.0
    assert DataSpec("tokens", path="a", val_path="b").val_fraction is None
    assert DataSpec(path="") == DataSpec()


def test_every_registered_source_has_a_module(tmp_path):
    for source in SOURCES:
        module = DataSpec(source, path="x" if source == "tokens" else None).module()
        assert callable(module.open_source)
    assert vocab_of(DataSpec()) == 256 and vocab_of(DataSpec("zipf-markov", vocab=77)) == 77


def test_a_stranger_adds_a_source(monkeypatch):
    """One module and one line in the registry."""
    import types

    import numpy as np

    from scalade.bench.data.windows import Text, WindowedSource

    module = types.ModuleType("scalade.bench.data.count_up")
    module.vocab = lambda spec: 10
    module.open_source = lambda spec, seq_len, seed: WindowedSource(
        Text([np.arange(100) % 10], [], 10, str, "data.source = 'count-up'"), seq_len, seed
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(SOURCES, "count-up", {})
    spec = DataSpec("count-up")
    assert vocab_of(spec) == 10
    assert open_source(spec, 4, 0).train_rows(0, 3).shape == (3, 5)


def test_needs_no_torch_and_the_spec_no_numpy():
    code = (
        "import sys; from scalade.bench.data import DataSpec, open_source, vocab_of; DataSpec();"
        "assert 'numpy' not in sys.modules; vocab_of(DataSpec());"
        "open_source(DataSpec('zipf-markov'), 8, 0).train_rows(0, 1); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
