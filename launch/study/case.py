"""A case: one point of a study, everything that decides what is computed. Its id is a hash of that content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...bench.data import DataSpec
from ...bench.measure import Measure
from ...bench.recipe import Recipe
from ...bench.shape import ModelShape
from ...parallelism.diloco.config import Outer
from ...parallelism.engines import refuse
from ...parallelism.layout import Layout
from . import outer_steps

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PARTS: dict[str, Any] = {
    "shape": ModelShape,
    "data": DataSpec,
    "recipe": Recipe,
    "layout": Layout,
    "outer": Outer,
    "measure": Measure,
}

# Fields that came when ids were stored already: not in the id while they have their default, so that what a new
# version runs still has the name that an old one gave it.
LATER = {"measure": ("profile_steps",)}


def content_id(content: dict) -> str:
    """16 hexadecimal digits that name a content of scalars in nested tables, whatever the order of its keys."""
    return _digits(_compact(content))


def _compact(content: dict) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Case:
    shape: ModelShape
    data: DataSpec
    recipe: Recipe
    layout: Layout
    outer: Outer
    measure: Measure
    model_name: str = ""  # the size's name, for people; not part of the id
    # One process compresses blocks of parameters cut as this layout cuts them. `scalade verify` makes such references.
    borders: Layout | None = None

    @cached_property
    def case_id(self) -> str:
        """content_id of the parts' contents; the text of each part is made once, however many cases share it."""
        texts = (f'"{part}":{_text(value, LATER.get(part, ()))}' for part, value in sorted(self._content().items()))
        return _digits(f"{{{','.join(texts)}}}")

    def _content(self) -> dict[str, DataclassInstance]:
        return {part: getattr(self, part) for part in PARTS} | ({"borders": self.borders} if self.borders else {})

    @property
    def ranks(self) -> int:
        """Processes this case needs."""
        return self.layout.ranks * self.outer.placed_replicas

    @property
    def steps(self) -> int:
        """What a run of this case counts its progress in."""
        return self.recipe.steps

    def refusal(self) -> str | None:
        """Why this case cannot run, or None; whatever is installed here."""
        if self.outer.quorum and self.measure.checkpoint_every:
            return "outer.quorum: replicas at different steps write no checkpoint; set measure.checkpoint_every = 0"
        if self.outer.quorum and self.measure.profile_steps:
            return "outer.quorum: replicas that may be gone are not profiled together; set measure.profile_steps = 0"
        return outer_steps.refusal(self.outer, self.steps) or refuse(
            self.layout, self.shape, self.recipe, self.outer.replicas
        )

    def warnings(self) -> list[str]:
        """What a run of this case will lack, one line each."""
        return outer_steps.warnings(self.outer, self.steps, self.measure, self.shape.layers)

    def to_json(self) -> str:
        return json.dumps({k: asdict(part) for k, part in self._content().items()} | {"model_name": self.model_name})

    @classmethod
    def from_json(cls, text: str) -> Case:
        """Inverse of to_json.

        Raises
        ------
        ValueError: the text is not a case (a part or a field is missing, unknown or out of range)
        """
        content = json.loads(text)
        try:
            parts = {name: kind(**content[name]) for name, kind in PARTS.items()}
            model_name = str(content.get("model_name", ""))
            borders = Layout(**content["borders"]) if "borders" in content else None
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a case: {error}") from error
        return cls(**parts, model_name=model_name, borders=borders)

    @property
    def layout_name(self) -> str:
        """`fsdp2.tp2`, with replicas `diloco.M2.H30.fsdp2`."""
        outer, layout = self.outer.name(), self.layout.name()
        return layout if not outer else outer if layout == "single" else f"{outer}.{layout}"

    def columns(self) -> dict[str, object]:
        """The case as columns of the `runs` table: every field of every part, by the part's column prefix."""
        prefix = {"shape": "model_", "data": "data_", "outer": "outer_", "measure": "measure_"}  # recipe, layout: none
        row: dict[str, object] = {
            "case_id": self.case_id,
            "model": self.model_name,
            "layout": self.layout_name,
            "params_total": self.shape.params_total,
            "params_non_embedding": self.shape.params_non_embedding,
            "outer_borders": self.borders and self.borders.name(),
        }
        for part in PARTS:
            value = getattr(self, part)
            row |= {prefix.get(part, "") + field.name: getattr(value, field.name) for field in fields(value)}
        return row


def _text(part: DataclassInstance, later: tuple[str, ...]) -> str:
    """A part's share of the id's text, kept on the part itself: not by its value, since 1 and True are equal."""
    kept = vars(part)
    if "_text" not in kept:
        kept["_text"] = _compact(_plain(part, later))
    return kept["_text"]


def _plain(part: DataclassInstance, later: tuple[str, ...]) -> dict[str, object]:
    """Fields by name, those of `later` only where they say something; a number field is a float also where it was
    given as an integer, and -0.0 is 0.0."""
    numbers = {field.name for field in fields(part) if "float" in str(field.type)}
    return {
        name: float(value) + 0.0 if name in numbers and value is not None else value
        for name, value in ((field.name, getattr(part, field.name)) for field in fields(part))
        if name not in later or value != getattr(type(part), name)
    }
