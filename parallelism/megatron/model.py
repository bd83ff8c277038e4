"""bench.model's Decoder, built of Megatron-Core's parts: the same arithmetic, its own layers, splits and kernels.

With a GPU and Transformer Engine its layers and fused kernels are used, elsewhere Megatron-Core's own layers ("local
spec"). None of the path with a GPU is covered by this project's tests, which run where there is none.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from ...bench.model import COMPUTE_DTYPES
from ...bench.recipe import Recipe
from ...bench.shape import ModelShape
from ..layout import Layout, stage_layers


class Norm(torch.nn.RMSNorm):
    """RMSNorm as Megatron-Core builds its norms. Its own wrapper of torch's refuses sequence parallelism: each rank
    has the gradient of its own tokens only, which finalize_model_grads sums where the weight is marked."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__(hidden_size, eps=eps)
        weight: Any = self.weight  # Megatron-Core keeps its marks on the parameters
        weight.sequence_parallel = config.sequence_parallel


def transformer_engine(device: torch.device) -> bool:
    return device.type == "cuda" and importlib.util.find_spec("transformer_engine") is not None


def configuration(shape: ModelShape, recipe: Recipe, layout: Layout, device: torch.device) -> TransformerConfig:
    """Megatron-Core's configuration of the model and its splits."""
    cuda, te, dtype = device.type == "cuda", transformer_engine(device), COMPUTE_DTYPES[recipe.precision]
    swiglu = shape.mlp == "swiglu"
    by_mode: dict[str, dict[str, Any]] = {
        "none": {},
        "selective": {"recompute_granularity": "selective"},
        "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
    }
    parts, last = stage_layers(shape.layers, layout.stages), layout.stages - 1
    # Needed for uneven stages only: what each holds, the vocabulary's two ends included.
    uneven = (
        [["embedding"] * (i == 0) + ["decoder"] * len(part) + ["loss"] * (i == last) for i, part in enumerate(parts)]
        if shape.layers % layout.stages
        else None
    )
    return TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.width,
        num_attention_heads=shape.heads,
        num_query_groups=shape.kv_heads,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn,
        gated_linear_unit=swiglu,
        activation_func=F.silu if swiglu else F.gelu,
        add_bias_linear=False,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_eps,
        qk_layernorm=shape.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        attention_softmax_in_fp32=True,
        apply_query_key_layer_scaling=False,
        bf16=recipe.precision == "bf16",
        params_dtype=dtype,
        pipeline_dtype=dtype,
        perform_initialization=False,
        use_cpu_initialization=not cuda,  # the engine fills in the start values
        tensor_model_parallel_size=layout.tp,
        sequence_parallel=layout.sp and layout.tp > 1,
        pipeline_model_parallel_size=layout.pp,
        pipeline_model_parallel_layout=uneven,
        virtual_pipeline_model_parallel_size=layout.virtual_stages if layout.virtual_stages > 1 else None,
        # Virtual stages without overlap compute another loss, silently: 15% off in ten steps (megatron-core 0.16).
        overlap_p2p_comm=layout.virtual_stages > 1,
        batch_p2p_comm=layout.virtual_stages == 1,
        # Over gloo what is freed has not always been sent: 7% off with virtual stages (megatron-core 0.16).
        deallocate_pipeline_outputs=cuda and layout.pp > 1,
        transformer_impl="transformer_engine" if te else "local",
        apply_rope_fusion=te,
        bias_activation_fusion=cuda and swiglu,
        bias_dropout_fusion=cuda,
        cross_entropy_loss_fusion=cuda,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        **by_mode[layout.recompute],
    )


def layer_spec(shape: ModelShape, layers: int, device: torch.device) -> ModuleSpec | TransformerBlockSubmodules:
    """Of a stage that holds so many."""
    if transformer_engine(device):
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=shape.qk_norm)
    spec = get_gpt_layer_local_spec(qk_layernorm=shape.qk_norm, normalization="RMSNorm")
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = Norm
    if shape.qk_norm:
        attention = spec.submodules.self_attention.submodules
        attention.q_layernorm = attention.k_layernorm = Norm
    return TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=Norm)


def build_chunks(
    shape: ModelShape, layout: Layout, config: TransformerConfig, groups: ProcessGroupCollection, device: torch.device
) -> list[GPTModel]:
    """The stages this rank holds, in the order of their layers; their parameters are not filled."""
    rank, parts, chunks = groups.pp.rank(), stage_layers(shape.layers, layout.stages), []
    for virtual in range(layout.virtual_stages):
        stage = virtual * layout.pp + rank
        chunk = GPTModel(
            config,
            layer_spec(shape, len(parts[stage]), device),
            vocab_size=shape.vocab,
            max_sequence_length=shape.seq_len,
            pre_process=stage == 0,
            post_process=stage == layout.stages - 1,
            share_embeddings_and_output_weights=shape.tied,
            position_embedding_type="rope",
            rotary_base=shape.rope_theta,
            pg_collection=groups,
            vp_stage=virtual if layout.virtual_stages > 1 else None,
        )
        chunks.append(chunk.to(device, config.params_dtype))
    return chunks
