"""Seconds to save and to load a checkpoint, against torch.distributed.checkpoint on the same tensors, in turns.

CPU time of the process and wall-clock time, which on a save is mostly the disk's: both sync what they write, and both
read it from the page cache. Ours hashes all of it, as it is written and as it is read; theirs does not check what it
reads. So a load of ours is also held against a SHA-256 of the same file and no more.
"""

import hashlib
import time
from collections import defaultdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from scalade.bench.checkpoint_files import Outgoing, Saved
from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.engines import build_engine
from scalade.parallelism.layout import Layout

SHAPES = {
    "tiny": dict(layers=2, heads=2, kv_heads=2, width=32, ffn=48, vocab=256, seq_len=16),
    "100 M": dict(layers=12, heads=12, kv_heads=12, width=768, ffn=2048, vocab=10240, seq_len=16),
}
ROUNDS = {"tiny": 20, "100 M": 5}  # after a first one, which is left out


@pytest.mark.parametrize("clock", ["CPU", "wall"])
@pytest.mark.parametrize("what", ["saved", "loaded", "saved and loaded"])
@pytest.mark.parametrize("size", SHAPES)
def test_checkpoint(figure, size, what, clock):
    def pairs():
        found, parts = measured(size), what.split(" and ")
        sides = ([found[clock, part, side] for part in parts] for side in ("ours", "theirs"))
        return tuple([sum(each) for each in zip(*side, strict=True)] for side in sides)

    figure(f"checkpoint {what}, {size}, {clock}", pairs, unit="s", target=1.0)


@pytest.mark.parametrize("clock", ["CPU", "wall"])
def test_a_load_against_the_hash_alone(figure, clock):
    def pairs():
        return measured("100 M")[clock, "loaded", "ours"], measured("100 M")[clock, "hashed", "alone"]

    figure(f"checkpoint loaded, 100 M, against its SHA-256, {clock}", pairs, unit="s", target=1.25)


def test_rate_of_the_hash(figure):
    def rates():
        found = measured("100 M")
        return [found["bytes"][0] / 1e9 / seconds for seconds in found["CPU", "hashed", "alone"]], None

    figure("SHA-256 of a file in the page cache, per CPU second", rates, unit="GB/s", target=None)


@cache
def measured(size: str) -> dict:
    """Seconds of each round by (clock, part, side)."""
    import torch.distributed.checkpoint as dcp

    shape, recipe = ModelShape(**SHAPES[size]), Recipe(global_batch=4, steps=4, lr=1e-3)
    engine = build_engine(shape, recipe, Layout(), Outer(), torch.device("cpu"))
    engine.train_step(torch.zeros(4, shape.seq_len + 1, dtype=torch.int64), 1e-3)
    state = {key: tensor for each in engine.checkpoint._tensors().values() for key, tensor in each.items()}
    seconds = defaultdict(list)

    def timed(part, side, function):
        cpu, wall = time.process_time(), time.perf_counter()
        function()
        seconds["CPU", part, side].append(time.process_time() - cpu)
        seconds["wall", part, side].append(time.perf_counter() - wall)

    with TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        out, theirs = Outgoing(folder / "ours", folder), str(folder / "theirs")
        saves = [("ours", lambda: engine.save(out)), ("theirs", lambda: dcp.save(state, checkpoint_id=theirs))]
        loads = [
            ("ours", lambda: engine.load(Saved(out.top, out.below, out.digests))),
            ("theirs", lambda: dcp.load(state, checkpoint_id=theirs)),
        ]
        for number in range(ROUNDS[size] + 1):
            for part, sides in (("saved", saves), ("loaded", loads)):
                for side, function in sides if number % 2 else sides[::-1]:
                    timed(part, side, function)
            for file in out.top.glob("*.safetensors"):
                timed("hashed", "alone", lambda file=file: digest(file))
                seconds["bytes"].append(file.stat().st_size)
    return {key: values[1:] for key, values in seconds.items()}


def digest(file: Path) -> str:
    with open(file, "rb", buffering=0) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
