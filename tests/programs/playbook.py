"""The Ultra-Scale Playbook's sweep of nanotron as configurations and step times, and its splits by model and nodes."""

import numpy as np
import pandas as pd
from places import ROOT

from scalade.parallelism.predict.configs import Configs

TABLE = ROOT.parent / "shared" / "measured" / "ultrascale_playbook_runs.csv"
SPLITS = {
    "3B from 1B": ("model == '1B'", "model == '3B'"),
    "1B from 3B": ("model == '3B'", "model == '1B'"),
    "16 to 64 nodes from up to 8": ("nodes <= 8", "nodes > 8"),
    "3B on 16 to 64 nodes from 1B and 3B on up to 8": ("model == '1B' or nodes <= 8", "model == '3B' and nodes > 8"),
}
"""Rows that calibrate, rows that are judged."""


def sweep() -> pd.DataFrame:
    """Runs that finished and whose batch adds up."""
    table = pd.read_csv(TABLE)
    whole = table.micro_batch * table.grad_accum * table.dp == table.global_batch
    return table[(table.status == "ok") & whole].reset_index(drop=True)


def configs_of(table: pd.DataFrame) -> Configs:
    """nanotron's layouts: ZeRO 1 shards the optimizer over all data parallel ranks; models up to 3B tie embeddings."""
    column = {name: table[name].to_numpy(float) for name in table.columns if table[name].dtype.kind in "if"}
    sharded = column["zero"] > 0
    return Configs(
        layers=column["layers"],
        heads=column["heads"],
        kv_heads=column["kv_heads"],
        width=column["hidden"],
        ffn=column["ffn"],
        vocab=column["vocab"],
        seq_len=column["seq"],
        global_batch=column["global_batch"],
        tied=(column["ffn"] < 10_000).astype(int),
        dp_replicate=np.where(sharded, 1, column["dp"]),
        dp_shard=np.where(sharded, column["dp"], 1),
        zero_stage=np.where(sharded, 1, 0),
        tp=column["tp"],
        pp=column["pp"],
        microbatches=column["grad_accum"],
    )


def times_of(table: pd.DataFrame) -> np.ndarray:
    """Seconds of a step."""
    return (table.global_batch * table.seq / (table.tokens_per_s_per_gpu * table.gpus)).to_numpy(float)


def groups_of(table: pd.DataFrame) -> np.ndarray:
    """What is left out together: a model on a number of nodes."""
    return (table.model + "@" + table.nodes.astype(str)).to_numpy(str)


def figures(table: pd.DataFrame, predicted: np.ndarray) -> dict[str, float]:
    """Median error, pairwise order and regret of the chosen layout by group."""
    measured, right, pairs, regrets = times_of(table), 0, 0, []
    for name in np.unique(groups_of(table)):
        rows = np.flatnonzero(groups_of(table) == name)
        first, second = np.triu_indices(len(rows), 1)
        truth = np.sign(measured[rows][first] - measured[rows][second])
        right += int(np.sum(truth * np.sign(predicted[rows][first] - predicted[rows][second]) > 0))
        pairs += int(np.sum(truth != 0))
        if len(rows) > 1:
            regrets.append(measured[rows[predicted[rows].argmin()]] / measured[rows].min() - 1)
    return {
        "median": float(np.median(np.abs(predicted / measured - 1))),
        "order": right / pairs,
        "regret": float(np.mean(regrets)),
        "worst": float(np.max(regrets)),
    }
