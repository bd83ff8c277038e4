"""Three steps of one process, as a rank makes them: prints its largest resident memory in bytes.

memory_process.py WIDTH LAYERS MICROBATCHES
"""

import sys

from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.layout import Layout


def case(width: int, layers: int, microbatches: int) -> tuple[ModelShape, Recipe, Layout, Outer]:
    shape = ModelShape(layers, 4, 4, width, 3 * width, vocab=2048, seq_len=256)
    return shape, Recipe(global_batch=16, steps=3), Layout(microbatches=microbatches), Outer()


if __name__ == "__main__":
    import torch

    from scalade.bench.device import peak_resident_bytes
    from scalade.launch.rank import main as rank_main
    from scalade.parallelism.engines import build_engine

    assert rank_main  # what a rank imports is resident, too
    torch.set_num_threads(1)
    parts = case(*map(int, sys.argv[1:]))
    engine = build_engine(*parts, torch.device("cpu"))
    tokens = torch.arange(16 * 257).reshape(16, 257) % 2048
    for _ in range(3):
        engine.train_step(tokens, 1e-3)
    print(peak_resident_bytes())
