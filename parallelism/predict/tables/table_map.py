"""A map: what the columns of a table of measured runs mean. Maps ship for the published tables; any TOML file is one.

    name = "my_table"
    compete = ["model", "nodes"]                    # rows equal in these are layouts among which one chooses
    [fields]                                        # of Configs, or of a run (RUN_FIELDS): where its value is
    [[refuse]]                                      # rows that cannot be used
    column = "model"
    words = ["LoRA"]
    reason = "only adapters are trained"
    [models."tiny"]                                 # shapes of models that the table only names

A map fits a table that has each column it reads. Without one named, the shipped map that fits and reads most counts.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ....results.wording import did_you_mean
from ..configs import Configs
from .field import Field, read_field
from .models import NamedModel, read_models

FOLDER = Path(__file__).parent / "maps"
CONFIG_FIELDS = frozenset(each.name for each in fields(Configs))
RUN_FIELDS = {
    "model": "name of the model",
    "machine": "name of a machine profile",
    "stack": "name of a stack",
    "gpus": "devices of the run",
    "dp": "data-parallel ranks; default: devices over the other dimensions",
    "zero": "ZeRO stage; 0: replicated, 3: FSDP",
    "fsdp": "more than 0: FSDP over the data-parallel ranks",
    "micro_batch": "sequences of a microbatch",
    "local_batch": "sequences of a data-parallel rank a step, of grad_accum microbatches",
    "layers_per_virtual_stage": "layers of a model chunk; virtual_stages follows",
    "grad_accum": "microbatches a step",
    "step_time_s": "measured seconds of a step",
    "tokens_per_s": "measured, of all devices",
    "tokens_per_s_per_gpu": "measured",
    "samples_per_s": "measured, of all devices",
    "flops_per_s_per_gpu": "measured model FLOP/s of a device, by the convention in `flops`",
    "memory_bytes": "measured peak of the fullest device",
    "memory_part": "what of memory is measured: total, state or activations; default: total",
    "status": "ok, oom (also for `crashed, perhaps out of memory`) or failed",
}
TEXT_FIELDS = ("model", "machine", "stack", "memory_part", "status")
KEYS = ("name", "source", "tables", "compete", "flops", "fields", "refuse", "models")
CONVENTIONS = ("6n", "palm", "causal")


@dataclass(frozen=True)
class Refusal:
    """Rows whose cell has one of the words cannot be used."""

    column: str
    words: tuple[str, ...]
    reason: str

    def fits(self, row: Mapping[str, Any]) -> bool:
        text = str(row.get(self.column, "")).lower()
        return any(word.lower() in text for word in self.words)


@dataclass(frozen=True)
class TableMap:
    """What the columns of a table mean."""

    name: str
    path: Path
    fields: Mapping[str, tuple[Field, ...]]
    compete: tuple[str, ...]
    flops: str = "6n"
    refuse: tuple[Refusal, ...] = ()
    models: tuple[NamedModel, ...] = ()

    @property
    def columns(self) -> list[str]:
        """The columns that it reads, in the order of the fields."""
        read = [each.column for ways in self.fields.values() for each in ways if each.column]
        return list(dict.fromkeys([*read, *(each.column for each in self.refuse), *self.compete]))

    def missing(self, columns: Iterable[str]) -> list[str]:
        """The columns that it reads and a table with these columns lacks."""
        known = set(columns)
        return [each for each in self.columns if each not in known]


def read_map(path: Path) -> TableMap:
    """The map in a file. Raises ValueError where it is none: which key, and what would be right."""
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        shipped = ", ".join(each.stem for each in shipped_files())
        raise ValueError(f"{path}: no such map: give a TOML file, or one of {shipped}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: not a map: {error}") from None
    for key in table:
        if key not in KEYS:
            raise ValueError(f"{path}: no key {key!r}: {did_you_mean(key, KEYS)}")
    if not table.get("fields"):
        raise ValueError(f"{path}: has no [fields]: a map says at least where gpus, global_batch and a time are")
    if (flops := str(table.get("flops", "6n"))) not in CONVENTIONS:
        raise ValueError(f"{path}: flops = {flops!r}: allowed are {', '.join(CONVENTIONS)}")
    return TableMap(
        name=str(table.get("name", path.stem)),
        path=path,
        fields={name: _field(path, name, entry) for name, entry in table["fields"].items()},
        compete=tuple(table.get("compete", ())),
        flops=flops,
        refuse=tuple(_refusal(path, i, each) for i, each in enumerate(table.get("refuse", []))),
        models=read_models(table.get("models", {})),
    )


def _field(path: Path, name: str, entry: Any) -> tuple[Field, ...]:
    if name not in CONFIG_FIELDS and name not in RUN_FIELDS:
        known = [*RUN_FIELDS, *sorted(CONFIG_FIELDS)]
        raise ValueError(f"{path}: fields.{name}: no such field: {did_you_mean(name, known)}")
    return read_field(f"{path}: fields.{name}", entry)


def _refusal(path: Path, i: int, entry: Mapping[str, Any]) -> Refusal:
    if missing := {"column", "words", "reason"} - set(entry):
        raise ValueError(f"{path}: refuse.{i} lacks {', '.join(sorted(missing))}")
    return Refusal(str(entry["column"]), tuple(map(str, entry["words"])), str(entry["reason"]))


def shipped_files() -> list[Path]:
    return sorted(FOLDER.glob("*.toml"))


def find_map(columns: Iterable[str], named: Path | str | None = None) -> TableMap:
    """The map that is named (a file, or one that ships), or the shipped one that fits these columns.

    Raises
    ------
    ValueError: the named one lacks columns, or none fits; the line says which columns the nearest misses
    """
    columns = list(columns)
    if named is not None:
        by_name = FOLDER / f"{named}.toml"
        chosen = read_map(by_name if by_name in shipped_files() else Path(named))
        if missing := chosen.missing(columns):
            raise ValueError(f"map {chosen.name}: no column {', '.join(missing)}: the table has {', '.join(columns)}")
        return chosen
    maps = [read_map(file) for file in shipped_files()]
    fits = [each for each in maps if not each.missing(columns)]
    if fits:
        return max(fits, key=lambda each: len(each.columns))
    near = min(maps, key=lambda each: (len(each.missing(columns)) / len(each.columns), each.name))
    lacking = ", ".join(near.missing(columns))
    raise ValueError(f"no map fits these columns: the nearest, {near.name}, needs {lacking} too: give one with --map")
