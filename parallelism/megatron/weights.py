"""Which part of which canonical parameter a Megatron parameter holds, and where in it.

Megatron fuses wq, wk and wv into `linear_qkv`: for each group of queries that share a key, its queries, key and value;
and gate and up into `linear_fc1`, gate first. Tensor parallel ranks hold whole groups, and equal parts of both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ...bench.shape import ModelShape

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

NAMES = {  # of megatron, within a layer or without: ours
    "embedding.word_embeddings.weight": "embedding.weight",
    "output_layer.weight": "head.weight",
    "decoder.final_layernorm.weight": "norm.weight",
    "input_layernorm.weight": "attention_norm.weight",
    "pre_mlp_layernorm.weight": "mlp_norm.weight",
    # Transformer Engine keeps the norm with the matrix that follows it
    "self_attention.linear_qkv.layer_norm_weight": "attention_norm.weight",
    "mlp.linear_fc1.layer_norm_weight": "mlp_norm.weight",
    "self_attention.q_layernorm.weight": "attention.q_norm.weight",
    "self_attention.k_layernorm.weight": "attention.k_norm.weight",
    "self_attention.linear_qkv.weight": "attention.wqkv.weight",
    "self_attention.linear_proj.weight": "attention.wo.weight",
    "mlp.linear_fc1.weight": "mlp.up.weight",
    "mlp.linear_fc2.weight": "mlp.down.weight",
}
ROW_PARALLEL = ("linear_proj.weight", "linear_fc2.weight")  # split by input; the other matrices by output
BY_COLUMNS = ("wo", "down")  # the same, by our names


@dataclass(frozen=True)
class Piece:
    """A block of a canonical parameter and the view of the Megatron parameter's local tensor that holds it."""

    name: str
    whole: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    view: Callable[[Tensor], Tensor]  # of a tensor like the parameter; as many elements as `shape`, in its order

    def of(self, whole: Tensor) -> Tensor:
        """The block of the whole canonical tensor."""
        return whole[tuple(slice(o, o + n) for o, n in zip(self.offset, self.shape, strict=True))]

    def put(self, block: Tensor, local: Tensor) -> None:
        view = self.view(local)
        view.copy_(block.reshape(view.shape))

    def take(self, local: Tensor) -> Tensor:
        return self.view(local).reshape(self.shape)


@dataclass(frozen=True)
class LocalWeight:
    """A Megatron parameter of this rank."""

    name: str  # canonical, the fused ones wqkv and gate_up
    parameter: nn.Parameter
    layer: int | None
    pieces: tuple[Piece, ...]

    @property
    def fp32_copy(self) -> Tensor:
        """Of a bf16 parameter: the values that Megatron's optimizer updates."""
        parameter: Any = self.parameter
        return parameter.main_param.detach()

    @property
    def duplicate(self) -> bool:
        """Whether it is the last stage's copy of the tied embedding."""
        return getattr(self.parameter, "shared", False)

    @property
    def split(self) -> bool:
        """Whether the tensor parallel ranks hold different parts of it."""
        return self.parameter.ndim > 1


def local_weights(chunk: GPTModel, shape: ModelShape, tp: int, rank: int) -> list[LocalWeight]:
    """All parameters of a GPTModel, marked as split. rank: place in the tensor parallel group of `tp` ranks."""
    numbers = {str(i): layer.layer_number - 1 for i, layer in enumerate(chunk.decoder.layers)}
    weights = []
    for name, parameter in chunk.named_parameters():
        layer, prefix = None, ""
        if name.startswith("decoder.layers."):
            _, _, index, name = name.split(".", 3)
            layer = numbers[index]
            prefix = f"blocks.{layer}."
        if parameter.ndim > 1 and not getattr(parameter, "tensor_model_parallel", False):
            # Set by Megatron's own initialisation, left out here. Without it the gradient norm counts what the first
            # tensor parallel rank holds only.
            marked: Any = parameter
            marked.tensor_model_parallel = True
            marked.partition_dim, marked.partition_stride = int(name.endswith(ROW_PARALLEL)), 1
        ours = prefix + NAMES[name]
        if name == "output_layer.weight" and shape.tied:
            ours = "embedding.weight"
        if ours.endswith("up.weight") and shape.mlp == "swiglu":
            ours = ours.replace("up.", "gate_up.")
        weights.append(LocalWeight(ours, parameter, layer, tuple(_pieces(ours, parameter, shape, tp, rank))))
    return weights


def _pieces(name: str, parameter: Tensor, shape: ModelShape, tp: int, rank: int) -> list[Piece]:
    if parameter.ndim == 1:
        return [Piece(name, tuple(parameter.shape), (0,), tuple(parameter.shape), lambda local: local)]
    prefix, matrix = name.removesuffix(".weight").rpartition(".")[::2]
    columns = parameter.shape[1]
    if matrix in BY_COLUMNS:
        size = tuple(parameter.shape)
        return [Piece(name, (size[0], columns * tp), (0, columns * rank), size, lambda local: local)]

    def rows(what: str, count: int, view: Callable[[Tensor], Tensor]) -> Piece:
        full = f"{prefix}.{what}.weight".lstrip(".")
        return Piece(full, (count * tp, columns), (count * rank, 0), (count, columns), view)

    if matrix == "wqkv":
        groups, queries, d = shape.kv_heads // tp, shape.heads // shape.kv_heads, shape.head_dim

        def part(begin: int, end: int) -> Callable[[Tensor], Tensor]:
            return lambda local: local.unflatten(0, (groups, queries + 2, d))[:, begin:end]

        return [
            rows("wq", groups * queries * d, part(0, queries)),
            rows("wk", groups * d, part(queries, queries + 1)),
            rows("wv", groups * d, part(queries + 1, queries + 2)),
        ]
    if matrix == "gate_up":
        half = parameter.shape[0] // 2
        return [rows("gate", half, lambda local: local[:half]), rows("up", half, lambda local: local[half:])]
    return [rows(matrix, parameter.shape[0], lambda local: local)]
