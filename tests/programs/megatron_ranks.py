"""The megatron engine in the worlds of engine_ranks.py."""

import engine_ranks
import parity_ranks
import torch
import torch.distributed as dist
from engine_ranks import CPU, Run

from scalade.parallelism.layout import Layout
from scalade.parallelism.megatron import engine as megatron
from scalade.parallelism.predict.memory import memory_of_case


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
    named = [
        name
        for name, value in vars(parallel_state).items()
        if name.startswith("_") and name.isupper() and isinstance(value, dist.ProcessGroup)
    ]
    return {"groups": named, "world_as_before": dist.is_initialized() == had_world}


def kept(case: dict) -> dict:
    """Bytes that autograd saves in a forward pass, parameters left out, and what is predicted of them."""
    run, storages = Run(case), {}
    own = {h.parameter.untyped_storage().data_ptr() for h in run.engine.held}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    tokens = torch.from_numpy(run.source.train_rows(*run.engine.rows()))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run.engine.chunks[0](tokens[:, :-1].contiguous(), None, None, labels=tokens[:, 1:].contiguous())
    run.engine.close()
    memory = memory_of_case(run.shape, run.recipe, Layout(**case["layout"]), fused_norm=False)
    # What the loss's backward pass adds is not yet there.
    element = 4 if run.recipe.precision == "fp32" else 8
    predicted = memory.activations + memory.logits - element * tokens[:, 1:].numel() * run.shape.vocab
    return {"bytes": sum(size for size, _ in storages.values()), "predicted": predicted}


if __name__ == "__main__":
    engine_ranks.RECIPE["z_loss"] = 0.0  # megatron's loss has none
    engine_ranks.GROUP_OF_ONE = False  # the engine then makes and takes back its own
    engine_ranks.KINDS |= {"forced": forced, "kept": kept, "leaves_nothing": leaves_nothing}
    engine_ranks.main()
