"""The model's shape: what decides its parameters, and the named ladder of sizes.

Sources of the named shapes: DiLoCo scaling ladder arXiv 2503.09799 Table 3; GPT-2 (Radford 2019);
GPT-3 arXiv 2005.14165 Table 2.1; Llama 3 arXiv 2407.21783 Table 3. The `tiny-` sizes are ours, for CPUs. The GPTs'
depth and widths are taken over, their body is not: no biases, no learned positions, RMSNorm for LayerNorm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from .mistakes import Finder


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only transformer (RMSNorm, RoPE, causal attention), pre-norm, no biases."""

    layers: int  # transformer blocks
    heads: int  # attention heads; width / heads must be even
    kv_heads: int  # < heads: grouped-query attention
    width: int  # residual stream, d_model
    ffn: int  # hidden width of the MLP
    vocab: int  # tokens the embedding and the head know
    seq_len: int  # tokens of one sequence
    mlp: str = "swiglu"  # swiglu: three matrices; gelu: two
    qk_norm: bool = False  # RMSNorm on queries and keys
    tied: bool = False  # the head is the embedding
    rope_theta: float = 10_000.0  # base of the rotary wavelengths
    norm_eps: float = 1e-5  # of RMSNorm

    def __post_init__(self) -> None:
        find = Finder("model")
        self._check_dimensions(find)
        if not find.wrong("width") and not find.wrong("heads"):
            self._check_head_dim(find)
        if not find.wrong("heads") and not find.wrong("kv_heads") and self.heads % self.kv_heads:
            find.add("kv_heads heads", f"kv_heads = {self.kv_heads}: must divide model.heads = {self.heads}")
        if self.mlp not in MLPS:
            find.add("mlp", f"mlp = {self.mlp!r}: allowed are {', '.join(MLPS)}")
        for name in ("rope_theta", "norm_eps"):
            if not 0 < getattr(self, name) < math.inf:  # also refuses NaN
                find.add(name, f"{name} = {getattr(self, name)}: must be more than 0 and finite")
        find.done()

    def _check_dimensions(self, find: Finder) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and not 1 <= value < MAX_DIMENSION:
                find.add(field.name, f"{field.name} = {value}: must be between 1 and {MAX_DIMENSION - 1}")

    def _check_head_dim(self, find: Finder) -> None:
        if self.width % self.heads:
            find.add("width heads", f"width = {self.width}: must be a multiple of model.heads = {self.heads}")
        elif self.head_dim % 2:
            line = f"heads = {self.heads}: width/heads = {self.head_dim} must be even for RoPE"
            find.add("heads width", line)

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def params_embedding(self) -> int:
        """Parameters of the input embedding and, when untied, of the output head."""
        return self.vocab * self.width * (1 if self.tied else 2)

    @property
    def params_layer(self) -> int:
        """Parameters of one block, norms included."""
        attention = 2 * self.width * self.width + 2 * self.width * self.kv_heads * self.head_dim
        mlp = MLPS[self.mlp] * self.width * self.ffn
        norms = 2 * self.width + (2 * self.head_dim if self.qk_norm else 0)
        return attention + mlp + norms

    @property
    def params_non_embedding(self) -> int:
        """Everything but embedding and head (Kaplan's N, norms counted)."""
        return self.layers * self.params_layer + self.width

    @property
    def params_total(self) -> int:
        return self.params_embedding + self.params_non_embedding

    @property
    def params_matmul(self) -> int:
        """Weights a token is multiplied with: blocks' matrices and the head (tied or not), no norms, no look-up."""
        attention = 2 * self.width * self.width + 2 * self.width * self.kv_heads * self.head_dim
        return self.layers * (attention + MLPS[self.mlp] * self.width * self.ffn) + self.vocab * self.width


MAX_DIMENSION = 1_000_000  # parameters, tokens and FLOPs of anything below it fit the table's columns
BYTES = 256  # the vocabulary of a size that names none, on data that is text as bytes
MLPS = {"swiglu": 3, "gelu": 2}  # matrices of width x ffn


def _named() -> dict[str, dict]:
    diloco = {
        "35m": (6, 8, 512, 2048),
        "90m": (9, 12, 768, 3072),
        "180m": (12, 16, 1024, 4096),
        "335m": (15, 20, 1280, 5120),
        "550m": (18, 24, 1536, 6144),
        "1.3b": (24, 32, 2048, 8192),
        "2.4b": (30, 40, 2560, 10240),
        "4b": (36, 48, 3072, 12288),
        "10b": (48, 64, 4096, 16384),
    }
    gpt2 = {"": (12, 12, 768), "-medium": (24, 16, 1024), "-large": (36, 20, 1280), "-xl": (48, 25, 1600)}
    llama3 = {"8b": (32, 32, 4096, 14336), "70b": (80, 64, 8192, 28672), "405b": (126, 128, 16384, 53248)}
    tiny = {
        "100k": (2, 2, 48, 128),
        "300k": (3, 4, 80, 224),
        "800k": (4, 4, 128, 320),
        "2m": (5, 4, 192, 512),
        "5m": (6, 8, 256, 704),
        "12m": (8, 8, 352, 960),
    }
    named: dict[str, dict[str, Any]] = {}
    for name, (layers, heads, width, ffn) in tiny.items():
        named[f"tiny-{name}"] = dict(layers=layers, heads=heads, width=width, ffn=ffn, tied=True)
    for name, (layers, heads, width, ffn) in diloco.items():
        named[f"diloco-{name}"] = dict(
            layers=layers,
            heads=heads,
            width=width,
            ffn=ffn,
            mlp="gelu",
            qk_norm=True,
            tied=True,
            vocab=32768,
            seq_len=2048,
        )
    for name, (layers, heads, width) in gpt2.items():
        named[f"gpt2{name}"] = dict(
            layers=layers, heads=heads, width=width, ffn=4 * width, mlp="gelu", tied=True, vocab=50257, seq_len=1024
        )
    named["gpt3-175b"] = dict(
        layers=96, heads=96, width=12288, ffn=49152, mlp="gelu", tied=True, vocab=50257, seq_len=2048
    )
    for name, (layers, heads, width, ffn) in llama3.items():
        named[f"llama3-{name}"] = dict(
            layers=layers, heads=heads, kv_heads=8, width=width, ffn=ffn, vocab=128256, seq_len=8192, rope_theta=5e5
        )
    return named


SIZES: dict[str, dict] = _named()
"""Named sizes: keyword arguments of ModelShape. kv_heads defaults to heads; vocab and seq_len, where the name
does not fix them, come from the study (vocab: that of the data)."""
NAMING = ("layers", "heads", "kv_heads", "width", "ffn", "mlp", "qk_norm", "vocab", "tied")  # of a name


def name_of(shape: ModelShape, size: str = "") -> str:
    """One name for one shape: the size's, and what differs from it; `8x64.h8kv4.f128` without a size.

    The length of the sequences is not in it. Whether the head is tied is, where the size names its vocabulary too, as
    the head is then a large part of what the name counts; `tiny-` sizes are taken with either.
    """
    own = {"kv_heads": shape.heads, "mlp": "swiglu", "qk_norm": False, "vocab": BYTES} | SIZES.get(size, {})
    own |= {"tied": SIZES[size].get("tied", False) if "vocab" in SIZES.get(size, {}) else shape.tied}
    if not size:
        grouped = f"kv{shape.kv_heads}" if shape.kv_heads != shape.heads else ""
        size = f"{shape.layers}x{shape.width}.h{shape.heads}{grouped}.f{shape.ffn}"
        own |= {name: getattr(shape, name) for name in ("layers", "heads", "kv_heads", "width", "ffn")}
    changed = [name for name in NAMING if getattr(shape, name) != own[name]]
    return ",".join([size, *(f"{name}={getattr(shape, name)}" for name in changed)])
