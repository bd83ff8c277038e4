"""Resident memory of a rank's process on a CPU before it holds a model: interpreter, libraries, gloo.

Measured as VmHWM of short runs, less what the model says their tensors take (docs/predict.md, "Memory"): CPython with
torch, numpy and gloo 262 MiB; what FSDP2, tensor, context and pipeline parallelism and recomputation import
(torch.distributed.tensor, torch._dynamo) 75; DeepSpeed 100, and 55 where it shards; Megatron-Core 245. The C
allocator's arenas keep 16% more than was ever alive, and what tensor and context parallelism gather and scatter passes
through copies of half the activations (torch engine).
"""

from __future__ import annotations

import numpy as np

from .configs import Configs

MIB = 2**20
INTERPRETER = 262 * MIB
DISTRIBUTED = 75 * MIB
COLLECTIVES = 0.5  # of the activations
OF_ENGINE = {"deepspeed": 100 * MIB, "megatron": 245 * MIB}
SHARDED = {"deepspeed": 55 * MIB}
ARENAS = 0.16


def process_bytes(c: Configs, engine: str, interpreter: float = 0.0) -> np.ndarray:
    """Bytes (n,) or a number. interpreter: of a plain process as it was measured on this machine; 0: INTERPRETER."""
    base = (interpreter or INTERPRETER) + OF_ENGINE.get(engine, 0)
    sharded = np.asarray(c.dp_shard) * c.cp > 1
    if engine in OF_ENGINE:
        return base + np.where(sharded, SHARDED.get(engine, 0), 0)
    imports = sharded | _split(c) | (np.asarray(c.pp) > 1) | (np.asarray(c.recompute) > 0)
    return base + np.where(imports, DISTRIBUTED, 0)


def collective_bytes(c: Configs, engine: str, activations: np.ndarray) -> np.ndarray:
    """Copies through which activations are gathered and scattered; activations: bytes, (r, n)."""
    return np.where(_split(c) & (engine not in OF_ENGINE), COLLECTIVES * activations, 0)


def _split(c: Configs) -> np.ndarray:
    """Whether ranks hold parts of the same activations."""
    return (np.asarray(c.tp) > 1) | (np.asarray(c.cp) > 1)
