"""The models that a budget may be spent on: a family of named sizes, or shapes by one rule.

The rule: layers L from 4 to 128, width 128 L, L heads of 128, SwiGLU of 8/3 width. Width over layers is 128 in all of
them, the middle of the range over which the loss hardly depends on it (Kaplan et al., arXiv 2001.08361, figure 5:
from 30 to 300), so that N = 12 L width^2 is the only choice that is left.
"""

from __future__ import annotations

from ...bench.shape import SIZES, ModelShape
from ...results.wording import did_you_mean
from .question import model_shape

ASPECT, HEAD = 128, 128
LAYERS = (4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128)
VOCAB, SEQ_LEN = 32768, 2048


def shapes(models: str | None, seq_len: int | None) -> dict[str, ModelShape]:
    """By name, ascending in parameters. models: a family (`diloco`), names with commas between; None: the rule.

    Raises
    ------
    ValueError: no such family or size
    """
    if models is None:
        found = {f"{layers}x{ASPECT * layers}": _by_rule(layers, seq_len or SEQ_LEN) for layers in LAYERS}
    else:
        found = {name: model_shape(name, seq_len) for name in _names(models)}
    return dict(sorted(found.items(), key=lambda item: item[1].params_total))


def _names(models: str) -> list[str]:
    if "=" in models:
        return [models]
    names: list[str] = []
    for part in models.split(","):
        family = [name for name in SIZES if name == part or name.startswith(f"{part}-")]
        if not family:
            known = sorted({name.partition("-")[0] for name in SIZES} | set(SIZES))
            raise ValueError(f"no model or family {part!r}: {did_you_mean(part, known)}")
        names += [part] if part in SIZES and "-" in part else family
    return names


def _by_rule(layers: int, seq_len: int) -> ModelShape:
    width = ASPECT * layers
    ffn = -(-8 * width // 3 // 256) * 256
    heads = width // HEAD
    return ModelShape(layers, heads, heads, width, ffn, VOCAB, seq_len)
