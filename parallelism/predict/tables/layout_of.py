"""From the values of a row to the settings of Configs: shape, ranks by dimension, microbatches, sharding, words.

What a table leaves out follows from the rest: dp = gpus / (tp pp cp), microbatches = batch / (dp x micro batch). What
contradicts itself is refused, with the contradiction.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..configs import WORDS, code
from .field import Value

SHAPE = ("layers", "heads", "width", "vocab", "seq_len")
DIMENSIONS = ("tp", "pp", "cp")
ONE_STAGE, INTERLEAVED = (float(code("pp_schedule", word)) for word in ("1F1B", "Interleaved1F1B"))
NEVER = ("dp_replicate", "dp_shard")  # follow from dp and the sharding


class Unusable(Exception):
    """Why a row cannot be used."""


def settings(values: Mapping[str, Value], names: frozenset[str]) -> dict[str, float]:
    """The settings of Configs among `names` for the values of one row, and `gpus`.

    Raises
    ------
    Unusable: something is missing or contradicts itself
    """
    numbers = {name: _coded(name, value) for name, value in values.items() if name in names and name not in NEVER}
    row = numbers | _shape(values) | _ranks(values)
    if "layers_per_virtual_stage" in values:
        row["virtual_stages"] = max(row["layers"] // (row["pp"] * number(values, "layers_per_virtual_stage")), 1.0)
    if row.get("virtual_stages", 1) > 1 and row.get("pp_schedule", ONE_STAGE) == ONE_STAGE:
        row["pp_schedule"] = INTERLEAVED
    dp = row.pop("dp")
    batch = _batch(values, dp)
    if row.get("virtual_stages", 1) > 1 and batch["microbatches"] % row["pp"]:
        raise Unusable("interleaved stages need microbatches in multiples of pp")
    return row | batch | _sharding(values, dp)


def number(values: Mapping[str, Value], name: str) -> float:
    """Raises Unusable where the row has no such number."""
    if name not in values:
        raise Unusable(f"no {name}")
    return _number(name, values[name])


def _number(name: str, value: Value) -> float:
    if isinstance(value, str):
        raise Unusable(f"{name}: {value!r} is not a number")
    return float(value)


def _coded(name: str, value: Value) -> float:
    if name in WORDS and isinstance(value, str):
        return float(code(name, value))
    return _number(name, value)


def _shape(values: Mapping[str, Value]) -> dict[str, float]:
    shape = {name: number(values, name) for name in SHAPE}
    if any(not value > 0 for value in shape.values()):
        raise Unusable("a shape of 0")
    shape["kv_heads"] = float(values.get("kv_heads", shape["heads"]))
    matrices = float(values.get("matrices", 3))
    shape["ffn"] = float(values.get("ffn", 4 * shape["width"] if matrices == 2 else 0))
    if not shape["ffn"]:
        raise Unusable("no ffn")
    if shape["width"] % shape["heads"]:
        raise Unusable("width is no multiple of heads")
    return shape


def _ranks(values: Mapping[str, Value]) -> dict[str, float]:
    ranks = {name: float(values.get(name, 1)) for name in DIMENSIONS}
    inner = ranks["tp"] * ranks["pp"] * ranks["cp"]
    gpus = float(values["gpus"]) if "gpus" in values else inner * number(values, "dp")
    dp = gpus / inner
    if dp < 1 or dp % 1:
        raise Unusable("tp x pp x cp does not divide the devices")
    said = float(values.get("dp", dp))
    if said != dp and said * inner != 0 and "gpus" in values:
        raise Unusable("tp x pp x cp x dp is not the number of devices")
    return ranks | {"dp": dp, "gpus": gpus}


def _batch(values: Mapping[str, Value], dp: float) -> dict[str, float]:
    micro, steps = values.get("micro_batch"), values.get("grad_accum")
    if micro is None and steps and "local_batch" in values:
        micro = number(values, "local_batch") / float(steps)
    if micro is None and steps is None:
        raise Unusable("no micro_batch and no grad_accum")
    if "global_batch" in values:
        batch = number(values, "global_batch")
        microbatches = batch / (dp * float(micro)) if micro is not None else float(steps or 0)
    else:
        microbatches = float(steps) if steps is not None else 1.0
        batch = dp * microbatches * float(micro or 1)
    if microbatches < 1 or microbatches % 1:
        raise Unusable("dp x micro_batch does not divide the batch")
    if micro is not None and steps is not None and float(micro) * float(steps) * dp != batch:
        raise Unusable("dp x micro_batch x grad_accum is not the batch")
    return {"global_batch": batch, "microbatches": microbatches}


def _sharding(values: Mapping[str, Value], dp: float) -> dict[str, float]:
    """dp_replicate, dp_shard and zero_stage."""
    zero = 3.0 if float(values.get("fsdp", 0)) > 0 else float(values.get("zero", 0))
    shard = dp if zero else 1.0
    return {"dp_replicate": dp / shard, "dp_shard": shard, "zero_stage": zero if zero else 1.0}
