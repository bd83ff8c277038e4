"""Operations of a block and of a step, counted again from the real engine by torch's profiler."""

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.engines import build_engine
from scalade.parallelism.layout import Layout
from scalade.parallelism.predict import host
from scalade.parallelism.predict.configs import from_cases


def shape_of(layers):
    return ModelShape(layers=layers, heads=2, kv_heads=2, width=32, ffn=64, vocab=64, seq_len=16)


def operations(layers, **layout):
    recipe = Recipe(global_batch=4, steps=1)
    engine = build_engine(shape_of(layers), recipe, Layout(**layout), Outer(), torch.device("cpu"))
    tokens = torch.arange(4 * 17).reshape(4, 17) % 64
    engine.train_step(tokens, 1e-3)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        engine.train_step(tokens, 1e-3)
    return sum(event.count for event in found.key_averages())


def counted(layers, **layout):
    row = shape_of(layers), Recipe(global_batch=4, steps=1), Layout(**layout), Outer()
    each = host.calls(from_cases([row]))
    m = layout.get("microbatches", 1)
    in_python = m * layers * host.IN_PYTHON.get(layout.get("recompute"), 0.0)  # no operations of torch
    return -in_python + float(
        np.sum(m * (layers * (each.forward + each.backward) + each.ends) + layers * each.update + each.step)
    )


@pytest.mark.parametrize("layout", [{}, {"microbatches": 2}, {"recompute": "full"}, {"recompute": "selective"}])
def test_a_block_dispatches_as_many_operations_as_are_counted_for_it(layout):
    more = operations(4, **layout) - operations(2, **layout)
    assert counted(4, **layout) - counted(2, **layout) == pytest.approx(more, rel=0.06)
    assert counted(4, **layout) == pytest.approx(operations(4, **layout), rel=0.06)


def test_layouts_dispatch_more_than_one_process():
    """Each setting that splits a block adds operations of its own."""
    layouts = [Layout(), Layout(dp_replicate=2), Layout(dp_shard=2), Layout(tp=2), Layout(cp=2)]
    each = host.calls(from_cases([(shape_of(2), Recipe(global_batch=4, steps=1), one, Outer()) for one in layouts]))
    per_block = each.forward + each.backward + each.update
    assert per_block.tolist() == pytest.approx([776, 839, 1007 + 2300, 1147 + 3500, 1110 + 2200])
