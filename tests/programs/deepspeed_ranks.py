"""The deepspeed engine in the worlds of engine_ranks.py."""

import contextlib
import os
import sys

import engine_ranks
import torch


def leaves_nothing(case: dict) -> dict:
    """What is left in the process of an engine that was closed."""
    from deepspeed.utils import groups

    linear = torch.nn.functional.linear
    run = engine_ranks.Run(case)
    run.steps(0, 1)
    run.engine.close()
    kept = ("_TENSOR_MODEL_PARALLEL_GROUP", "_DATA_PARALLEL_GROUP", "_ZERO_PARAM_INTRA_PARALLEL_GROUP", "mpu")
    return {"linear": torch.nn.functional.linear is linear, "groups": [n for n in kept if getattr(groups, n)]}


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    with contextlib.redirect_stdout(sys.stderr):  # as parallelism.deepspeed.package does
        import deepspeed  # noqa: F401
    engine_ranks.KINDS["leaves_nothing"] = leaves_nothing
    engine_ranks.main()
