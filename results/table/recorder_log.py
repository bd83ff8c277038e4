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
from pathlib import Path
from typing import Any

from .. import files
from ..schema.columns import DEGREE_LABELS, MESH_DIMS, RUNS
from ..schema.schema import SchemaError, Value, checked, columns, known_column
from ..wording import count_of

LOG = "recorded.jsonl"
COMPUTED = ("Model", "Data", "Recipe", "Layout", "Outer loop")  # groups that decide what is computed
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
_TIMES = ("data_time_s", "compute_time_s", "optimizer_time_s")  # of runs, medians of the same columns of steps
SETTINGS = tuple(
    column.name
    for group, some in RUNS.items()
    for column in some
    if (group in (*COMPUTED, "Environment", "Prediction") and column.name not in _RESULTS) or column.name in _GIVEN
)
_BY_US = {column.name for group in ("Identity", "Loss") for column in RUNS[group]}
_BY_US -= {"val_bits_per_byte", "unigram_nats"}
_BY_US |= {"tokens_seen", "timed_steps", "timed_tokens", "timed_s", "first_step_s", *_TIMES}
_BY_US |= {"inner_step_time_s", "outer_round_exposed_s", "timed_outer_steps"}
FOUND = tuple(
    name
    for name in columns("runs")
    if name not in SETTINGS
    and (name in _BY_US or name.startswith(("mfu_", "train_flops_", "step_time_", "tokens_per_s")))
)
MEASURED = tuple(name for name in columns("runs") if name not in SETTINGS and name not in FOUND)
BY_US = "found out by the recorder"
SEEDS = ("seed", "data_chain_seed")
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
    counted = columns("runs")[name].type == "int64" if name in SETTINGS and name not in SEEDS else name == "tokens"
    if (counted or name.endswith(("_s", "_bytes"))) and isinstance(value, (int, float)) and value < least:
        raise ValueError(f"{name} = {value:g}: must be at least {least}")


def checked_settings(given: Mapping[str, object]) -> dict[str, Any]:
    """Columns as the table holds them, with what this process knows of itself; ValueError on a mistake."""
    known: dict[str, Any] = {name: _checked_setting(name, value) for name, value in given.items()}
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


def _checked_setting(name: str, given: object) -> Value:
    column = known_column("runs", name)
    if name not in SETTINGS:
        raise ValueError(f"{name} is {BY_US if name in FOUND else 'measured over the run: give it to note()'}")
    try:
        value = checked(column, given)
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
    ranks = math.prod(degrees.values())
    if known.get("outer_placement") == "distributed":
        ranks *= known.get("outer_replicas") or 1
    if degrees and ranks != known["world_size"]:
        product = ", ".join(f"{name} {value}" for name, value in degrees.items())
        raise ValueError(f"{product}: these multiply to {count_of(ranks, 'rank')}, world_size is {known['world_size']}")
    parts = [f"{DEGREES[name]}{value}" for name, value in degrees.items() if value > 1]
    return ".".join(parts) or ("single" if known["world_size"] == 1 else None)


def case_of(settings: Mapping[str, object]) -> str:
    """16 hexadecimal digits of what is computed, as far as it is known; never those of a case of ours."""
    names = [c.name for group in COMPUTED for c in RUNS[group] if c.name in SETTINGS and c.name not in NOT_CASE]
    content = {name: settings[name] for name in (*names, "world_size") if settings.get(name) is not None}
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
        written.notes |= {k: checked(known_column("runs", k), v) for k, v in content["note"].items()}
    else:
        name = "step" if "step" in content else "eval"
        tokens = content[name].pop("tokens", None)
        row = {k: checked(known_column(f"{name}s", k), v) for k, v in content[name].items()}
        (written.steps if name == "step" else written.evals).append(row | {"tokens": tokens})


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
    row |= _speed(steps, row)
    row |= _flops(row)
    last = [one for one in written.evals if one["step"] == len(steps)]
    row |= {name: last[-1].get(name) if last else None for name in ("val_loss", "val_sequences", "val_hash")}
    status, reason = written.ending or ("failed", "killed, or its machine: the recorder ended without a word")
    if status == "ok":
        status, reason = _judged(row, steps)
    row |= {"status": status, "reason": reason}
    return row, _columns(steps), _columns(written.evals)


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
        if one.get("loss") is not None and not math.isfinite(one["loss"]):
            return "diverged", f"loss is {one['loss']} at step {index}"
    if row["val_loss"] is not None and not math.isfinite(row["val_loss"]):
        return "diverged", f"held-out loss is {row['val_loss']}"
    return "ok", None


def _losses(steps: list[dict]) -> dict[str, object]:
    """As for our own runs (docs/table.md); of a trainer that records only every so-many-th loss, of those."""
    losses = [one["loss"] for one in steps if one.get("loss") is not None]
    tail = [one["loss"] for one in steps[-max(1, len(steps) // 10) :] if one.get("loss") is not None] or losses[-1:]
    return {
        "train_loss_first": steps[0].get("loss") if steps else None,
        "train_loss_last": steps[-1].get("loss") if steps else None,
        "loss": statistics.fmean(tail) if losses else None,
    }


def _per_step(steps: list[dict], declared: int | None) -> int | None:
    """Tokens of a step, from the steps; null where they differ, the declared number where no step has them."""
    recorded = {one["tokens"] for one in steps if one["tokens"] is not None}
    if not recorded:
        return declared
    return recorded.pop() if len(recorded) == 1 else None


def _speed(steps: list[dict], row: dict) -> dict[str, Any]:
    timed = [one for one in steps if not one["warmup"] and one.get("step_time_s") is not None]
    first = {"timed_steps": len(timed), "first_step_s": steps[0].get("step_time_s") if steps else None}
    step = _step_time(steps, timed, row) if timed else {"step_time_s_reason": _untimed(steps, row)}
    columns = first | step | _rate(steps, timed, row, step)
    if not timed:
        return columns
    times = sorted(one["step_time_s"] for one in timed)
    for name in _TIMES:
        parts = [one[name] for one in timed if one.get(name) is not None]
        columns[name] = statistics.median(parts) if len(parts) == len(timed) else None
    return columns | {"step_time_p05_s": _quantile(times, 0.05), "step_time_p95_s": _quantile(times, 0.95)}


def _step_time(steps: list[dict], timed: list[dict], row: dict) -> dict[str, Any]:
    """step_time_s: the median; with an outer loop as outer_cost.py has it, where each step records its wait for the
    outer step, else (streaming: always) the mean over the last whole rounds; or why there is none."""
    if (row.get("outer_algorithm") or "none") == "none":
        return {"step_time_s": statistics.median(one["step_time_s"] for one in timed)}
    period = row.get("outer_sync_every")
    if not period:
        return {"step_time_s_reason": f"{row['outer_algorithm']} without its period: record(outer_sync_every=...)"}
    if row["outer_algorithm"] == "streaming" or any(one.get("outer_exposed_s") is None for one in timed):
        rounds, why = _whole_rounds(steps, timed, row)
        if why:
            return {"step_time_s_reason": why}
        return {"step_time_s": statistics.fmean(one["step_time_s"] for one in rounds)}
    waits = [one["outer_exposed_s"] for one in timed if one.get("outer_step", one["outer_exposed_s"] > 0)]
    inner = statistics.median(one["step_time_s"] - one["outer_exposed_s"] for one in timed)
    columns = {"inner_step_time_s": inner, "timed_outer_steps": len(waits)}
    if not waits:
        return columns | {"step_time_s_reason": f"no outer step is among the {len(timed)} timed steps: more steps"}
    exposed = statistics.fmean(waits)
    return columns | {"outer_round_exposed_s": exposed, "step_time_s": inner + exposed / period}


def _whole_rounds(steps: list[dict], timed: list[dict], row: dict) -> tuple[list[dict], str | None]:
    """Without an outer loop all timed steps, else the last that make whole rounds; or why there are none."""
    period = row.get("outer_sync_every")
    if (row.get("outer_algorithm") or "none") == "none" or not period:
        return timed, None
    for index, one in enumerate(steps):
        if not one["warmup"] and one.get("step_time_s") is None:  # it may be the outer step, and then a round is cheap
            return [], f"step {index} of an outer loop does not say its time: run.step(step_time_s=...) in every step"
    rounds = timed[len(timed) % period :]
    return rounds, None if rounds else f"{len(timed)} timed steps are no whole round of {period}: more steps"


def _rate(steps: list[dict], timed: list[dict], row: dict, step: Mapping[str, Any]) -> dict[str, Any]:
    """tokens/s: the tokens of a step over step_time_s; of steps that differ in tokens all over all.

    The median step of varying work stands for no rate: 90 steps of 100 tokens in 1 s and 10 of 1000
    in 2 s make 172.7 tokens/s, and neither 100 nor 500.
    """
    if "step_time_s" not in step:
        return {"tokens_per_s_reason": step["step_time_s_reason"]}
    columns: dict[str, Any] = {}
    if row["tokens_per_step"] is not None:
        tokens, seconds = row["tokens_per_step"], step["step_time_s"]
    else:
        counted, why = _with_tokens(steps, timed, row)
        if why:
            return {"tokens_per_s_reason": why}
        tokens, seconds = sum(one["tokens"] for one in counted), math.fsum(one["step_time_s"] for one in counted)
        columns = {"timed_tokens": tokens, "timed_s": seconds}
    if not tokens or not 0 < seconds < math.inf:
        why = f"{tokens} tokens in {seconds:g} s is no rate: tokens and step_time_s must be above 0"
        return columns | {"tokens_per_s_reason": why}
    return columns | {"tokens_per_s": tokens / seconds, "tokens_per_s_per_device": tokens / seconds / row["world_size"]}


def _with_tokens(steps: list[dict], timed: list[dict], row: dict) -> tuple[list[dict], str | None]:
    """The timed steps that record their tokens, with an outer loop of whole rounds; or why there are none."""
    if all(one["tokens"] is None for one in timed):
        which = "no timed step" if any(one["tokens"] is not None for one in steps) else "no step"
        return [], f"tokens per step unknown: {which} says run.step(tokens=...)"
    rounds, why = _whole_rounds(steps, timed, row)
    outer = (row.get("outer_algorithm") or "none") != "none"
    if outer and not why and any(one["tokens"] is None for one in rounds):
        why = "steps of an outer loop differ in tokens, and some do not say them: run.step(tokens=...) in every step"
    return [one for one in rounds if one["tokens"] is not None], why


def _untimed(steps: list[dict], row: dict) -> str:
    """Why no step is timed."""
    if not steps:
        return "no step was recorded"
    if all(one.get("step_time_s") is None for one in steps):
        return "no step says its time: run.step(step_time_s=...)"
    if all(one["warmup"] for one in steps):
        warm = row["measure_warmup_steps"]
        every = count_of(len(steps), "step is", "steps are")
        return f"all {every} warm-up: record(measure_warmup_steps=...) below {warm}, or more steps"
    return "no step after the warm-up says its time: run.step(step_time_s=...)"


def _quantile(ordered: list[float], share: float) -> float:
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    return ordered[low] + (at - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def _columns(rows: list[dict]) -> dict[str, list] | None:
    names = list(dict.fromkeys(name for row in rows for name in row if name != "tokens"))
    return {name: [row.get(name) for row in rows] for name in names} if rows else None


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
