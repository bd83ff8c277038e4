"""The study keys in docs/reference/study-keys.md, from the dataclasses and the comments beside their fields.

`python -m scalade.launch.study.key_reference docs/reference/study-keys.md` writes it anew.
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from ...bench.data.spec import SOURCES
from ...bench.recipe import LR_SCHEDULES, OPTIMIZERS, PRECISIONS
from ...bench.shape import BYTES, MLPS, SIZES, ModelShape
from ...parallelism.diloco.config import ALGORITHMS, COMPRESSIONS
from ...parallelism.layout import CP_METHODS, ENGINES, OFFLOAD, RECOMPUTE, SCHEDULES, ZERO_STAGES
from .errors import shown
from .resolve import SEQ_LEN
from .schema import DEVICES, ISOLATIONS, KEYS, LAUNCHERS, SECTIONS, Key

BEGIN, END = "<!-- keys: generated, see launch/study/key_reference.py -->\n", "<!-- end of keys -->\n"
DEFAULTS = {
    "model.kv_heads": "the size's, else heads",
    "model.vocab": "the size's, else the data's",
    "model.seq_len": f"the size's, else {SEQ_LEN}",
    "run.seeds": "none",
} | {f"model.{name}": "the size's" for name in ("layers", "heads", "width", "ffn")}
ALLOWED = {
    "model.size": ("a named size, see below",),
    "model.mlp": MLPS,
    "data.source": SOURCES,
    "recipe.optimizer": OPTIMIZERS,
    "recipe.lr_schedule": LR_SCHEDULES,
    "recipe.precision": PRECISIONS,
    "outer.algorithm": ALGORITHMS,
    "outer.compression": COMPRESSIONS,
    "layout.engine": ENGINES,
    "layout.pp_schedule": SCHEDULES,
    "layout.cp_method": CP_METHODS,
    "layout.recompute": RECOMPUTE,
    "layout.zero_stage": tuple(map(str, ZERO_STAGES)),
    "layout.offload_optimizer": OFFLOAD,
    "layout.offload_parameters": OFFLOAD,
    "run.launcher": LAUNCHERS,
    "run.device": DEVICES,
    "run.isolation": ISOLATIONS,
}
SOURCE_PARAMS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt3-175b": 174_604_259_328,
}
ABOUT_SIZES = """All are one body: RMSNorm, RoPE, no biases, no learned positions. `gpt2*` and `gpt3-175b` have the
depth and the widths of those models in it, and so other counts (last column); `llama3-*` are Llama 3, parameter by
parameter. N is in full, embedding and head included, with the vocabulary of the table; `llama3-*` have a head of their
own, in all others it is the embedding (`tied`). A name stands for one shape: where the study or its data make another
of it, the name says so (`tiny-300k,vocab=512`, `diloco-35m,tied=False`). `diloco-35m` has a vocabulary of 32,768 also
where the data are bytes; for one that fits them set `vocab = 256`. `tiny-*` are for trying things out: the numbers in
their names are rough, and go for tied and untied heads.
"""
ABOUT = {
    "model": "A named size, or `layers`, `heads`, `width` and `ffn`. A key given beside `size` changes that size.",
    "data": "Where the tokens come from.",
    "recipe": "How the model is optimised. Exactly one of `global_batch`, `batch_tokens`, `batch_per_rank`.",
    "budget": "How long a run trains: exactly one. Rounded up to whole steps; 6 N D and N count all parameters.",
    "measure": "What is measured beside the training itself.",
    "outer": "DiLoCo's outer step. A table, or several alternatives as `[[outer]]`. Empty: none.",
    "layout": "How the work is split. A table, or several alternatives as `[[layout]]`. Empty: one process.",
    "run": "How the cases are executed. Changes no `case_id`, takes no lists but `seeds`.",
}


@lru_cache
def meanings(owner: type) -> dict[str, str]:
    """The comment beside each field of a dataclass."""
    found = re.findall(r"^    (\w+): [^#\n]*#\s*(.+)$", inspect.getsource(owner), re.M)
    return dict(found)


def reference() -> str:
    """All sections as Markdown tables."""
    text = []
    for section in SECTIONS:
        text += [f"## [{section}]\n", ABOUT[section] + "\n", "| key | type | default | meaning |", "|---|---|---|---|"]
        text += [_row(key) for key in KEYS.values() if key.section == section]
        text.append("")
    text += ["## Named sizes\n", ABOUT_SIZES, "| size | layers | heads | kv heads | width | ffn | MLP | vocab | N | |"]
    text += ["|---" * 10 + "|", *map(_size_row, SIZES)]
    return "\n".join(text) + "\n"


def _size_row(name: str) -> str:
    size = SIZES[name]
    shape = ModelShape(**{"kv_heads": size["heads"], "vocab": BYTES, "seq_len": SEQ_LEN} | size)
    mlp = shape.mlp + (", QK-norm" if shape.qk_norm else "")
    vocab = f"{shape.vocab:,}" + ("" if "vocab" in size else " (the data's)")
    notes = []
    if name in SOURCE_PARAMS:
        notes.append(f"{SOURCE_PARAMS[name]:,} with that model's own body")
    notes.append(f"{replace(shape, tied=not shape.tied).params_total:,} {'untied' if shape.tied else 'tied'}")
    counts = f"{shape.layers} | {shape.heads} | {shape.kv_heads} | {shape.width} | {shape.ffn} | {mlp} | {vocab}"
    return f"| `{name}` | {counts} | {shape.params_total:,} | {'; '.join(notes)} |"


def _row(key: Key) -> str:
    default = DEFAULTS.get(key.dotted)
    if default is None:
        default = "" if key.default in (None, "") else f"`{shown(key.default) if key.kind is bool else key.default}`"
    kind = "int or list" if key.dotted == "run.seeds" else ", ".join(ALLOWED.get(key.dotted, [key.kind.__name__]))
    return f"| `{key.name}` | {kind} | {default} | {meaning_of(key)} |"


def meaning_of(key: Key) -> str:
    """What the comment beside the key's field says."""
    return meanings(key.owner).get(key.name, "").replace("|", "\\|")


def renewed(document: str) -> str:
    """The document with the part between the marks written anew."""
    head, _, rest = document.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + reference() + END + tail


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text()))
    print(f"wrote {path}")
