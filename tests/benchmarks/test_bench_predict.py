"""Predicted configurations a second on one core: target 100,000.

`pytest tests/benchmarks/test_bench_predict.py --benchmark-only`. CPU time of this process, one thread.
"""

import time

import numpy as np
import pytest

from scalade.parallelism.predict.configs import Configs
from scalade.parallelism.predict.fit import uncalibrated
from scalade.parallelism.predict.machine import load_machine
from scalade.parallelism.predict.stack import STACKS
from scalade.parallelism.predict.step import predict_step

TARGET, N = 100_000, 100_000


def layouts() -> Configs:
    draw = np.random.default_rng(0)
    tp, pp, dp, micro = (2 ** draw.integers(0, most, N) for most in (4, 4, 8, 4))
    m = np.maximum(512 // dp // micro, 1)
    shape = (32, 32, 8, 4096, 14336, 128256, 8192)
    return Configs(*shape, global_batch=dp * micro * m, dp_shard=dp, tp=tp, pp=pp, microbatches=m)


@pytest.mark.parametrize("stack", ["torch", "nanotron"])
@pytest.mark.parametrize("whole", [False, True], ids=["step", "with interval"])
def test_configurations_a_second(benchmark, stack, whole):
    configs, machine, found = layouts(), load_machine("h100"), []
    calibration = uncalibrated(machine, STACKS[stack])

    def predict():
        begun = time.process_time()
        calibration.predict(configs) if whole else predict_step(configs, machine, STACKS[stack])
        found.append(N / (time.process_time() - begun))

    predict()  # the schedules' orders are kept
    benchmark.pedantic(predict, rounds=3, iterations=1)
    benchmark.extra_info |= {"configurations_per_s": max(found), "target": TARGET}
    assert max(found) > TARGET / 2
