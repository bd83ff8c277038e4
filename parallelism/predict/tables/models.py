"""Shapes of models by name, for tables that only name them: models.toml, and those of a map before them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "models.toml"
TEXTS = ("active", "unusable", "source")


@dataclass(frozen=True)
class NamedModel:
    """A model as a table names it; `fields` are settings of Configs and of a run, by their names."""

    name: str
    names: tuple[str, ...]  # letters and digits, lower case
    fields: Mapping[str, float | str]
    active: str = ""  # of a mixture of experts: what of it is active
    unusable: str = ""  # why it cannot be predicted
    source: str = ""


def plain(text: str) -> str:
    """Letters and digits of a name, lower case: `Llama 3.1 405B` -> `llama31405b`."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def read_models(table: Mapping[str, Mapping[str, Any]]) -> tuple[NamedModel, ...]:
    """The models of a TOML table, name -> its keys. One without `names` goes by its own name."""
    return tuple(
        NamedModel(
            name,
            tuple(plain(each) for each in keys.get("names", [name])),
            {key: value for key, value in keys.items() if key not in (*TEXTS, "names")},
            **{key: str(keys.get(key, "")) for key in TEXTS},
        )
        for name, keys in table.items()
    )


@cache
def shipped_models() -> tuple[NamedModel, ...]:
    return read_models(tomllib.loads(FILE.read_text("utf-8")))


def find_model(text: str, own: tuple[NamedModel, ...] = ()) -> NamedModel | None:
    """The model whose name the text contains, the longest such name; a map's own models before the shipped ones."""
    for models in (own, shipped_models()):
        fits = [(len(name), model) for model in models for name in model.names if name and name in plain(text)]
        if fits:
            return max(fits, key=lambda fit: fit[0])[1]
    return None
