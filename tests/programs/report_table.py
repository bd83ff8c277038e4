"""A simulated results folder with everything that a report can draw: ladders, a sweep, DiLoCo, failures, bad names."""

import os
from unittest import mock

import numpy as np
from efficiency_table import run as efficiency_run

from scalade.results.store.store import RunStore

HOSTILE = "<script>alert('x')</script>\"&$(rm -rf ~)$\n\x1b[31m_"
A, B, E, ALPHA, BETA = 400.0, 400.0, 1.7, 0.34, 0.28


def row(devices, step_time_s, repeat=0, **other):
    """One run of `runs`, with the columns that the report reads besides those of efficiency."""
    more = {
        "started_at": f"2026-01-01T00:{repeat:02d}:00", "wall_s": 60.0, "model_qk_norm": False, "model_tied": False,
        "params_non_embedding": 250_000, "tokens_unique": 245_760, "data_val_fraction": 0.05, "init_std": 0.02,
        "min_lr_ratio": 0.1, "decay_fraction": 0.2, "z_loss": 0.0, "backend": "nccl", "driver_version": "550.1",
        "cuda_version": "12.8", "device_count": 8, "peak_memory_bytes": int(3e9 / devices + 2e8),
        "predicted_memory_bytes": int(3.1e9 / devices + 1.9e8), "peak_host_memory_bytes": 900_000_000,
        "compute_time_s": 0.7 * step_time_s, "optimizer_time_s": 0.06 * step_time_s, "data_time_s": 0.01 * step_time_s,
        "comm_time_s": 0.3 * step_time_s if devices > 1 else 0.0, "predicted_step_time_s": 0.9 * step_time_s,
        "step_time_p05_s": 0.95 * step_time_s, "comm_bytes_per_step": 1_200_000 * devices if devices > 1 else 0,
        "comm_calls_per_step": 4, "loss": 3.1, "val_loss": 3.0, "train_loss_first": 5.5, "train_loss_last": 3.05,
        "measure_probe_comm": True, "energy_j": None,
    }  # fmt: skip
    found = efficiency_run(devices, step_time_s, repeat, **more | other)
    found["tokens_seen"] = other.get("tokens_seen", found["tokens_per_step"] * found["steps"])
    found["train_flops_6n"] = found["flops_per_token_6n"] * found["tokens_seen"]
    return {name: value for name, value in found.items() if name not in ("step_rows", "eval_rows")}


def several(devices, step_time_s, runs=6, noise=0.02, seed=0, **other):
    rng = np.random.default_rng(seed)
    return [row(devices, step_time_s * float(np.exp(rng.normal(0, noise))), i, **other) for i in range(runs)]


def ladders(runs=6):
    """Strong and weak scaling of data parallel and sharded layouts to 64 devices, tensor parallel to 8."""
    rows = []
    for n in (1, 2, 4, 8, 16, 32, 64):
        usl = (1 + 0.03 * (n - 1) + 0.0004 * n * (n - 1)) / n
        rows += several(n, 0.4 * usl, runs, seed=n)
        if n > 1:
            sharded = {"dp_replicate": 1, "dp_shard": n, "layout": f"fsdp{n}", "case_id": f"f{n}"}
            rows += several(n, 0.4 * usl * 1.15 ** np.log2(n), 3, seed=100 + n, **sharded)
            rows += several(n, 0.4 * (1 + 0.02 * np.log2(n)), runs, seed=200 + n, global_batch=64 * n, case_id=f"w{n}")
        if 1 < n <= 8:
            rows += several(n, 0.4 / n**0.6, 2, seed=300 + n, dp_replicate=1, tp=n, layout=f"tp{n}", case_id=f"t{n}")
    pipeline = {"dp_replicate": 1, "pp": 4, "pp_schedule": "1F1B", "microbatches": 8, "layout": "pp4-1F1B.m8"}
    return rows + several(4, 0.16, 1, case_id="p4", **pipeline)


def sweep(seeds=1):
    """Chinchilla's law at six budgets and eight sizes around the best of each."""
    rows = []
    rng = np.random.default_rng(1)
    for i, flops in enumerate(np.geomspace(1e15, 1e18, 6)):
        best = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * (flops / 6) ** (BETA / (ALPHA + BETA))
        for j, factor in enumerate(np.geomspace(0.25, 4, 8)):
            params = int(best * factor)
            tokens = int(flops / 6 / params)
            for seed in range(seeds):
                loss = (E + A / params**ALPHA + B / tokens**BETA) * float(np.exp(rng.normal(0, 0.002)))
                steps = max(tokens // 8192, 1)
                rows.append(
                    row(
                        1,
                        0.1,
                        seed,
                        case_id=f"s{i}{j}",
                        model=f"m{params}",
                        params_total=params,
                        model_width=64 + j,
                        tokens_seen=tokens,
                        steps=steps,
                        loss=loss,
                        val_loss=loss,
                        seed=seed,
                    )
                )
    return rows


def outer():
    """DiLoCo at M = 2 and 4, H = 10 and 30, and folded, beside data parallel of the same recipe."""
    settings = {"outer_lr": 0.6, "outer_momentum": 0.9, "outer_nesterov": True, "global_batch": 128, "steps": 60}
    rows = several(4, 0.2, 6, case_id="d0", global_batch=128, steps=60)
    for m in (2, 4):
        for h in (10, 30):
            for packed in ("none", "int4"):
                size = 1_200_000 // (8 if packed == "int4" else 1)
                rows += several(
                    4,
                    0.2 * (0.7 + 1 / h),
                    6,
                    case_id=f"d{m}{h}{packed}",
                    outer_algorithm="diloco",
                    outer_replicas=m,
                    outer_sync_every=h,
                    outer_compression=packed,
                    outer_steps=60 // h,
                    layout=f"dp{4 // m}.rep{m}",
                    dp_replicate=4 // m,
                    outer_bytes_per_rank=size * 60 // h,
                    val_loss=3.0 + 0.01 * m + h / 2000,
                    comm_bytes_inner_step=1_200_000 * 4 if m < 4 else 0,
                    **settings,
                )
    return rows + several(
        1,
        0.9,
        2,
        case_id="dfold",
        outer_algorithm="diloco",
        outer_replicas=2,
        outer_sync_every=10,
        outer_placement="folded",
        outer_bytes_per_rank=0,
        comm_bytes_inner_step=0,
        **settings,
    )


def outer_sweep(seeds=3):
    """DiLoCo's joint law (arXiv 2503.09799, table 10) and data parallel's at four sizes, M = 1, 2, 4, D = 20 N."""
    rows, rng = [], np.random.default_rng(2)
    for i, params in enumerate((1_000_000, 3_000_000, 10_000_000, 30_000_000)):
        for m in (0, 1, 2, 4):
            for seed in range(seeds):
                loss = 18.1 * params**-0.0953 if not m else 19.2 * params**-0.0985 * m**0.0116
                loss *= float(np.exp(rng.normal(0, 0.001)))
                outer_of = (
                    {}
                    if not m
                    else {
                        "outer_algorithm": "diloco",
                        "outer_replicas": m,
                        "outer_sync_every": 30,
                        "outer_lr": 0.6,
                        "outer_compression": "none",
                        "layout": f"rep{m}",
                        "outer_steps": 2,
                    }
                )
                rows.append(
                    row(
                        1,
                        0.1,
                        seed,
                        case_id=f"o{i}{m}{seed}",
                        model=f"n{params}",
                        params_total=params,
                        tokens_seen=20 * params,
                        loss=loss,
                        val_loss=loss,
                        seed=seed,
                        model_width=64 + i,
                        **outer_of,
                    )
                )
    return rows


def on_a100(runs=6):
    """Runs that published A100 rows may be set against: bf16 over the datasheet's peak."""
    return several(
        8, 0.0012, runs, precision="bf16", peak_flops=312e12, case_id="a8", layout="fsdp8", dp_shard=8, dp_replicate=1
    )


def troubles():
    """Runs that came to nothing."""
    reasons = {
        "oom": "rank 1 on host a: out of memory: needed 4.2 GiB",
        "failed": f"rank 0: {HOSTILE}",
        "skipped": "predicted 95 GiB, a device has 80",
        "timeout": "no step within 120 s",
        "diverged": "loss is NaN at step 17",
    }
    rows = []
    for i, (status, reason) in enumerate(reasons.items()):
        for repeat in range(3):
            one = row(8, 1.0, repeat, status=status, reason=reason, case_id=f"x{i}", layout="fsdp8", dp_shard=8)
            lost = [
                n
                for n in one
                if "time" in n or "loss" in n or n.startswith(("mfu", "tokens_per_s", "peak_m", "peak_h", "comm"))
            ]
            rows.append(one | dict.fromkeys([*lost, "tokens_seen"]))
    return rows


def hostile():
    """Names that try to be markup, mathtext, terminal control and hidden legends."""
    rows = []
    for n in (1, 2, 4):
        rows += several(
            n,
            0.3 / n,
            2,
            case_id=f"h{n}",
            model=HOSTILE,
            layout=f"_{HOSTILE}",
            study=HOSTILE,
            device_name=HOSTILE,
            cpu_model=HOSTILE,
            params_total=123_456,
        )
    return rows


def stored(folder, rows, losses=True):
    """The rows in a results folder, each ok run with a curve in `steps` that ends at its loss."""
    store = RunStore(folder)
    with mock.patch.object(os, "fsync"):
        for one in rows:
            steps = None
            if losses and one["status"] == "ok":
                at = np.arange(30)
                steps = {
                    "step": at.tolist(),
                    "warmup": (at < 5).tolist(),
                    "step_time_s": [one["step_time_s"]] * 30,
                    "loss": (one["loss"] + 2.5 * np.exp(-at / 6.0)).tolist(),
                }
            one = {name: value for name, value in one.items() if value is not None}
            store.write_run(one, steps)
    return folder
