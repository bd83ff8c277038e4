"""One rank of test_comm.py: trains three steps of each case, the last under the probe, and leaves all ranks' counts."""

import json
import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

from scalade.bench.comm_probe import CommProbe
from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.engines import build_engine, refuse
from scalade.parallelism.layout import Layout


def counts(case: dict) -> dict:
    """{"collective/dimension": [bytes, calls]} of this rank, and the time of it."""
    shape, recipe, layout = ModelShape(**case["shape"]), Recipe(**case["recipe"]), Layout(**case["layout"])
    outer = Outer(**case.get("outer", {}))
    assert refuse(layout, shape, recipe, outer.replicas) is None
    engine = build_engine(shape, recipe, layout, outer, torch.device("cpu"))
    first, last = engine.rows()
    tokens = torch.arange(recipe.global_batch * (shape.seq_len + 1)).reshape(recipe.global_batch, -1) % shape.vocab
    for _ in range(2):  # DDP settles its buckets at the start of the second step
        engine.train_step(tokens[first:last], 1e-3)
    with CommProbe(engine.talks()) as probe:
        output = engine.train_step(tokens[first:last], 1e-3)
    loss = output.loss.clone()
    dist.all_reduce(loss)
    engine.close()
    found = {"/".join(key): [probe.bytes[key], probe.calls[key]] for key in probe.calls}
    return {"counts": found, "seconds": probe.seconds, "totals": probe.totals(), "loss": loss.item()}


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    cases, out = (Path(argument) for argument in sys.argv[1:])
    dist.init_process_group("gloo")
    results = {}
    for name, case in json.loads(cases.read_text()).items():
        every = [None] * dist.get_world_size()
        dist.all_gather_object(every, counts(case))
        results[name] = every
    if int(os.environ["RANK"]) == 0:
        out.write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
