"""A machine profile as a TOML file: every number with its source; written whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...parallelism.predict.machine import Machine
from ...results import files


def table_of(machine: Machine, source: str, reference_mfu: float, errors: Mapping[str, float]) -> dict[str, Any]:
    """The profile as nested tables. source: of every number; errors: of fits, by the part that they are of."""

    def number(value: float, more: str = "") -> dict[str, Any]:
        return {"value": value, "source": source + more}

    p = machine.products
    fitted = f"; fitted, median error {errors['products']:.1%}" if "products" in errors else ""
    (link,) = machine.links
    table: dict[str, Any] = {
        "name": machine.name,
        "description": machine.description,
        "device": machine.device,
        "names": list(machine.names),
        "peaks": {name: number(value) for name, value in machine.peaks.items()},
        "memory": {
            "bytes": number(machine.memory_bytes),
            "bandwidth": number(machine.memory_bandwidth),
            "reserved": number(machine.reserved_bytes, ", of a rank that holds no model"),
        },
        "products": {
            "efficiency": number(p.efficiency, fitted),
            "units": number(p.units),
            "half_m": number(p.half_m, fitted),
            "half_n": number(p.half_n, fitted),
            "half_k": number(p.half_k, fitted),
            "floor_s": number(p.floor_s),
            "contention": number(p.contention, ", all ranks at work over one"),
            "relative": {name: number(value, ", median over the grid") for name, value in p.relative.items()},
        },
        "attention": {"forward": number(machine.attention_forward), "backward": number(machine.attention_backward)},
        "elementwise": {
            "share": number(machine.elementwise, ", blocks beyond products, attention and dispatch"),
            "contention": number(machine.elementwise_contention, ", all ranks at work over one"),
        },
        "optimizer": {"share": number(machine.optimizer, ", update of the reference model")},
        "host": {"launch_s": number(machine.launch_s)},
        "node": {"ranks": number(machine.node_ranks)},
        "reference": {"mfu": number(reference_mfu, ", causal, of the reference model on one rank")},
        "links": [{"name": link.name, "bandwidth": number(link.bandwidth), "latency_s": number(link.latency_s)}],
    }
    return table


def write_profile(path: Path, table: Mapping[str, Any]) -> None:
    """Replace the file, or make it and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, to_toml(table))


def to_toml(table: Mapping[str, Any]) -> str:
    """TOML of nested tables whose leaves are numbers, texts, truth values and lists; lists of tables as [[name]].

    A table of a number and its source stands on one line.
    """
    return "# Written by scalade calibrate.\n" + "\n".join(_lines(table, ())) + "\n"


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {key: value for key, value in table.items() if not _is_section(value)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    for key, value in table.items():
        if key in plain:
            continue
        name = ".".join(map(_key, (*path, key)))
        for each in value if isinstance(value, list) else [value]:
            head = f"[[{name}]]" if isinstance(value, list) else f"[{name}]"
            lines += ["", head, *_lines(each, (*path, key))]
    return lines


def _is_section(value: Any) -> bool:
    if isinstance(value, Mapping):
        return set(value) != {"value", "source"}
    return isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _key(name: str) -> str:
    return name if name and all(c.isascii() and (c.isalnum() or c in "_-") for c in name) else json.dumps(name)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(each)}" for key, each in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ("inf" if value > 0 else "-inf" if value < 0 else "nan")
    return str(value) if isinstance(value, int) else json.dumps(value, ensure_ascii=False)
