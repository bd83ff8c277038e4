"""What DeepSpeed is configured with: its settings for a recipe and a layout. Needs neither it nor torch.

Everything not named here is its default. Buckets are no larger than the model, so that a small model does not reserve
gigabytes. At stage 3 norms stay whole (its default for all that is under 100,000 elements, which in a small model
would be everything).

bf16: at ZeRO 0 and in a pipeline parameters are fp32 and the model casts them, as under DDP. At ZeRO 1 to 3 DeepSpeed
holds bf16 parameters beside fp32 masters, gathers them in bf16, and accumulates and reduces gradients in fp32.
"""

from __future__ import annotations

import sys

from ...bench.recipe import Recipe
from ...bench.shape import ModelShape
from ..layout import Layout

COLUMN = ("wq", "wk", "wv", "gate", "up")  # cut by rows of the matrix: their outputs are this rank's heads or hidden
ROW = ("wo", "down")
NORMS_OF_HEADS = ("q_norm", "k_norm")  # whole on every rank, and each sees its own heads only


def stage_of(layout: Layout) -> int:
    """ZeRO stage; 0: nothing is sharded."""
    return layout.zero_stage if layout.dp_shard > 1 or layout.offloads else 0


def own_bf16(recipe: Recipe, layout: Layout) -> bool:
    """Whether DeepSpeed holds the parameters in bf16 (else the model casts)."""
    return recipe.precision == "bf16" and stage_of(layout) > 0 and layout.pp == 1


def configuration(shape: ModelShape, recipe: Recipe, layout: Layout, nvme_folder: str | None, pin: bool) -> dict:
    """For deepspeed.initialize. pin: offloaded tensors lie in page-locked memory."""
    rows = recipe.global_batch // (layout.dp * layout.microbatches)
    stage = stage_of(layout)
    bucket = min(500_000_000, 2 * ((shape.params_total + 1) // 2))
    zero: dict[str, object] = {"stage": stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": shape.width,
            "zero_hpz_partition_size": layout.hpz,
            "stage3_prefetch_bucket_size": min(50_000_000, bucket),
        }
    for what, where in (("optimizer", layout.offload_optimizer), ("param", layout.offload_parameters)):
        if where != "none":
            path = {"nvme_path": nvme_folder} if where == "nvme" else {}
            zero[f"offload_{what}"] = {"device": where, "pin_memory": pin} | path
    config: dict[str, object] = {
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": layout.microbatches,
        # At ZeRO 0 the engine clips by the whole model's norm itself: a pipeline's would be the first stage's only.
        "gradient_clipping": recipe.clip_norm if stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": sys.maxsize,
    }
    if own_bf16(recipe, layout):
        config |= {
            "bf16": {"enabled": True},
            "communication_data_type": "fp32",
            "data_types": {"grad_accum_dtype": "fp32"},
        }
    if layout.tp > 1:
        config["tensor_parallel"] = {
            "autotp_size": layout.tp,
            "partition_config": {
                "use_default_specs": False,
                "layer_specs": [
                    {"patterns": [rf".*\.({'|'.join(COLUMN)})\.weight$"], "partition_type": "column"},
                    {"patterns": [rf".*\.({'|'.join(ROW)})\.weight$"], "partition_type": "row"},
                    {
                        "patterns": [rf".*\.({'|'.join(NORMS_OF_HEADS)})\.weight$"],
                        "partition_type": "skip",
                        "grad_allreduce": True,
                    },
                    {"patterns": [r".*"], "partition_type": "skip"},
                ],
            },
        }
    return config
