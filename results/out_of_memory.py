"""Whether an exception says that memory ran out: by its type and errno; by its text only where a library has no more.

PyTorch's allocators raise a plain RuntimeError with one of OOM_TEXTS on CPU, and OutOfMemoryError on a GPU
(c10/core/CPUAllocator.cpp, torch/csrc/Exceptions.h); CUDA's own calls AcceleratorError, and JAX XlaRuntimeError.
"""

from __future__ import annotations

import errno

LIBRARIES = ("RuntimeError", "AcceleratorError", "XlaRuntimeError", "JaxRuntimeError")
OOM_TEXTS = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):  # its text names files
        return error.errno == errno.ENOMEM
    return type(error).__name__ in LIBRARIES and any(part in str(error).lower() for part in OOM_TEXTS)
