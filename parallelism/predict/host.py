"""Operations that the host dispatches, on a device that computes in the thread that dispatches them (a CPU).

There an operation costs its computation and its dispatch, one after the other; on a GPU dispatch is hidden behind the
computation (layer.py). Counts are those of torch's profiler over the torch engine's step (measure.profile_steps: the
table `ops`; torch 2.13, views and nested operations counted), from models of 2 and 6 blocks whose difference is a
block, and 1 and 2 microbatches whose difference is a microbatch. tests/predict/test_predict_host.py counts again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .configs import Configs

FORWARD, BACKWARD = 240.0, 419.0  # of a block, of a microbatch; forward as full recomputation counts it
UPDATE = 117.0  # of a block, of a step: optimizer and what follows a gradient
ENDS = 208.0  # of a microbatch: embedding, head, loss
STEP = 90.0  # of a step
FULL, SELECTIVE = 267.0, 568.0  # recomputation, of a block
IN_PYTHON = {
    "full": 430.0,
    "selective": 1900.0,
    "sharded": 2300.0,
    "kept": 1600.0,
    "tensor": 3500.0,
    "tensor_alone": 1200.0,
    "context": 2200.0,
    "messages": 500.0,  # of a microbatch, for each stage of a rank of a pipeline
}
"""What a layout adds to a block in Python (hooks of FSDP2, autograd functions, saved tensors, a mode that sees every
operation), as so many operations more: processor time of the ranks' threads beyond the model, means over the two
reference models of `scalade calibrate` on two cores. The factor `host` of a calibration moves it with the counts."""
TENSOR, TENSOR_ALONE = 371.0, 153.0  # of a block: with sequence parallel norms, without
CONTEXT, ULYSSES = 334.0, 515.0
SHARDED, KEPT = 231.0, 157.0  # FSDP2: with resharding after the forward pass, without
COPIED = 63.0  # DDP
MESSAGES = 27.0  # a rank of a pipeline


@dataclass(frozen=True)
class Calls:
    """Operations, (n,) each."""

    forward: np.ndarray  # of a block and a microbatch
    backward: np.ndarray
    ends: np.ndarray  # of a microbatch, on the stages that hold embedding and head
    update: np.ndarray  # of a step, for each block
    step: np.ndarray  # of a step


def calls(configs: Configs) -> Calls:
    """Of each configuration."""
    c = configs
    tp, cp, dp = (np.asarray(each) > 1 for each in (c.tp, c.cp, c.dp_replicate))
    shards = np.asarray(c.dp_shard) * np.asarray(c.cp) > 1
    recompute = np.asarray(c.recompute)
    python = IN_PYTHON
    with_sp, without = TENSOR + python["tensor"], TENSOR_ALONE + python["tensor_alone"]
    tensor = np.where(tp, np.where(np.asarray(c.sp) > 0, with_sp, without), 0.0)
    # A context-parallel block is sharded too: CONTEXT was counted with it.
    context = np.where(cp, np.where(np.asarray(c.cp_method) == 1, ULYSSES, CONTEXT) + python["context"], 0.0)
    sharded = np.where(
        shards & ~cp,
        np.where(np.asarray(c.reshard_after_forward) > 0, SHARDED + python["sharded"], KEPT + python["kept"]),
        0.0,
    )
    full, selective = FULL + IN_PYTHON["full"], SELECTIVE + IN_PYTHON["selective"]
    again = np.select([recompute == 2, recompute == 1], [full, selective], 0.0)
    more = tensor + context + sharded
    copied = np.where(dp & ~shards & ~tp, COPIED, 0.0)
    return Calls(
        forward=FORWARD + more / 3,
        backward=BACKWARD + more * 2 / 3 + again,
        ends=ENDS + np.where(np.asarray(c.pp) > 1, python["messages"] * c.virtual_stages, 0.0),
        update=UPDATE + copied,
        step=STEP + np.where(np.asarray(c.pp) > 1, MESSAGES, 0.0),
    )
