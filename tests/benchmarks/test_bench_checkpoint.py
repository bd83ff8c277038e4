"""Seconds of CPU to save and to load a checkpoint, against torch.distributed.checkpoint on the same tensors.

CPU time, as the wall-clock time of a save is the disk's. Ours hashes all of it, twice: as it is written, and before it
is read. Theirs does not check what it reads.
"""

import time
from pathlib import Path

import pytest
import torch

from scalade.bench.recipe import Recipe
from scalade.bench.saved import Outgoing, Saved
from scalade.bench.shape import ModelShape
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.engines import build_engine
from scalade.parallelism.layout import Layout

SHAPES = {
    "tiny": dict(layers=2, heads=2, kv_heads=2, width=32, ffn=48, vocab=256, seq_len=16),
    "100 M": dict(layers=12, heads=12, kv_heads=12, width=768, ffn=2048, vocab=10240, seq_len=16),
}
ROUNDS = 3


def cpu_s(function, *arguments) -> float:
    begin = time.process_time()
    function(*arguments)
    return time.process_time() - begin


@pytest.mark.parametrize("size", SHAPES)
def test_checkpoint(figure, size, tmp_path):
    figure(f"checkpoint saved and loaded, {size}", lambda: measured(size, tmp_path), unit="s", target=1.0)


def measured(size: str, folder: Path) -> tuple[list[float], list[float]]:
    """Of save and load together: ours, theirs; the first round is left out."""
    import torch.distributed.checkpoint as dcp

    shape, recipe = ModelShape(**SHAPES[size]), Recipe(global_batch=4, steps=4, lr=1e-3)
    engine = build_engine(shape, recipe, Layout(), Outer(), torch.device("cpu"))
    engine.train_step(torch.zeros(4, shape.seq_len + 1, dtype=torch.int64), 1e-3)
    state = {key: tensor for each in engine.checkpoint._tensors().values() for key, tensor in each.items()}
    ours, theirs = [], []
    for _ in range(ROUNDS + 1):
        out = Outgoing(folder / "ours", folder)
        saved = cpu_s(engine.save, out)
        ours.append(saved + cpu_s(engine.load, Saved(out.top, out.below, out.digests)))
        saved = cpu_s(lambda: dcp.save(state, checkpoint_id=str(folder / "theirs")))
        theirs.append(saved + cpu_s(lambda: dcp.load(state, checkpoint_id=str(folder / "theirs"))))
    return ours[1:], theirs[1:]
