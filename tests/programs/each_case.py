"""For programs of one rank each: measure every case of a JSON file, and leave all ranks' results in another."""

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist


def each_case(measure: Callable[[dict], dict]) -> None:
    """sys.argv: the file of cases, name -> case, and the file for name -> results of every rank."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    cases, out = (Path(argument) for argument in sys.argv[1:])
    dist.init_process_group("gloo")
    results = {}
    for name, case in json.loads(cases.read_text()).items():
        every = [None] * dist.get_world_size()
        dist.all_gather_object(every, measure(case))
        results[name] = every
    if int(os.environ["RANK"]) == 0:
        out.write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()
