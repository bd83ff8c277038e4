"""What names a data source in a study: its settings, validated. Needs neither torch nor numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from importlib import import_module
from types import ModuleType
from typing import TypeVar

from ..mistakes import Finder

T = TypeVar("T")

SOURCES: dict[str, dict[str, object]] = {
    "stdlib": {"val_fraction": 0.05},
    "tokens": {"path": None, "val_path": None, "val_fraction": 0.05, "vocab": None, "dtype": "auto"},
    "zipf-markov": {"vocab": 512, "zipf_exponent": 1.0, "zipf_levels": 4, "chain_seed": 0},
}
"""The registry: the settings each source takes, with their defaults. The source itself is the module of that name
beside this file (`-` is `_`), which has `open_source(spec, seq_len, seed)` and, for where data.vocab is not given and
the tokens are no bytes, `vocab(spec)`."""

BYTES = ("stdlib",)  # sources whose tokens are bytes
UNLIMITED = ("zipf-markov",)  # sources that never run out of sequences
HOLDS = {
    "uint8": 1 << 8,
    "int16": 1 << 15,
    "uint16": 1 << 16,
    "int32": 1 << 31,
    "uint32": 1 << 32,
    "int64": 1 << 63,
    "uint64": 1 << 64,
}
"""The dtypes a flat file of tokens may have, little-endian: one more than the largest token each holds."""
DTYPES = ("auto", *HOLDS)
RANGES = {"vocab": (1, 2**31), "zipf_exponent": (0, 100), "zipf_levels": (1, 4096), "chain_seed": (0, 2**63 - 1)}


def in_use(setting: T | None) -> T:
    """A setting of `DataSpec` that belongs to its source: it was set or has its default, and is never None."""
    assert setting is not None
    return setting


@dataclass(frozen=True)
class DataSpec:
    """Where the tokens come from. A setting that is not the source's own is None, and null in the table.

    Raises
    ------
    ValueError: an unknown source, a setting out of range, missing, or of another source
    """

    source: str = "stdlib"
    path: str | None = None  # tokens: a flat .bin, or Megatron's .bin/.idx pair by either name or their common prefix
    val_path: str | None = None  # tokens: a file of held-out tokens, in place of a fraction of `path`
    val_fraction: float | None = None  # stdlib, tokens: share held out, never trained on; zipf-markov needs none
    vocab: int | None = None  # tokens: the tokenizer's size; zipf-markov: the number of states
    dtype: str | None = None  # tokens, flat files: auto, uint8, int16, uint16, int32, uint32, int64, uint64
    zipf_exponent: float | None = None  # zipf-markov: p(rank) ~ rank^-exponent
    zipf_levels: int | None = None  # zipf-markov: scales of structure
    chain_seed: int | None = None  # zipf-markov: which chain (the recipe's seed draws from it)

    def __post_init__(self) -> None:
        find = Finder("data")
        if self.source not in SOURCES:
            find.add("source", f"source = {self.source!r}: allowed are {', '.join(SOURCES)}")
            find.done()  # the other settings belong to a source that is not known
        self._set_defaults(find)
        if self.source == "tokens" and not self.path:
            find.add("path", "path is missing: source 'tokens' reads the file it names (.bin, or Megatron's pair)")
        self._check_dtype(find)
        if self.val_fraction is not None and not 0 <= self.val_fraction < 1:  # also refuses NaN
            find.add("val_fraction", f"val_fraction = {self.val_fraction}: must be at least 0 and less than 1")
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                find.add(name, f"{name} = {value}: must be between {low} and {high}")
        if self.source == "zipf-markov":
            self._check_chain(find)
        find.done()

    def _set_defaults(self, find: Finder) -> None:
        """Give each setting of the source that is not set its default; report those of another source."""
        settings = SOURCES[self.source]
        for field in fields(self)[1:]:
            if getattr(self, field.name) == "":
                object.__setattr__(self, field.name, None)
            value = getattr(self, field.name)
            if value is None:
                object.__setattr__(self, field.name, settings.get(field.name))
            elif field.name not in settings:
                takes = ", ".join(settings)
                line = f"{field.name} = {value!r}: not for source {self.source!r}, which takes {takes}"
                find.add(f"{field.name} source", line)
            elif field.name == "val_fraction" and self.val_path:
                find.add("val_fraction val_path", f"val_fraction = {value}: give this or data.val_path, not both")
        if self.val_path:
            object.__setattr__(self, "val_fraction", None)

    def _check_dtype(self, find: Finder) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            find.add("dtype", f"dtype = {self.dtype!r}: allowed are {', '.join(DTYPES)}")
        if self.dtype in HOLDS and self.vocab is not None and self.vocab > HOLDS[self.dtype]:
            line = f"dtype = {self.dtype!r}: its tokens end at {HOLDS[self.dtype] - 1}, data.vocab = {self.vocab} "
            find.add("dtype vocab", f"{line}needs a wider one; leave it at 'auto', or write what the file holds")

    def _check_chain(self, find: Finder) -> None:
        states, levels = in_use(self.vocab), in_use(self.zipf_levels)
        if find.wrong("vocab"):
            return
        if not 2 <= states <= 4096:
            find.add("vocab source", f"vocab = {states}: must be between 2 and 4096 for source 'zipf-markov'")
        elif levels > states and not find.wrong("zipf_levels"):
            find.add("zipf_levels vocab", f"zipf_levels = {levels}: must be at most data.vocab = {states}")

    def module(self) -> ModuleType:
        """The source's own module."""
        return import_module("." + self.source.replace("-", "_"), __package__)


def vocab_of(spec: DataSpec) -> int:
    """Vocabulary of a source: every token is below it. Opens no data (tokens: may look at nanoGPT's meta.pkl).

    Raises
    ------
    ValueError: the source cannot tell, and data.vocab is not given
    """
    if spec.source in BYTES:
        return 256
    return spec.vocab or spec.module().vocab(spec)  # the module brings numpy, which planning a study need not wait for
