"""What a plan is asked for: a model, devices, a batch, an engine; and how `--model` names a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ...bench.recipe import OPTIMIZERS, Recipe
from ...bench.shape import BYTES, SIZES, ModelShape
from ...results.wording import did_you_mean
from ..layout import ENGINES, RECOMPUTE
from ..predict import STACKS, Machine, Stack
from ..predict.configs import PRECISIONS

BATCH_TOKENS = 2**22  # of a global batch that is not given
BATCH_PER_DEVICE = 16  # sequences of such a batch on a device, at most
NEEDED = ("layers", "heads", "width", "vocab")  # of a model that is given by its numbers
FEWEST_TOKENS = 256  # of a sequence on one rank under context parallelism, in what is searched
ALWAYS_CP = 4  # is searched for short sequences, too
MOST_VIRTUAL = 8  # stages a rank, in what is searched


@dataclass(frozen=True)
class Question:
    """One model on one machine. `recompute`: the kinds that are tried.

    Raises
    ------
    ValueError: a number is not positive, a word is unknown, or the machine lacks what the model needs
    """

    shape: ModelShape
    devices: int
    machine: Machine
    global_batch: int = 0  # sequences a step; 0: about BATCH_TOKENS
    engine: str = "torch"
    stack: str = ""  # of STACKS; empty: the engine's
    precision: str = "bf16"
    optimizer: str = "adamw"
    recompute: tuple[str, ...] = RECOMPUTE
    name: str = ""  # of the model, as it was given

    def __post_init__(self) -> None:
        for option, word, known in (
            ("--engine", self.engine, ENGINES),
            ("--precision", self.precision, PRECISIONS),
            ("--optimizer", self.optimizer, OPTIMIZERS),
            *(("--recompute", kind, RECOMPUTE) for kind in self.recompute),
        ):
            if word not in known:
                raise ValueError(f"{option} {word}: {did_you_mean(word, known)}")
        if self.stack and self.stack not in STACKS:
            raise ValueError(f"--stack {self.stack}: {did_you_mean(self.stack, STACKS)}")
        if self.devices < 1:
            raise ValueError(f"--devices {self.devices}: must be at least 1")
        if self.global_batch < 0:
            raise ValueError(f"--global-batch {self.global_batch}: must be at least 1 sequence")
        self._check_machine()
        if not self.global_batch:
            object.__setattr__(self, "global_batch", usual_batch(self.devices, self.shape.seq_len))

    def _check_machine(self) -> None:
        self.machine.peak(self.precision)
        for link in self.machine.links:
            if link.bandwidth <= 0:
                raise ValueError(f"machine {self.machine.name}: link {link.name} has no bandwidth: it is 0")
        if self.machine.memory_bandwidth <= 0:
            raise ValueError(f"machine {self.machine.name}: memory.bandwidth is 0: must be more")

    @property
    def model_stack(self) -> Stack:
        return STACKS[self.stack or self.engine]

    @property
    def recipe(self) -> Recipe:
        """What the rules on layouts read of a recipe; narrower precisions than its own are bf16 there."""
        precision = "bf16" if self.precision not in ("fp32", "bf16") else self.precision
        return Recipe(global_batch=self.global_batch, steps=1, precision=precision, optimizer=self.optimizer)

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.global_batch * self.shape.seq_len


def usual_batch(devices: int, seq_len: int) -> int:
    """Sequences of a global batch that is not given: the power of two next to BATCH_TOKENS, at most BATCH_PER_DEVICE
    sequences a device."""
    most = min(max(BATCH_TOKENS // seq_len, 1), devices * BATCH_PER_DEVICE)
    return 1 << (most.bit_length() - 1)


def model_shape(text: str, seq_len: int | None = None) -> ModelShape:
    """The shape that `--model` names: a named size, or `layers=128,width=25600,heads=160,vocab=51200`.

    seq_len: tokens of a sequence, before what the name says. Of a shape by its numbers, kv_heads is heads unless
    given, and ffn 4 width (gelu) or 8/3 width, rounded up to a multiple of 256 (swiglu).

    Raises
    ------
    ValueError: no such size (with the names that are near), or a number that is missing, no number or out of range
    """
    settings = _by_numbers(text) if "=" in text else _by_name(text)
    settings = {"kv_heads": settings["heads"]} | settings
    if seq_len:
        settings["seq_len"] = seq_len
    if "seq_len" not in settings:
        raise ValueError(f"--model {text} has no length of sequences of its own: give --seq-len")
    return ModelShape(**settings)


def _by_name(name: str) -> dict[str, Any]:
    if name not in SIZES:
        raise ValueError(f"no model {name!r}: {did_you_mean(name, SIZES)} (or a study file, or layers=..., width=...)")
    return {"vocab": BYTES} | SIZES[name]


def _by_numbers(text: str) -> dict[str, Any]:
    types = {each.name: each.type for each in fields(ModelShape)}
    settings: dict[str, Any] = {}
    for part in text.split(","):
        key, sign, value = (piece.strip() for piece in part.partition("="))
        if not sign or key not in types:
            raise ValueError(f"--model {part}: {did_you_mean(key, types)}, each as key=value")
        settings[key] = _value(part, str(types[key]), value)
    missing = [key for key in NEEDED if key not in settings]
    if missing:
        raise ValueError(f"--model {text}: lacks {', '.join(missing)}")
    return {"ffn": _usual_ffn(settings)} | settings


def _usual_ffn(settings: Mapping[str, Any]) -> int:
    width = int(settings["width"])
    return 4 * width if settings.get("mlp") == "gelu" else -(-8 * width // 3 // 256) * 256


def _value(part: str, kind: str, text: str) -> Any:
    if kind == "str":
        return text
    if kind == "bool":
        if text not in ("true", "false"):
            raise ValueError(f"--model {part}: must be true or false")
        return text == "true"
    try:
        number = float(text)
        return int(number) if kind == "int" and number == int(number) else number
    except (ValueError, OverflowError):
        raise ValueError(f"--model {part}: {text!r} is not a number") from None
