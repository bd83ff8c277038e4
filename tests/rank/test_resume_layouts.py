"""A checkpoint of one layout goes on under another; a compiled layout follows the eager one."""

from pathlib import Path

import pytest
from worlds import run_world

from scalade.parallelism.layout import Layout

SHAPE = dict(layers=4, heads=4, kv_heads=2, width=32, ffn=48, vocab=64, seq_len=16, qk_norm=True)
RECIPE = dict(global_batch=8, steps=12, lr=3e-3, clip_norm=0.5, init_std=0.1, z_loss=1e-3)
PP = {"pp": 2, "microbatches": 2}
CHAINS = {
    "two ranks": [{}, {"dp_shard": 2}, PP, {"tp": 2}, {}],
    "sgd": [{"dp_shard": 2}, {"tp": 2}, {}],
    "four ranks": [{"dp_shard": 2, "tp": 2}, PP | {"dp_shard": 2}, {}],
}


def run_ranks(folder: Path, size: int, jobs: dict, timeout_s: int = 90) -> dict:
    return run_world("layout_change_ranks.py", size, jobs, folder, timeout_s)


def job(layout: dict, steps: tuple[int, int], recipe: dict | None = None, **more) -> dict:
    return {"shape": SHAPE, "recipe": RECIPE | (recipe or {}), "layout": layout, "steps": steps} | more


def far(found: list, expected: list) -> float:
    pairs = [(a, b) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True)]
    return max(abs(a - b) / abs(b) for a, b in pairs)


@pytest.mark.parametrize("chain", [pytest.param(name, marks=pytest.mark.slow) for name in CHAINS])
def test_a_run_moves_from_layout_to_layout(chain, tmp_path):
    """Two steps under each, and the last of them: the run that stayed in one process."""
    layouts = CHAINS[chain]
    recipe = {"optimizer": "sgd", "lr": 0.1} if chain == "sgd" else {}
    end = 2 * len(layouts)
    expected = run_ranks(tmp_path, 1, {"x": job({}, (0, end), recipe)})["x"]
    found = []
    for i, layout in enumerate(layouts):
        more = {"save": str(tmp_path / f"after-{i}")} | ({"load": str(tmp_path / f"after-{i - 1}")} if i else {})
        each = job(layout, (2 * i, 2 * i + 2), recipe, **more)
        found += run_ranks(tmp_path, Layout(**layout).ranks, {"x": each})["x"]
    assert far([x[:1] for x in found], [x[:1] for x in expected]) < 1e-6
    assert far([x[1:] for x in found], [x[1:] for x in expected]) < 1e-4


COMPILED = [{}, {"recompute": "full"}, {"dp_shard": 2}, {"dp_replicate": 2}, {"cp": 2}, PP]  # tp is refused


@pytest.mark.slow
@pytest.mark.engines
@pytest.mark.parametrize("layout", COMPILED, ids=[Layout(**layout).name() for layout in COMPILED])
def test_compiled_follows_eager(layout, tmp_path):
    jobs = {"eager": job(layout, (0, 3)), "compiled": job(layout | {"compile": True}, (0, 3))}
    found = run_ranks(tmp_path, Layout(**layout).ranks, jobs, timeout_s=280)
    assert far([x[:1] for x in found["compiled"]], [x[:1] for x in found["eager"]]) < 1e-4
    assert far(found["compiled"], found["eager"]) < 1e-3
