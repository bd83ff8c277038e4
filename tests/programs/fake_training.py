"""A rank for the tests of `verify`: the real `launch.rank` around made-up steps. No rendezvous, no torch.

FAKE_TRAINING in the environment says what goes wrong in which layout, as `LAYOUT:WHAT`, several separated by commas:
`loss@3=1e-3` adds that share to the loss of step 3 (`grad_norm` likewise), `kill`, `diverge`, `interrupt`.
"""

import math
import os
import signal
import sys
from pathlib import Path

from scalade.launch.process.run_spec import RunResult
from scalade.launch.rank import main as rank

sys.path.insert(0, str(Path(__file__).parent))
from fake_rank import join_nobody  # noqa: E402


def program(case, world, reporter):
    steps = case.recipe.steps
    loss = [5 - 0.1 * step for step in range(steps)]
    grad_norm = [1 / (1 + step) for step in range(steps)]
    for item in filter(None, os.environ.get("FAKE_TRAINING", "").split(",")):
        layout, _, what = item.partition(":")
        column, _, change = what.partition("@")
        if layout != case.layout.name() or world.rank:
            continue
        if change:
            step, _, share = change.partition("=")
            {"loss": loss, "grad_norm": grad_norm}[column][int(step)] *= 1 + float(share)
        elif what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "interrupt":
            os.kill(os.getppid(), signal.SIGINT)
            signal.pause()
        elif what == "diverge":
            loss[-1] = math.nan
    series = {"step": list(range(len(loss))), "loss": loss, "grad_norm": grad_norm}
    if math.isnan(loss[-1]):
        return RunResult("diverged", {}, series, reason=f"loss nan at step {steps - 1}")
    return RunResult("ok", {"loss": loss[-1]}, series)


if __name__ == "__main__":
    rank.join, rank.leave = join_nobody, lambda: None
    rank.main(program=program)
