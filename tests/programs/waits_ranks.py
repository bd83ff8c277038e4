"""One rank of test_waits.py: trains a few steps of each case, rank 1 late or all stages slow, and leaves the
rows and the number of waits of this rank's steps."""

import time

import torch
import torch.distributed as dist
from each_case import each_case

from scalade.bench.device import Device
from scalade.bench.host_waits import Waits
from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.bench.step_record import StepRecord
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.engines import build_engine, refuse
from scalade.parallelism.layout import Layout

STEPS = 4


def sleeps(seconds: float):
    return lambda *_: time.sleep(seconds)


def make_sleep(engine, case: dict) -> None:
    """stage_s: every stage sleeps before a forward and, twice as long, before a backward pass of a microbatch."""
    for part in engine.parts if case.get("stage_s") else ():
        part.register_forward_pre_hook(sleeps(case["stage_s"]))
        part.register_forward_hook(lambda _, __, out: out.register_hook(sleeps(2 * case["stage_s"])) and None)


def rows(case: dict) -> dict:
    shape, recipe, layout = ModelShape(**case["shape"]), Recipe(**case["recipe"]), Layout(**case["layout"])
    outer, device = Outer(**case.get("outer", {})), Device("cpu")
    assert (why := refuse(layout, shape, recipe, outer.replicas)) is None, why
    engine = build_engine(shape, recipe, layout, outer, device.torch)
    assert engine.waits_on_host
    make_sleep(engine, case)
    first, last = engine.rows()
    tokens = torch.arange(recipe.global_batch * (shape.seq_len + 1)).reshape(recipe.global_batch, -1) % shape.vocab
    record, counts, mine, waited, rest = StepRecord(device), [], [], [], []
    with Waits(pipeline="pp" in engine.talks()) as waits:
        for step in range(STEPS):
            begin = device.mark()
            if dist.get_rank() == 1:
                time.sleep(case.get("late_s", 0.0))
            output = engine.train_step(tokens[first:last], 1e-3)
            end = device.mark()
            counts.append(len(waits.found))
            columns = waits.take(output.update_began, output.update_ended)
            mine.append(columns["comm_time_s"])
            waited.append(columns["comm_time_s"] + columns.get("bubble_time_s", 0.0))
            rest.append(end - begin - waited[-1])
            record.add({"step": step} | columns, (begin, begin, end), output)
    record.flush()
    engine.close()
    kept = {"rows": record.rows, "waits": counts, "comm_s": mine, "waited_s": waited, "rest_s": rest}
    return {name: values[2:] for name, values in kept.items()}  # DDP settles its buckets in the second step


def hidden(seconds: float) -> dict:
    """A collective asked for at once, and one asked for after computing for so long."""
    found = {}
    for name, pause in (("exposed", 0.0), ("hidden", seconds)):
        with Waits(pipeline=False) as waits:
            for _ in range(STEPS):
                dist.barrier()
                waits.found.clear()
                if dist.get_rank() == 1:
                    time.sleep(seconds / 2)
                work = dist.all_reduce(torch.ones(100), async_op=True)
                time.sleep(pause)
                work.wait()
                found.setdefault(name, []).append(waits.take(None, None)["comm_time_s"])
    return found


if __name__ == "__main__":
    each_case(lambda case: hidden(case["hidden_s"]) if "hidden_s" in case else rows(case))
