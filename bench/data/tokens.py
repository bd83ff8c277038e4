"""tokens: files of token numbers that a tokenizer wrote, memory-mapped (formats: token_file.py)."""

from __future__ import annotations

import os
import pickletools
from pathlib import Path

from .spec import DataSpec, in_use
from .token_file import fingerprint, open_tokens
from .windows import Text, WindowedSource, hold_out


def vocab(spec: DataSpec) -> int:
    """data.vocab, or what nanoGPT's meta.pkl beside the file says.

    Raises
    ------
    ValueError: neither is there. The largest token in the file is no answer: rare tokens may be absent from it, and the
    model's shape would then depend on the text.
    """
    size = spec.vocab or _nanogpt_vocab(Path(os.path.expanduser(in_use(spec.path))).parent / "meta.pkl")
    if not size:
        raise ValueError(
            f"data.vocab is missing: {spec.path!r} does not tell the size of its tokenizer, and its largest token may "
            f"be smaller; give it, such as data.vocab = 50257 for GPT-2"
        )
    return size


def open_source(spec: DataSpec, seq_len: int, seed: int) -> WindowedSource:
    size = vocab(spec)
    name = val_name = f"data.path = {spec.path!r}"
    dtype = in_use(spec.dtype)
    file = open_tokens(in_use(spec.path), dtype, size)
    files = file.files
    if spec.val_path:
        held = open_tokens(spec.val_path, dtype, size, "data.val_path")
        if os.path.samefile(file.files[0], held.files[0]):
            raise ValueError(f"data.val_path = {spec.val_path!r}: is the file that is trained on, data.path")
        val_name = f"data.val_path = {spec.val_path!r}"
        files += held.files
        train, val = [file.tokens], [held.tokens]
    else:
        train, val = hold_out(file.tokens, in_use(spec.val_fraction), file.documents)
    return WindowedSource(Text(train, val, size, lambda: fingerprint(files), name, val_name), seq_len, seed)


def _nanogpt_vocab(meta: Path) -> int | None:
    """`vocab_size` in a nanoGPT meta.pkl, read off the pickle's opcodes: nothing is unpickled, so nothing can run."""
    try:
        if not meta.is_file():
            return None
        named = False
        for opcode, argument, _ in pickletools.genops(meta.read_bytes()):
            if named and isinstance(argument, int) and "INT" in opcode.name:
                return argument if 0 < argument < 2**31 else None
            named = argument == "vocab_size" or (named and opcode.name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"))
        return None
    except (OSError, ValueError, IndexError, UnicodeDecodeError):
        return None
