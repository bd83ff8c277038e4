"""The lines that a recorder writes while its run lasts, and the row made of them. See recorder.py.

scratch/recorded.jsonl    {"settings": ...}, then one line for each step, evaluation and note, at last the end
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from .. import files
from ..schema.columns import DEGREE_LABELS, MESH_DIMS, RUNS
from ..schema.schema import SchemaError, Value, checked, columns, known_column
from ..wording import count_of
from .recorded_speed import TIMES, known_values, speed_columns

LOG = "recorded.jsonl"
COMPUTED = ("Model", "Data", "Recipe", "Layout", "Outer loop")  # groups that decide what is computed
SEEDS = ("seed", "data_chain_seed")
NOT_CASE = ("model", "data_path", "data_val_path", "data_tokens", "data_entropy_nats", "tokens_unique")
_RESULTS = (
    "tokens_seen",
    "outer_steps",
    "outer_bytes_per_rank",
    "outer_time_s",
    "outer_exposed_s",
    "replica_drift",
    "pseudograd_cosine",
    "quorum_missed",
    "outer_messages_per_rank",
)
_GIVEN = (
    "study",
    "measure_warmup_steps",
    "peak_flops",
    "peak_flops_source",
    "flops_per_token_6n",
    "flops_per_token_palm",
    "flops_per_token_causal",
)
SETTINGS = tuple(
    column.name
    for group, some in RUNS.items()
    for column in some
    if (group in (*COMPUTED, "Environment", "Prediction") and column.name not in _RESULTS) or column.name in _GIVEN
)
COUNTS = ("tokens", *(name for name in SETTINGS if columns("runs")[name].type == "int64" and name not in SEEDS))
_BY_US = {column.name for group in ("Identity", "Loss") for column in RUNS[group]}
_BY_US -= {"val_bits_per_byte", "unigram_nats"}
_BY_US |= {"tokens_seen", "timed_steps", "timed_tokens", "timed_s", "first_step_s", *TIMES}
_BY_US |= {"inner_step_time_s", "outer_round_exposed_s", "timed_outer_steps"}
FOUND = tuple(
    name
    for name in columns("runs")
    if name not in SETTINGS
    and (name in _BY_US or name.startswith(("mfu_", "train_flops_", "step_time_", "tokens_per_s")))
)
MEASURED = tuple(name for name in columns("runs") if name not in SETTINGS and name not in FOUND)
BY_US = "computed by the recorder"

_COMPUTED_NAMES = [column.name for group in COMPUTED for column in RUNS[group]]
CASE = (*(name for name in _COMPUTED_NAMES if name in SETTINGS and name not in NOT_CASE), "world_size")
DEGREES = {name: label for name, label in DEGREE_LABELS.items() if name in MESH_DIMS}


@dataclass
class Written:
    """The lines of a log, as far as it is whole."""

    settings: dict[str, Any]
    started_at: str
    began: Any = None  # the first line's clock, s
    seconds: float | None = None  # from the first line to the last; null: it was cut off
    finished_at: str | None = None
    ending: tuple[str, str | None] | None = None  # status and reason, as the recorder gave them
    steps: list[dict] = field(default_factory=list)
    evals: list[dict] = field(default_factory=list)
    notes: dict = field(default_factory=dict)


def refuse_negative(name: str, value: object) -> None:
    """Counts, seconds, bytes and tokens are 0 or more, ranks and the outer loop's period 1 or more.

    Raises
    ------
    ValueError: this one is less
    """
    least = 1 if name in ("world_size", "outer_sync_every", *DEGREES) else 0
    amount = name in COUNTS or name.endswith(("_s", "_bytes"))
    if amount and isinstance(value, (int, float)) and value < least:
        raise ValueError(f"{name} = {value:g}: must be at least {least}")


def checked_settings(settings: Mapping[str, object]) -> dict[str, Any]:
    """Columns as the table holds them, with what this process knows of itself; ValueError on a mistake."""
    known: dict[str, Any] = {name: _checked_setting(name, value) for name, value in settings.items()}
    return {
        "layout": _layout(known),
        "outer_algorithm": "none",
        "os": f"{platform.system()} {platform.release()}",
        "kernel": platform.release(),
        "python_version": platform.python_version(),
        "cpu_count": len(os.sched_getaffinity(0)),
        "scalade_version": _version("scalade"),
        "torch_version": _version("torch") if "torch" in sys.modules else None,
    } | {name: value for name, value in known.items() if value is not None}


def _checked_setting(name: str, setting: object) -> Value:
    column = known_column("runs", name)
    if name not in SETTINGS:
        raise ValueError(f"{name} is {BY_US if name in FOUND else 'measured over the run: give it to note()'}")
    try:
        value = checked(column, setting)
    except SchemaError as error:
        raise ValueError(str(error)) from None
    refuse_negative(name, value)
    return value


def _layout(known: Mapping[str, Any]) -> str | None:
    """Its short name by the degrees of parallelism; None: they are not given.

    Raises
    ------
    ValueError: they do not multiply to world_size
    """
    degrees = {name: known[name] for name in DEGREES if known.get(name)}
    if degrees:
        _check_degrees(degrees, known)
    parts = [f"{DEGREES[name]}{value}" for name, value in degrees.items() if value > 1]
    return ".".join(parts) or ("single" if known["world_size"] == 1 else None)


def _check_degrees(degrees: Mapping[str, int], known: Mapping[str, Any]) -> None:
    ranks = math.prod(degrees.values())
    if known.get("outer_placement") == "distributed":
        ranks *= known.get("outer_replicas") or 1
    if ranks != known["world_size"]:
        product = ", ".join(f"{name} {value}" for name, value in degrees.items())
        raise ValueError(f"{product}: these multiply to {count_of(ranks, 'rank')}, world_size is {known['world_size']}")


def case_of(settings: Mapping[str, object]) -> str:
    """16 hexadecimal digits of what is computed, as far as it is known; never those of a case of ours."""
    content = {name: settings[name] for name in CASE if settings.get(name) is not None}
    text = json.dumps({"recorded": content}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def written_of(log: Path) -> Written | None:
    """The log's content, up to the first line that is cut off or not ours; None: not even what was run."""
    written: Written | None = None
    try:
        for line in files.read(log, limit=2**28).split(b"\n")[:-1]:
            content = json.loads(line)
            if "settings" in content:
                written = Written(checked_settings(content["settings"]), str(content["started_at"]))
                written.began = content.get("monotonic")
            elif written is None:
                break
            else:
                _add(written, content)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SchemaError):
        pass
    return written


def _add(written: Written, content: dict[str, Any]) -> None:
    """One line of the log after the first."""
    if "finished_at" in content:
        written.ending = str(content["status"]), content["reason"] and str(content["reason"])
        written.finished_at = str(content["finished_at"])
        written.seconds = float(content["monotonic"]) - float(written.began)
    elif "note" in content:
        written.notes |= _checked_row("runs", content["note"])
    elif "step" in content:
        written.steps.append(_with_tokens("steps", content["step"]))
    else:
        written.evals.append(_with_tokens("evals", content["eval"]))


def _with_tokens(table: str, values: dict[str, Any]) -> dict[str, Any]:
    tokens = values.pop("tokens", None)
    return _checked_row(table, values) | {"tokens": tokens}


def _checked_row(table: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: checked(known_column(table, name), value) for name, value in values.items()}


def row_of(written: Written) -> tuple[dict, dict | None, dict | None]:
    """(row of `runs` without its identity, columns of steps, columns of evals)."""
    steps, settings = written.steps, written.settings
    seen = _count_tokens(steps, settings["measure_warmup_steps"])
    row = settings | written.notes
    row |= {
        "parity": "not checked",
        "started_at": written.started_at,
        "finished_at": written.finished_at,
        "wall_s": written.seconds,
        "tokens_seen": seen or None,
    }
    row |= _losses(steps)
    row["tokens_per_step"] = _per_step(steps, settings.get("tokens_per_step"))
    row.setdefault("steps", len(steps) or None)
    row |= speed_columns(steps, row)
    row |= _flops(row)
    row |= _held_out(written.evals, len(steps))
    status, reason = written.ending or ("failed", "killed, or its machine: the recorder ended without a word")
    if status == "ok":
        status, reason = _judged(row, steps)
    row |= {"status": status, "reason": reason}
    return row, _columns(steps), _columns(written.evals)


def _held_out(evals: list[dict], steps: int) -> dict[str, Any]:
    """Of the last evaluation after the last step."""
    last: dict[str, Any] = next((one for one in reversed(evals) if one["step"] == steps), {})
    return {name: last.get(name) for name in ("val_loss", "val_sequences", "val_hash")}


def _count_tokens(steps: list[dict], warmup: int) -> int | None:
    """Mark the warm-up and give every step its tokens_seen. All tokens; None: a step does not say its own."""
    seen: int | None = 0
    for index, row in enumerate(steps):
        tokens = row.pop("tokens")
        seen = None if seen is None or tokens is None else seen + tokens
        row |= {"warmup": index < warmup, "tokens_seen": seen, "tokens": tokens}
    return seen


def _flops(row: Mapping[str, Any]) -> dict[str, float | None]:
    """FLOPs of the run and utilisation, by each convention whose FLOPs per token are known."""
    columns: dict[str, float | None] = {}
    if row.get("params_total") and "flops_per_token_6n" not in row:
        columns["flops_per_token_6n"] = 6.0 * row["params_total"]
    seen, rate, peak = row["tokens_seen"], row.get("tokens_per_s_per_device"), row.get("peak_flops")
    for name in ("6n", "palm", "causal"):
        flops = columns.get(f"flops_per_token_{name}", row.get(f"flops_per_token_{name}"))
        columns[f"train_flops_{name}"] = flops * seen if flops and seen else None
        columns[f"mfu_{name}"] = flops * rate / peak if flops and rate and peak else None
    return columns


def _judged(row: dict, steps: list[dict]) -> tuple[str, str | None]:
    if not steps:
        return "failed", "no step was recorded"
    for index, one in enumerate(steps):
        if _diverged(one.get("loss")):
            return "diverged", f"loss is {one['loss']} at step {index}"
    if _diverged(row["val_loss"]):
        return "diverged", f"held-out loss is {row['val_loss']}"
    return "ok", None


def _diverged(loss: float | None) -> bool:
    return loss is not None and not math.isfinite(loss)


def _losses(steps: list[dict]) -> dict[str, object]:
    """As for our own runs (docs/table.md); of a trainer that records only every so-many-th loss, of those."""
    if not steps:
        return dict.fromkeys(("train_loss_first", "train_loss_last", "loss"))
    tail = known_values(steps[-max(1, len(steps) // 10) :], "loss") or known_values(steps, "loss")[-1:]
    return {
        "train_loss_first": steps[0].get("loss"),
        "train_loss_last": steps[-1].get("loss"),
        "loss": statistics.fmean(tail) if tail else None,
    }


def _per_step(steps: list[dict], declared: int | None) -> int | None:
    """Tokens of a step, from the steps; null where they differ, the declared number where no step has them."""
    recorded = set(known_values(steps, "tokens"))
    if not recorded:
        return declared
    return recorded.pop() if len(recorded) == 1 else None


def _columns(rows: list[dict]) -> dict[str, list] | None:
    if not rows:
        return None
    names = dict.fromkeys(chain.from_iterable(rows))
    return {name: [row.get(name) for row in rows] for name in names if name != "tokens"}


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
