"""Simulated rows of the tables, as a run writes them: what the tests of efficiency, published rows and rules share."""

import json

import numpy as np

SHAPE = {
    "model_layers": 4,
    "model_heads": 4,
    "model_kv_heads": 4,
    "model_width": 64,
    "model_ffn": 256,
    "model_vocab": 256,
    "model_seq_len": 128,
    "model_mlp": "swiglu",
    "params_total": 300_000,
}
DATA = {"data_source": "stdlib", "data_hash": "f00d", "data_vocab": 256}
RECIPE = {
    "global_batch": 64,
    "steps": 30,
    "lr": 1e-3,
    "optimizer": "adamw",
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
    "weight_decay": 0.1,
    "lr_schedule": "cosine",
    "warmup_steps": 5,
    "clip_norm": 1.0,
    "precision": "fp32",
    "seed": 0,
}
LAYOUT = {
    "layout": "single",
    "engine": "torch",
    "dp_replicate": 1,
    "dp_shard": 1,
    "tp": 1,
    "pp": 1,
    "cp": 1,
    "ep": 1,
    "microbatches": 1,
    "virtual_stages": 1,
    "recompute": "none",
    "compile": False,
    "outer_algorithm": "none",
    "outer_replicas": 1,
}
AROUND = {"status": "ok", "reason": None, "attempt": 1, "study": "s", "model": "m", "step_rows": 30, "eval_rows": 0,
          "launcher": "local", "nodes": 1, "device_type": "cuda", "device_name": "NVIDIA A100-SXM4-80GB",
          "threads_per_rank": 1, "os": "Linux", "kernel": "6", "scalade_version": "0.1.0", "git_commit": "abc",
          "git_dirty": False, "python_version": "3.11", "torch_version": "2.13.0", "measure_warmup_steps": 5,
          "timed_steps": 25, "peak_flops": 19.5e12, "peak_flops_source": "datasheet", "train_loss_last": 3.0,
          "predicted_step_time_s": None}  # fmt: skip


def run(devices: int, step_time_s: float | None, repeat: int = 0, **other) -> dict:
    """A row of `runs`: data parallel on so many devices, unless `other` says more."""
    row = SHAPE | DATA | RECIPE | LAYOUT | AROUND | {"world_size": devices, "dp_replicate": devices, "repeat": repeat}
    row |= {"layout": f"dp{devices}" if devices > 1 else "single"} | other
    row["case_id"] = other.get("case_id", f"{devices:02d}{row['layout']}")
    row["run_id"] = f"{row['case_id']}-r{repeat}"
    row["ranks_json"] = json.dumps([{"rank": rank, "host": "a"} for rank in range(row["world_size"])])
    row["tokens_per_step"] = row["global_batch"] * row["model_seq_len"]
    row |= {"step_time_s": step_time_s, "tokens_per_s": None, "tokens_per_s_per_device": None, "step_time_p95_s": None}
    if step_time_s:
        rate = row["tokens_per_step"] / step_time_s
        row |= {"tokens_per_s": rate, "tokens_per_s_per_device": rate / devices, "step_time_p95_s": 1.1 * step_time_s}
    for name in ("6n", "palm", "causal"):
        row[f"flops_per_token_{name}"] = 6.0 * row["params_total"]
        per_device = row["tokens_per_s_per_device"]
        peak = row["peak_flops"]
        row[f"mfu_{name}"] = row[f"flops_per_token_{name}"] * per_device / peak if per_device and peak else None
    return row


def repeats(devices: int, step_time_s: float, runs: int = 6, noise: float = 0.0, rng=None, **other) -> list[dict]:
    """So many runs of one case, their times spread log-normally by `noise`."""
    rng = np.random.default_rng(0) if rng is None else rng
    return [run(devices, step_time_s * float(np.exp(rng.normal(0, noise))), i, **other) for i in range(runs)]


def steps_of(row: dict, losses, step_time_s: float | None = None, **other) -> list[dict]:
    """Rows of `steps` of a run."""
    nothing = {"outer_exposed_s": None}
    return [
        {"run_id": row["run_id"], "step": i, "warmup": i < 5, "loss": loss} | nothing | other
        for i, loss in enumerate(losses)
    ]


def as_columns(steps: list[dict]) -> dict[str, np.ndarray]:
    """Rows of `steps` of a run as step_columns.py has them."""
    return {name: np.array([step[name] for step in steps], float) for name in steps[0] if name != "run_id"}
