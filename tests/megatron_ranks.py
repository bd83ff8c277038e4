"""The megatron engine in the worlds of engine_ranks.py."""

import engine_ranks
import parity_ranks
import torch.distributed as dist
from engine_ranks import CPU, Run

from scalade.parallelism.megatron import engine as megatron


def forced(case: dict) -> dict:
    """Parity of a case with settings of Megatron-Core that the engine forces undone: whether that is still needed."""
    original = megatron.configuration

    def undone(*arguments):
        config = original(*arguments)
        for name, value in case["undo"].items():
            setattr(config, name, value)
        return config

    megatron.configuration = undone
    try:
        return parity_ranks.train(case, CPU)
    finally:
        megatron.configuration = original


def leaves_nothing(case: dict) -> dict:
    """What is left of an engine that was closed, in the process and in Megatron-Core."""
    from megatron.core import parallel_state

    had_world = dist.is_initialized()
    Run(case).engine.close()
    named = [name for name, value in vars(parallel_state).items()
             if name.startswith("_") and name.isupper() and isinstance(value, dist.ProcessGroup)]  # fmt: skip
    return {"groups": named, "world_as_before": dist.is_initialized() == had_world}


if __name__ == "__main__":
    engine_ranks.RECIPE["z_loss"] = 0.0  # megatron's loss has none
    engine_ranks.GROUP_OF_ONE = False  # the engine then makes and takes back its own
    engine_ranks.KINDS |= {"forced": forced, "leaves_nothing": leaves_nothing}
    engine_ranks.main()
