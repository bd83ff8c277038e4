"""What each engine can do, as the table in docs/engines.md: made by asking the engines themselves (`refuse`).

`python -m scalade.parallelism.capability_table docs/engines.md` writes it anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..bench.recipe import Recipe
from ..bench.shape import ModelShape
from .engines import CAPABILITIES, refuse
from .layout import Layout

BEGIN, END = "<!-- abilities: generated, see parallelism/capability_table.py -->\n", "<!-- end of abilities -->\n"
SHAPE = ModelShape(layers=8, heads=8, kv_heads=8, width=64, ffn=128, vocab=256, seq_len=64)
PIPELINE = {"pp": 2, "microbatches": 4}
# Rows: a name, the settings, and further settings (of layout, else of recipe); one of these makes it possible.
Ways = tuple[dict, ...]
AS_IT_IS: Ways = ({},)
TENSOR: Ways = ({}, {"sp": False, "loss_parallel": False})
PLAIN_SGD: Ways = ({}, {"weight_decay": 0.0})
ASKED: tuple[tuple[str, dict, Ways], ...] = (
    ("copies, gradients averaged", {"dp_replicate": 2}, AS_IT_IS),
    ("optimizer state sharded", {"dp_shard": 2, "zero_stage": 1}, AS_IT_IS),
    ("gradients sharded, too", {"dp_shard": 2, "zero_stage": 2}, AS_IT_IS),
    ("parameters sharded, too", {"dp_shard": 2, "zero_stage": 3}, AS_IT_IS),
    ("copies of shards", {"dp_replicate": 2, "dp_shard": 2}, ({}, {"zero_stage": 1})),
    ("second copy of parameters", {"dp_shard": 4, "hpz": 2}, AS_IT_IS),
    ("optimizer on the host", {"dp_shard": 2, "offload_optimizer": "cpu"}, AS_IT_IS),
    ("parameters on the host", {"dp_shard": 2, "offload_parameters": "cpu"}, AS_IT_IS),
    ("both on disks", {"dp_shard": 2, "offload_optimizer": "nvme", "offload_parameters": "nvme"}, AS_IT_IS),
    ("tensor parallel", {"tp": 2}, TENSOR),
    ("sequence parallel norms", {"tp": 2, "sp": True}, ({}, {"loss_parallel": False})),
    ("pipeline, 1F1B", PIPELINE, AS_IT_IS),
    ("pipeline, interleaved", PIPELINE | {"pp_schedule": "Interleaved1F1B", "virtual_stages": 2}, AS_IT_IS),
    ("pipeline, zero bubble", PIPELINE | {"pp_schedule": "ZBVZeroBubble", "virtual_stages": 2}, AS_IT_IS),
    ("pipeline and tensor", PIPELINE | {"tp": 2}, TENSOR),
    ("pipeline and shards", PIPELINE | {"dp_shard": 2}, ({}, {"zero_stage": 1})),
    ("tensor and shards", {"tp": 2, "dp_shard": 2}, (*TENSOR, {"zero_stage": 1})),
    ("context parallel", {"cp": 2}, AS_IT_IS),
    ("recompute whole blocks", {"recompute": "full"}, AS_IT_IS),
    ("recompute selected", {"recompute": "selective"}, AS_IT_IS),
    ("torch.compile", {"compile": True}, AS_IT_IS),
    ("bf16", {"precision": "bf16"}, AS_IT_IS),
    ("SGD", {"optimizer": "sgd"}, PLAIN_SGD),
    ("Muon", {"optimizer": "muon"}, AS_IT_IS),
    ("z-loss", {"z_loss": 1e-4}, AS_IT_IS),
    ("DiLoCo around it", {"dp_shard": 2, "replicas": 2}, ({}, {"zero_stage": 1})),
)


def ability(engine: str, wanted: dict, ways: Ways) -> str:
    """`yes`, `yes, with ...`, or `-`."""
    for way in ways:
        settings = wanted | way
        replicas = settings.pop("replicas", 1)
        recipe = {name: settings.pop(name) for name in tuple(settings) if name in Recipe.__dataclass_fields__}
        layout = Layout(engine=engine, **settings)
        if refuse(layout, SHAPE, Recipe(global_batch=64, steps=1, **recipe), replicas) is None:
            return "yes" + (f", with {_keys(way)}" if way else "")
    return "-"


def _keys(settings: dict) -> str:
    """As a study says them."""
    shown = {name: str(value).lower() if isinstance(value, bool) else value for name, value in settings.items()}
    return ", ".join(f'`{k} = "{v}"`' if isinstance(settings[k], str) else f"`{k} = {v}`" for k, v in shown.items())


def table() -> str:
    lines = ["| | set | " + " | ".join(CAPABILITIES) + " |", "|---" * (2 + len(CAPABILITIES)) + "|"]
    for name, wanted, ways in ASKED:
        shown = {key: value for key, value in wanted.items() if key not in ("microbatches", "replicas")}
        cells = [ability(engine, wanted, ways) for engine in CAPABILITIES]
        lines.append(f"| {name} | {_keys(shown)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def renewed(document: str) -> str:
    """The document with the part between the marks written anew."""
    head, _, rest = document.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + table() + END + tail


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text()))
    print(f"wrote {path}")
