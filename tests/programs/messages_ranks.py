"""One rank of the messages' tests: trains each case of a list in one world and leaves the `comm_...` columns as JSON.

Started by test_messages_measured.py through worlds.py as `messages_ranks.py CASES.json OUT.json`.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from scalade.bench.comm_probe import CommProbe
from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.launch.rank.measured_columns import _communication_columns
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.engines import build_engine, refuse
from scalade.parallelism.layout import Layout

STEPS = 3  # DDP and the pipelines agree on buckets and shapes in the first two


def columns(case: dict) -> dict:
    """What a run of the case has in the columns of communication; on every rank."""
    shape, outer = ModelShape(**case["shape"]), Outer(**case["outer"])
    recipe, layout = Recipe(**case["recipe"]), Layout(**case["layout"])
    assert refuse(layout, shape, recipe, outer.replicas) is None, refuse(layout, shape, recipe, outer.replicas)
    engine = build_engine(shape, recipe, layout, outer, torch.device("cpu"))
    first, last = engine.rows()
    tokens = torch.randint(0, shape.vocab, (last - first, shape.seq_len + 1))
    for _ in range(STEPS - 1):
        engine.train_step(tokens, 1e-3)
    of_round = engine.count_round() if outer.algorithm != "none" else None
    with CommProbe(engine.talks()) as probe:
        engine.train_step(tokens, 1e-3)
    engine.close()
    mine = {"comm": probe.totals(), "round": of_round and of_round.totals()}
    ranks: list = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, mine)
    return _communication_columns(ranks, outer)


if __name__ == "__main__":
    cases, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    found = {name: columns(case) for name, case in cases.items()}
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
