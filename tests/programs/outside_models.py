"""Models of HuggingFace's transformers that compute what a `ModelShape` says, built from a config: no download.

Which of its classes is the same model: Llama (SwiGLU), Qwen3 (and QK-norm), Arcee (two-matrix MLP), Apertus (and
QK-norm). Their MLPs' activation is set to GELU where ours is.
"""

import os

import torch

from scalade.bench.init import fill
from scalade.bench.model import Decoder
from scalade.bench.shape import ModelShape

os.environ["HF_HUB_OFFLINE"] = "1"

FAMILIES = {
    ("swiglu", False): ("Llama", {}),
    ("swiglu", True): ("Qwen3", {}),
    ("gelu", False): ("Arcee", {"hidden_act": "gelu"}),
    ("gelu", True): ("Apertus", {"hidden_act": "gelu"}),
}
OUTER_NAMES = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
LAYER_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
APERTUS_NAMES = {"attention_norm": "attention_layernorm", "mlp_norm": "feedforward_layernorm"}


def theirs(shape: ModelShape, attention: str = "sdpa") -> torch.nn.Module:
    """Their model of that shape, with random weights of their own."""
    import transformers

    family, changes = FAMILIES[shape.mlp, shape.qk_norm]
    config = getattr(transformers, f"{family}Config")(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.seq_len,
        rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=shape.tied,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        use_cache=False,
        attn_implementation=attention,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        **changes,
    )
    return getattr(transformers, f"{family}ForCausalLM")(config)


def their_name(name: str, shape: ModelShape) -> str:
    """`blocks.3.mlp.up.weight` -> `model.layers.3.mlp.up_proj.weight`."""
    path, _, _ = name.rpartition(".weight")
    if not path.startswith("blocks."):
        return f"{OUTER_NAMES[path]}.weight"
    _, layer, rest = path.split(".", 2)
    apertus = shape.mlp == "gelu" and shape.qk_norm
    return f"model.layers.{layer}.{(LAYER_NAMES | (APERTUS_NAMES if apertus else {}))[rest]}.weight"


def by_our_names(model: torch.nn.Module, shape: ModelShape) -> dict[str, torch.nn.Parameter]:
    """Their parameters under our names, all of them."""
    parameters = dict(model.named_parameters())
    with torch.device("meta"):
        ours = [name for name, _ in Decoder(shape).named_parameters()]
    named = {name: parameters.pop(their_name(name, shape)) for name in ours}
    assert not parameters, f"weights that ours has not: {', '.join(parameters)}"
    return named


def start(model: torch.nn.Module, shape: ModelShape, std: float) -> None:
    """Weights large enough that every nonlinearity bends, norms away from one; by our names, so alike in both."""
    named = dict(model.named_parameters()) if isinstance(model, Decoder) else by_our_names(model, shape)
    with torch.no_grad():
        for name, parameter in named.items():
            fill(parameter, name, parameter.shape, (0,) * parameter.ndim, 0, shape.layers, std)
            if parameter.ndim == 1:
                parameter += torch.linspace(-0.5, 0.5, len(parameter))


def their_loss(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean loss by their code, of rows of s inputs and the token after them: (b, s + 1) int64."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:].contiguous()
    return model(input_ids=inputs, labels=targets, shift_labels=targets).loss


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|found - expected| / |expected|."""
    return ((found - expected).norm() / expected.norm()).item()
