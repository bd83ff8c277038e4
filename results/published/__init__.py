"""Published figures in the columns of our table (published.csv), and our runs compared with them.

Columns beside those of `runs`: published_source, published_date (null: undated), published_utilization as printed
and published_flops, the FLOPs that it counts:
    `palm`            model FLOPs with attention as if not causal: our mfu_palm
    `6 N + 12 L w s`  the same, with the look-up of the embedding counted
    `hardware`        recomputed activations counted: no model FLOPs utilisation
    `not stated`      nothing is compared with it
published_derived names the columns that the source does not print: throughput from step time and batch, and from
the shape and the throughput the FLOPs per token and mfu_* under our conventions (bench/flops.py).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from ..schema.schema import checked, columns

FILE = Path(__file__).with_name("published.csv")
CONVENTIONS = ("mfu_palm", "mfu_6n", "mfu_causal", "tokens_per_s_per_device")
_NUMBERS = ("published_utilization",)
_SHAPE = ("model_layers", "model_width", "model_ffn", "model_vocab", "model_seq_len")
COMPARED_BY = ("device_name", "precision", "peak_flops", "peak_flops_source", *_SHAPE)  # what `against` reads of ours
_COUNTED = {"hardware": "hardware FLOPs, recomputation counted", "not stated": "FLOPs that it does not state"}


@cache
def published_rows() -> tuple[dict, ...]:
    """The shipped rows: every column of the file, with the types of the table; missing is None."""
    with FILE.open(newline="") as file:
        return tuple({name: _typed(name, text) for name, text in line.items()} for line in csv.DictReader(file))


def _typed(name: str, text: str) -> object:
    known = columns("runs")
    if not text:
        return None
    if name in known and known[name].type != "string":
        return checked(known[name], float(text))
    return float(text) if name in _NUMBERS else text


@dataclass(frozen=True)
class Against:
    """One of our rows beside one published row: `percent`, or the reason why there is none."""

    convention: str
    published: Mapping
    ours: float | None
    theirs: float | None
    percent: float | None
    refused: str | None

    @property
    def derived(self) -> bool:
        """Whether the published figure was computed from others in the source, not printed there."""
        return self.convention in (self.published["published_derived"] or "").split()

    @property
    def label(self) -> str:
        row = self.published
        devices = f"{row['world_size']} x " if row["world_size"] else ""
        return f"{row['model']} on {devices}{row['device_name'] or 'unnamed devices'}, {row['published_source']}"

    def to_dict(self) -> dict:
        return {
            "convention": self.convention,
            "ours": self.ours,
            "published": self.theirs,
            "percent_of_published": self.percent,
            "refused": self.refused,
            "published_model": self.published["model"],
            "published_devices": self.published["world_size"],
            "published_source": self.published["published_source"],
            "published_date": self.published["published_date"],
            "published_note": self.published["published_note"],
            "published_derived": self.derived,
        }


def against(ours: Mapping, convention: str, rows: Sequence[Mapping] | None = None) -> list[Against]:
    """One of our rows (median measurements, and the columns COMPARED_BY) beside every published row.

    convention: `mfu_palm`, `mfu_6n`, `mfu_causal`: utilisation under that FLOP count, for any model;
    `tokens_per_s_per_device`: throughput, of the same model only. Refused if device, precision or peak differ,
    if the published figure counts other FLOPs, or if either is missing.

    Raises
    ------
    ValueError: no such convention
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"published convention {convention!r}: allowed are {', '.join(CONVENTIONS)}")
    measured = ours.get(convention)
    if rows is None:
        rows = published_rows()
        refusals = _refusals(convention, measured is None, *(ours.get(name) for name in COMPARED_BY))
    else:
        refusals = tuple(_refusal(ours, row, convention, measured is None) for row in rows)
    return [
        Against(
            convention,
            row,
            measured,
            row.get(convention),
            None if why or measured is None else 100 * measured / row[convention],
            why,
        )
        for row, why in zip(rows, refusals, strict=True)
    ]


@lru_cache(maxsize=256)
def _refusals(convention: str, unmeasured: bool, *values: object) -> tuple[str | None, ...]:
    """_refusal of every shipped row; values: of the columns COMPARED_BY, so that layouts of one device share it."""
    ours = dict(zip(COMPARED_BY, values, strict=True))
    return tuple(_refusal(ours, row, convention, unmeasured) for row in published_rows())


def _refusal(ours: Mapping, row: Mapping, convention: str, unmeasured: bool) -> str | None:
    if unmeasured:
        return f"{convention} of ours is null" + ("" if ours.get("peak_flops") else ": the device's peak is unknown")
    if row.get(convention) is None:
        printed = row["published_flops"]
        what = f": it prints {_COUNTED.get(printed, f'the convention {printed}')}" if printed else ""
        return f"the source gives no {convention}{what}"
    differ = [name for name in _compared_columns(convention) if _comparable(name, ours) != _comparable(name, row)]
    if not differ:
        return None
    pairs = [f"{name} (ours {_as_text(ours.get(name))}, theirs {_as_text(row[name])})" for name in differ]
    return "differs in " + ", ".join(pairs)


def _compared_columns(convention: str) -> tuple[str, ...]:
    more = ("peak_flops", "peak_flops_source") if convention.startswith("mfu") else _SHAPE
    return ("device_name", "precision", *more)


def _comparable(name: str, row: Mapping) -> object:
    value = row.get(name)
    return accelerator(value) if name == "device_name" else value


def accelerator(name: str | None) -> str | None:
    """The device's family in a driver's name: `NVIDIA A100-SXM4-80GB` and `A100` are one; an H100 PCIe is another."""
    if name is None:
        return None
    family = re.search(r"\b(?:[A-Z]{1,2}\d{2,4}[A-Z]?|TPU v\d+\w*)\b", name)
    variant = re.search(r"\b(PCIe|NVL|HBM2e)\b", name)
    return (family.group() if family else name) + (f" {variant.group()}" if variant else "")


def _as_text(value: object) -> str:
    if value is None:
        return "unknown"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
