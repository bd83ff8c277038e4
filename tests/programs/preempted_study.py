"""A study whose run is stopped before its end."""

from __future__ import annotations

import sys

from places import PROGRAMS

FAKE = [sys.executable, str(PROGRAMS.joinpath("fake_rank.py"))]


def write_study(folder, ranks=2, steps=100, **run):
    path = folder / "study.toml"
    path.write_text(STUDY.format(ranks=ranks, steps=steps, run="\n".join(f"{k} = {v!r}" for k, v in run.items())))
    return path


STUDY = """
name = "s"
[model]
size = "tiny-100k"
seq_len = 32
[recipe]
global_batch = 4
[budget]
steps = {steps}
[measure]
eval_sequences = 4
log_every = 7
[layout]
dp_shard = {ranks}
[run]
max_ranks = 4
{run}
"""
