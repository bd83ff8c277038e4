"""The sections of a study file as pydantic models, made from the dataclasses that a case consists of.

A field added to Layout, Recipe, Outer, Measure, DataSpec or ModelShape is a study key from then on; only what a
study says otherwise than a case (a model's size, the batch, the budget) is written here.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields
from types import GenericAlias, NoneType
from typing import Annotated, Any, Protocol, cast, get_args, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, create_model
from pydantic_core import PydanticCustomError

from ...bench.data.spec import DataSpec
from ...bench.measure import Measure
from ...bench.recipe import Recipe
from ...bench.shape import ModelShape
from ...parallelism.diloco.config import Outer
from ...parallelism.layout import Layout
from ..host.launchers import LAUNCHERS as STARTERS
from ..host.signals import signal_names
from .errors import shown
from .expand import MOST_RUNS

LAUNCHERS = ("local", *STARTERS)
ISOLATIONS = ("fresh", "pool")
DEVICES = ("auto", "cpu", "cuda")
INT_LIMIT = 2**63  # what a column of the table holds


@dataclass(frozen=True)
class ModelKeys:
    size: str  # the other keys change single fields of it


@dataclass(frozen=True)
class BatchKeys:
    """Exactly one is given."""

    global_batch: int  # sequences per step, over all ranks and replicas
    batch_tokens: int  # tokens per step; a multiple of the sequence length
    batch_per_rank: int  # weak scaling: sequences per step and rank; global_batch is this times the case's ranks


@dataclass(frozen=True)
class RateKeys:
    """Adam's learning rate carried over widths by 1/width (Yang et al., arXiv 2203.03466), here for all parameters."""

    lr_width: int = 0  # lr is meant for this width: a model gets lr x lr_width / width; 0: the same lr for all


@dataclass(frozen=True)
class Budget:
    """How long a run trains. Exactly one is given; steps are rounded up, so that a run never gets less."""

    steps: int  # optimizer steps
    tokens: float  # D, training tokens
    tokens_per_param: float  # D / N, N: all parameters, embeddings and head included (Chinchilla: about 20)
    flops: float  # C = 6 N D, N as above


@dataclass(frozen=True)
class Run:
    """How the cases are executed; changes no case_id. No lists but `seeds`."""

    launcher: str = "local"  # local: `scalade run` starts the ranks; the others start `scalade worker`
    repeats: int = 1  # runs of each case: the unit of repetition
    seeds: tuple[int, ...] = ()  # recipe seeds, each a case of its own; else recipe.seed
    isolation: str = "fresh"  # pool: ranks start once and run many cases, one after the other; fresh: one
    time_limit_s: float = 1800.0  # of one run, start of its processes included
    time_limit_factor: float = 0.0  # a run also ends after so many times the upper end of its prediction; 0: no
    hang_limit_s: float = 600.0  # without a step; at least ten times the longest wait so far; 0: no limit
    requeue_signals: str = "USR1"  # as "USR1,TERM": checkpoint, stop, and exit with status 75 to be queued again
    grace_s: float = 60.0  # for that checkpoint
    threads_per_rank: int = 0  # 0: cores // ranks of the largest case, in every case
    device: str = "auto"  # auto: cuda where the NVIDIA driver shows a device
    device_memory_gib: float = 0.0  # of one GPU, to skip what cannot fit; 0: ask the driver
    max_ranks: int = 0  # cases of more ranks are skipped; 0: as many as GPUs, or as cores on CPU
    max_runs: int = 100_000  # cases times repeats; what makes more is refused. At most 1,000,000
    results: str = ""  # folder of the table; empty: scalade-results/<name> in the current folder

    def problems(self) -> list[str]:
        found = [
            f"run.{name} = {shown(getattr(self, name))}: allowed are {', '.join(allowed)}"
            for name, allowed in (("launcher", LAUNCHERS), ("device", DEVICES), ("isolation", ISOLATIONS))
            if getattr(self, name) not in allowed
        ]
        for name, low in (("repeats", 1), ("threads_per_rank", 0), ("device_memory_gib", 0), ("max_ranks", 0)):
            if getattr(self, name) < low:
                found.append(f"run.{name} = {getattr(self, name)}: must be at least {low}")
        if not 1 <= self.max_runs <= MOST_RUNS:
            found.append(f"run.max_runs = {self.max_runs}: must be between 1 and {MOST_RUNS}")
        if not self.time_limit_s > 0:
            found.append(f"run.time_limit_s = {self.time_limit_s}: must be more than 0")
        for name in ("time_limit_factor", "hang_limit_s", "grace_s"):
            if getattr(self, name) < 0:
                found.append(f"run.{name} = {getattr(self, name)}: must be at least 0")
        try:
            signal_names(self.requeue_signals)
        except ValueError as error:
            found.append(f"run.requeue_signals = {shown(self.requeue_signals)}: {error}")
        if not self.results.isprintable():
            found.append(f"run.results = {shown(self.results)}: must be a printable path")
        return found


BATCH = tuple(f.name for f in fields(BatchKeys))
RATE = tuple(f.name for f in fields(RateKeys))
BUDGET = tuple(f.name for f in fields(Budget))
SECTIONS: dict[str, tuple[type, ...]] = {
    "model": (ModelKeys, ModelShape),
    "data": (DataSpec,),
    "recipe": (BatchKeys, RateKeys, Recipe),
    "budget": (Budget,),
    "measure": (Measure,),
    "outer": (Outer,),
    "layout": (Layout,),
    "run": (Run,),
}
ALTERNATIVES = ("layout", "outer")  # may be arrays of tables
NOT_KEYS = {("recipe", "steps")}  # said by [budget]
WORDS = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}


@dataclass(frozen=True)
class Key:
    """One key of a section: where it comes from and what it takes."""

    section: str
    name: str
    kind: type  # int, float, str or bool
    default: object  # None: has none
    owner: type  # dataclass

    @property
    def dotted(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def one_value(self) -> bool:
        return self.section == "run"


def _keys() -> dict[str, Key]:
    keys = {}
    for section, owners in SECTIONS.items():
        for owner in owners:
            hints = get_type_hints(owner)
            for f in fields(owner):
                if (section, f.name) in NOT_KEYS or f"{section}.{f.name}" in keys or not f.init:
                    continue
                kinds = [kind for kind in get_args(hints[f.name]) or (hints[f.name],) if kind is not NoneType]
                assert kinds[0] in WORDS, f"{owner.__name__}.{f.name}: a study key is an int, float, str or bool"
                key = Key(section, f.name, kinds[0], None if f.default is MISSING else f.default, owner)
                keys[key.dotted] = key
    return keys


KEYS = _keys()
"""Every key of the sections by dotted name."""


def check(key: Key, value: object) -> Any:
    """The value as the key's type: strict, but an integer is a number.

    Raises
    ------
    PydanticCustomError: another type, an integer that no column holds, or a number that is not finite
    """
    kind = key.kind
    if kind is float and type(value) is int and abs(value) < INT_LIMIT:
        value = float(value)
    if type(value) is not kind:
        raise PydanticCustomError("value", "must be {want}", {"want": WORDS[kind]})
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("value", "must be finite")
    if isinstance(value, int) and not -INT_LIMIT <= value < INT_LIMIT:
        raise PydanticCustomError("value", "must be less than 2**63")
    return value


def check_many(key: Key, value: object) -> Any:
    """A value, or a list of them."""
    if not isinstance(value, list):
        return check(key, value)
    if not value:
        raise PydanticCustomError("value", "must not be empty")
    checked = []
    for index, item in enumerate(value):
        try:
            checked.append(check(key, item))
        except PydanticCustomError as error:
            raise PydanticCustomError("value", error.message(), {"index": index, "item": item}) from None
    return checked


def _annotation(key: Key) -> Any:
    if key.dotted == "run.seeds":
        return Annotated[Any, BeforeValidator(lambda v: check_many(key, v if isinstance(v, list) else [v]))]
    taker = check if key.one_value else check_many
    return Annotated[Any, BeforeValidator(lambda v: taker(key, v))]


def _model(section: str) -> type[BaseModel]:
    keys: dict[str, Any] = {key.name: (_annotation(key), None) for key in KEYS.values() if key.section == section}
    return create_model(section, __config__=ConfigDict(extra="forbid", protected_namespaces=()), **keys)


MODELS: dict[str, type[BaseModel]] = {section: _model(section) for section in SECTIONS}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("value", "must be a string")
    return value


class StudyFile(Protocol):
    """The whole file. Its other sections, named in MODELS, are read by getattr; `layout`, `outer`, `zip` and `exclude`
    are lists of tables (a single table is a list of one)."""

    name: str
    run: BaseModel
    zip: list[dict[str, Any]]
    exclude: list[dict[str, Any]]


def _section(section: str) -> Any:
    """A field of the file's model: (type, default)."""
    model = MODELS[section]
    return (GenericAlias(list, (model,)), []) if section in ALTERNATIVES else (model, model())


FILE_MODEL: type[BaseModel] = create_model(
    "StudyFile",
    __config__=ConfigDict(extra="forbid"),
    name=(Annotated[str, BeforeValidator(_text)], ""),
    **{section: _section(section) for section in MODELS},
    zip=(list[dict[str, Any]], []),
    exclude=(list[dict[str, Any]], []),
)


def study_file(content: dict[str, Any]) -> StudyFile:
    """Raises pydantic.ValidationError: unknown keys, wrong types."""
    return cast(StudyFile, FILE_MODEL.model_validate(content))  # pydantic makes the class: no checker sees its fields
