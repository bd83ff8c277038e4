"""A rank for the tests of `doctor`: the real `launch.rank` around a program that fails, or that only tells facts."""

import json
import os
import sys
from pathlib import Path

from scalade.launch.doctor.trial import FACTS
from scalade.launch.process.run_spec import RunResult
from scalade.launch.rank import main as rank
from scalade.results import files

sys.path.insert(0, str(Path(__file__).parent))
from fake_rank import join_nobody  # noqa: E402


def program(case, world, reporter):
    if os.environ.get("FAKE_TRIAL") == "fail":
        raise RuntimeError("gloo [bold]cannot\x1b[31m connect")
    facts = json.loads(os.environ.get("FAKE_FACTS", "{}")) | {"latency_s": 1e-4, "bytes_per_s": 2.5e8}
    files.write(reporter.folder / FACTS, json.dumps(facts), sync=False)
    return RunResult("ok", {})


if __name__ == "__main__":
    rank.join, rank.leave = join_nobody, lambda: None
    rank.main(program=program)
