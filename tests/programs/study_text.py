"""Study files that several tests begin with."""

from __future__ import annotations

from pathlib import Path

from scalade.launch.study.study import load_study

BASE = """
name = "t"
[model]
size = "tiny-100k"
[recipe]
global_batch = 8
[budget]
steps = 3
"""


def load(tmp_path: Path, text: str, name: str = "t.toml"):
    (tmp_path / name).write_text(text)
    return load_study(tmp_path / name)


MANY = (
    BASE.replace('"tiny-100k"', '["tiny-100k", "tiny-300k", "tiny-800k", "tiny-2m", "tiny-5m"]').replace(
        "global_batch = 8", f"global_batch = 64\nlr = {[n / 1e4 for n in range(1, 41)]}"
    )
    + f"""
[[layout]]
dp_replicate = [1, 2]
[[layout]]
dp_shard = [2, 4]
reshard_after_forward = [true, false]
[[layout]]
tp = 2
dp_shard = [1, 2]
[[layout]]
pp = 2
microbatches = [2, 4]
[run]
seeds = {list(range(50))}
max_ranks = 2
"""
)
