"""The facts that a scaling study must report, and which of them this table holds.

Collected from Hoefler and Belli (SC'15, doi 10.1145/2807591.2807644), the MLCommons training policies, and what
reproductions of scaling laws missed: convention of FLOPs and N (arXiv 2406.19146, 2404.10102), the schedule
and the warm-up (2406.19146), the data and its repeats (2305.16264).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from ..efficiency.fastest import same_training
from ..efficiency.workload import Group, has_outer_loop
from ..schema.rows import distinct, values_in
from ..stats.rank_intervals import MIN_RUNS
from ..table.column_codes import Coded
from ..table.rank_places import hosts_of
from ..wording import count_of
from .source import Source

REPORTED, PARTLY, MISSING, NOT_ASKED = "reported", "partly", "missing", "does not apply"
MIXED = ("git_commit", "torch_version", "driver_version", "cpu_model", "device_name")  # of one environment
AGREE = {"fp32": 1e-4, "bf16": 2e-2}  # relative difference of the losses of layouts that compute the same


@dataclass(frozen=True)
class Item:
    """One thing to report."""

    what: str
    verdict: str
    detail: str  # what the table holds, or what is missing and how to get it


@dataclass(frozen=True)
class _Asked:
    what: str
    columns: tuple[str, ...]
    how: str = ""  # to get what is missing
    applies: Callable[[Mapping], bool] = lambda row: True


ASKED = (
    _Asked(
        "model shape",
        ("model_layers", "model_heads", "model_kv_heads", "model_width", "model_ffn", "model_vocab", "model_seq_len"),
    ),
    _Asked("N by both counts: with and without embeddings", ("params_total", "params_non_embedding")),
    _Asked("data, named and hashed", ("data_source", "data_hash")),
    _Asked("tokens seen, and how many of them are different", ("tokens_seen", "tokens_unique")),
    _Asked("optimizer", ("optimizer", "beta1", "weight_decay", "clip_norm")),
    _Asked("learning rate, schedule and warm-up", ("lr", "lr_schedule", "warmup_steps")),
    _Asked("batch in tokens", ("global_batch", "tokens_per_step")),
    _Asked("precision, initialisation and seed", ("precision", "init_std", "seed")),
    _Asked(
        "layout in full",
        ("engine", "layout", "dp_replicate", "dp_shard", "tp", "pp", "cp", "microbatches", "recompute"),
    ),
    _Asked(
        "outer loop: H, M, outer learning rate, compression",
        ("outer_sync_every", "outer_replicas", "outer_compression", "outer_steps"),
        applies=lambda row: (row["outer_algorithm"] or "none") != "none",
    ),
    _Asked("processor or accelerator, by name", ("cpu_model",), applies=lambda row: row["device_type"] == "cpu"),
    _Asked(
        "accelerator, driver and CUDA",
        ("device_name", "driver_version", "cuda_version"),
        applies=lambda row: row["device_type"] == "cuda",
    ),
    _Asked(
        "software versions",
        ("scalade_version", "torch_version", "python_version", "os", "kernel", "backend"),
        applies=lambda row: (row["world_size"] or 1) > 1,
    ),
    _Asked("commit of the code", ("git_commit",), "run from a git checkout"),
    _Asked("which rank ran where", ("ranks_json", "nodes", "launcher")),
    _Asked("FLOPs under a named convention", ("flops_per_token_6n", "flops_per_token_palm", "flops_per_token_causal")),
    _Asked("peak and where it is from", ("peak_flops", "peak_flops_source"), "measure.peak_matmul = true measures it"),
    _Asked("warm-up left out of the times", ("measure_warmup_steps", "timed_steps")),
    _Asked("spread of the step times", ("step_time_s", "step_time_p05_s", "step_time_p95_s")),
    _Asked("time of forward and backward, optimizer and data", ("compute_time_s", "optimizer_time_s", "data_time_s")),
    _Asked(
        "bytes and time of communication",
        ("comm_bytes_per_step", "comm_time_s"),
        "measure.probe_comm = true",
        applies=lambda row: (row["world_size"] or 1) > 1,
    ),
    _Asked(
        "communication that was waited for",
        ("exposed_comm_time_s",),
        "measured under gloo; not on a GPU yet",
        applies=lambda row: (row["world_size"] or 1) > 1,
    ),
    _Asked("memory", ("peak_memory_bytes",), applies=lambda row: row["device_type"] == "cuda"),
    _Asked("memory of the host", ("peak_host_memory_bytes",), applies=lambda row: row["device_type"] == "cpu"),
    _Asked("held-out loss", ("val_loss",), "measure.eval_sequences"),
    _Asked("energy", ("energy_j", "energy_source"), "needs NVML or RAPL"),
)


def checklist(source: Source) -> list[Item]:
    """Every item with its verdict, for the runs with status ok."""
    return [
        *(_columns(asked, source.ok) for asked in ASKED),
        _base(source),
        _batch(source),
        _repeats(source.groups),
        _seeds(source.groups),
        _parity(source.groups),
        _bound(source.ok),
        _reasons(source),
        _clean(source.ok),
    ]


def _columns(asked: _Asked, rows: Sequence[Mapping]) -> Item:
    rows = [row for row in rows if asked.applies(row)]
    if not rows:
        return Item(asked.what, NOT_ASKED, "no run with status ok that this asks of")
    null = np.array([*map(Coded(rows).null, asked.columns)])  # (columns, rows)
    absent = [name for name, of_column in zip(asked.columns, null, strict=True) if of_column.any()]
    if not absent:
        return Item(asked.what, REPORTED, f"in all {count_of(len(rows), 'run')}")
    whole = len(rows) - null.any(axis=0).sum()
    how = f"; {asked.how}" if asked.how else ""
    return Item(
        asked.what,
        MISSING if null.all() else PARTLY,
        f"null: {', '.join(absent)}; whole in {whole} of {count_of(len(rows), 'run')}{how}",
    )


def _base(source: Source) -> Item:
    what = "base of each ratio, with its absolute figure"
    every = (one.base for one in chain.from_iterable(source.series.values()))
    bases = sorted({f"{base.group.where}: {base.tokens_per_s.value:,.0f} tokens/s" for base in every})
    if not bases:
        return Item(what, NOT_ASKED, "no ratio is formed")
    return Item(what, REPORTED, "; ".join(bases[:4]) + (f" and {len(bases) - 4} more" if len(bases) > 4 else ""))


def _batch(source: Source) -> Item:
    what = "weak or strong: what is held fixed when devices grow"
    if len({group.devices for group in source.groups}) < 2:
        return Item(what, NOT_ASKED, "one device count")
    modes = [f"{mode} in {len(series)} series" for mode, series in source.series.items() if series]
    if modes:
        return Item(what, REPORTED, ", ".join(modes))
    sizes = len({group.level("strong") for group in source.groups})
    return Item(what, MISSING, f"{sizes} amounts of tokens a step, equal neither in all nor per device")


def _repeats(groups: Sequence[Group]) -> Item:
    what = f"at least {MIN_RUNS} runs of each case, for an interval"
    if not groups:
        return Item(what, MISSING, "no timed run")
    few = [len(group.rows) for group in groups if len(group.rows) < MIN_RUNS]
    if not few:
        return Item(what, REPORTED, f"all {count_of(len(groups), 'layout')}")
    return Item(
        what,
        PARTLY if len(few) < len(groups) or min(few) > 1 else MISSING,
        f"{len(few)} of {count_of(len(groups), 'layout')} have fewer, down to {min(few)}; run.repeats = {MIN_RUNS}",
    )


def _seeds(groups: Sequence[Group]) -> Item:
    what = "several seeds, for the spread of the loss"
    seeds = {row["seed"] for group in groups for row in group.rows}
    if len(seeds) > 1:
        return Item(what, REPORTED, f"{len(seeds)} seeds")
    return Item(what, MISSING, "one seed: repeats say how times vary, and nothing of how losses do")


def _parity(groups: Sequence[Group]) -> Item:
    """Layouts of one workload and seed compute the same: how far their losses lie apart."""
    what = "layouts compute the same training"
    spreads = [_loss_spread(losses) for losses in _losses_of_layouts(groups) if len(losses) > 1]
    if not spreads:
        return Item(what, NOT_ASKED, "no two layouts of one workload and seed")
    worst = max(spread for spread, _ in spreads)
    over = sum(spread > tolerance for spread, tolerance in spreads)
    agree = f"final losses of {len(spreads)} workloads agree to {worst:.1e} at worst"
    if not over:
        return Item(what, REPORTED, agree)
    return Item(what, PARTLY, f"{agree}: {over} beyond the rounding of the precision; scalade verify looks closer")


def _losses_of_layouts(groups: Sequence[Group]) -> Iterable[Mapping[int, _Losses]]:
    """For each workload and seed without outer loop, the losses of each layout, by id of its group."""
    by_work: dict[tuple, dict[int, _Losses]] = {}
    for group, work in zip(groups, same_training(groups), strict=True):
        if has_outer_loop(group.rows[0]):
            continue
        for row in group.rows:
            if row["loss"]:
                layouts = by_work.setdefault((work, row["seed"]), {})
                layouts.setdefault(id(group), _Losses(group["precision"], [])).values.append(row["loss"])
    return by_work.values()


class _Losses(NamedTuple):
    precision: str
    values: list[float]


def _loss_spread(layouts: Mapping[int, _Losses]) -> tuple[float, float]:
    """Largest loss over the smallest, less 1; and how much the precision explains."""
    values = [value for losses in layouts.values() for value in losses.values]
    precision = next(iter(layouts.values())).precision
    return max(values) / min(values) - 1, AGREE.get(precision, 0.0)


def _bound(rows: Sequence[Mapping]) -> Item:
    what = "an upper bound or a prediction beside the measurement"
    bounded = [row for row in rows if row["peak_flops"] is not None or row["predicted_step_time_s"] is not None]
    detail = f"peak or predicted step time in {len(bounded)} of {count_of(len(rows), 'run')}"
    if not bounded:
        return Item(what, MISSING, detail)
    return Item(what, REPORTED if len(bounded) == len(rows) else PARTLY, detail)


def _reasons(source: Source) -> Item:
    what = "failures and skips, each with its reason"
    failed = [row for row in source.rows if row["status"] != "ok"]
    silent = sum(not row["reason"] for row in failed)
    if silent:
        return Item(what, PARTLY, f"{silent} of {len(failed)} have no reason")
    if not failed:
        return Item(what, REPORTED, "every run is ok")
    return Item(what, REPORTED, f"{len(failed)} of {count_of(len(source.rows), 'run')}, each with one")


def _clean(rows: Sequence[Mapping]) -> Item:
    what = "committed code, one environment"
    doubts = "; ".join(_doubts(rows))
    if doubts:
        return Item(what, PARTLY, doubts)
    hosts = set(chain.from_iterable(hosts_of(text).values() for text in values_in(rows, "ranks_json")))
    return Item(what, REPORTED, f"one commit, {count_of(len(hosts), 'host')}")


def _doubts(rows: Sequence[Mapping]) -> Iterator[str]:
    """Why these runs may be of different code, or of an environment each."""
    dirty = values_in(rows, "git_dirty")
    if True in dirty:
        yield f"{count_of(dirty.count(True), 'run')} of uncommitted code"
    if None in dirty:
        yield f"{count_of(dirty.count(None), 'run')} of which it is not known"
    mixed = [name for name in MIXED if len(distinct(rows, name)) > 1]
    if mixed:
        yield f"differs between runs: {', '.join(mixed)}"
