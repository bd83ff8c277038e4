"""One rank of test_comm.py: trains three steps of each case, the last under the probe, and leaves all ranks' counts."""

import torch
import torch.distributed as dist
from each_case import each_case

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


if __name__ == "__main__":
    each_case(counts)
