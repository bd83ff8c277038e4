"""Published figures in the table's own columns (published.csv), and our runs set against them.

Columns beside those of `runs`: published_source, published_date (null: undated), published_utilization as printed
and published_flops, the FLOPs it counts:
    `palm`            model FLOPs with attention as if not causal: our mfu_palm
    `6 N + 12 L w s`  the same with the embedding's look-up counted
    `hardware`        recomputed activations counted: no model FLOPs utilisation
    `not stated`      so nothing is compared with it
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
_TELL = ("device_name", "precision", "peak_flops", "peak_flops_source", *_SHAPE)  # of ours: what a refusal reads


@cache
def published_rows() -> tuple[dict, ...]:
    """The shipped rows: every column of the file, typed as the table's, missing is None."""
    known = columns("runs")
    rows = []
    with FILE.open(newline="") as file:
        for line in csv.DictReader(file):
            row: dict[str, object] = {}
            for name, text in line.items():
                if not text:
                    row[name] = None
                elif name in known and known[name].type != "string":
                    row[name] = checked(known[name], float(text))
                else:
                    row[name] = float(text) if name in _NUMBERS else text
            rows.append(row)
    return tuple(rows)


@dataclass(frozen=True)
class Against:
    """One of ours beside one published row: `percent`, or the reason why there is none."""

    convention: str
    published: Mapping
    ours: float | None
    theirs: float | None
    percent: float | None
    refused: str | None

    @property
    def derived(self) -> bool:
        """Whether the published figure was computed from others of the source, not printed."""
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
    """A row of ours (its median measurements) beside every published row.

    convention: `mfu_palm`, `mfu_6n`, `mfu_causal`: utilisation under that FLOP count, whatever the model;
    `tokens_per_s_per_device`: throughput, of the same model only. Refused where device, precision or peak differ,
    where the published figure counts other FLOPs, or where either is missing.

    Raises
    ------
    ValueError: no such convention
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"published convention {convention!r}: allowed are {', '.join(CONVENTIONS)}")
    mine = ours.get(convention)
    if rows is None:
        refusals = _refusals(mine is None, convention, *(ours.get(name) for name in _TELL))
        rows = published_rows()
    else:
        refusals = [_refusal(ours, row, convention, mine, row.get(convention)) for row in rows]
    return [
        Against(convention, row, mine, row.get(convention), None if why else 100 * mine / row[convention], why)
        for row, why in zip(rows, refusals, strict=True)
    ]


@lru_cache(maxsize=256)
def _refusals(nothing: bool, convention: str, *told: object) -> tuple[str | None, ...]:
    """_refusal of every shipped row; told: what it reads of ours, _TELL, so that layouts of one device share it."""
    ours, mine = dict(zip(_TELL, told, strict=True)), None if nothing else 0.0
    return tuple(_refusal(ours, row, convention, mine, row.get(convention)) for row in published_rows())


def _refusal(ours: Mapping, row: Mapping, convention: str, mine: float | None, theirs: float | None) -> str | None:
    if mine is None:
        return f"{convention} of ours is null" + ("" if ours.get("peak_flops") else ": the device's peak is unknown")
    if theirs is None:
        counts = {"hardware": "hardware FLOPs, recomputation counted", "not stated": "FLOPs that it does not state"}
        printed = row["published_flops"]
        what = f": it prints {counts.get(printed, f'the convention {printed}')}" if printed else ""
        return f"the source gives no {convention}{what}"
    differ = []
    if accelerator(ours.get("device_name")) != accelerator(row["device_name"]):
        differ.append("device_name")
    if ours.get("precision") != row["precision"]:
        differ.append("precision")
    if convention.startswith("mfu"):
        differ += [name for name in ("peak_flops", "peak_flops_source") if ours.get(name) != row[name]]
    else:
        differ += [name for name in _SHAPE if ours.get(name) != row[name]]
    if not differ:
        return None
    pairs = [f"{name} (ours {_said(ours.get(name))}, theirs {_said(row[name])})" for name in differ]
    return "differs in " + ", ".join(pairs)


def accelerator(name: str | None) -> str | None:
    """The device's family in a driver's name: `NVIDIA A100-SXM4-80GB` and `A100` are one; an H100 PCIe is another."""
    if name is None:
        return None
    found = re.search(r"\b(?:[A-Z]{1,2}\d{2,4}[A-Z]?|TPU v\d+\w*)\b", name)
    variant = re.search(r"\b(PCIe|NVL|HBM2e)\b", name)
    return (found.group() if found else name) + (f" {variant.group()}" if variant else "")


def _said(value: object) -> str:
    return "unknown" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
