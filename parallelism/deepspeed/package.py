"""The deepspeed package, imported so that it neither writes to our standard output nor compiles anything by itself.

Its logger and its prints go to standard output by default: both are sent to standard error. On CPU it would compile
its shared-memory collectives at the first use (two minutes): that operator is declared not there.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType

import torch


def load(device: torch.device) -> ModuleType:
    """The package, for this device; the process group stands."""
    os.environ["DS_ACCELERATOR"] = device.type
    os.environ["LOCAL_RANK"] = str(device.index or 0)  # which of the visible devices it takes
    with quiet():
        import deepspeed

        if device.type == "cpu":
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(verbose=False)
    return deepspeed


def require_nvme() -> None:
    """
    Raises
    ------
    ValueError: the operator that reads and writes disks cannot be compiled here
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder

    with quiet():
        possible = AsyncIOBuilder().is_compatible(verbose=False)
    if not possible:
        raise ValueError("offloading to nvme: DeepSpeed has to compile its disk operator, which needs libaio-dev")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Printed output goes to standard error, which the launcher keeps in the run's folder."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def forget() -> None:
    """Take back what an engine leaves in the process: the groups it keeps in a module, and stage 3's own
    torch.nn.functional.linear."""
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses as Patched
    from deepspeed.utils import groups

    groups.mpu = None
    for name in (
        "_TENSOR_MODEL_PARALLEL_GROUP",
        "_MODEL_PARALLEL_GROUP",
        "_DATA_PARALLEL_GROUP",
        "_ZERO_PARAM_INTRA_PARALLEL_GROUP",
    ):
        assert hasattr(groups, name), f"deepspeed.utils.groups.{name} is gone: look what holds its groups now"
        setattr(groups, name, None)
    if hasattr(Patched, "linear_bk"):
        torch.nn.functional.linear = Patched.linear_bk
