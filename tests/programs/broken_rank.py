"""A rank of a real run with a classic mistake built in: every data-parallel rank reads the first rank's rows.

BROKEN_MESSAGE in the environment: instead, rank 1's part of all packed messages is this many times what it should be.
"""

import os

from scalade.launch.rank import main as rank


def program(case, world, reporter):
    from scalade.launch.rank.training import execute
    from scalade.parallelism.torch_engine import TorchEngine

    if share := os.environ.get("BROKEN_MESSAGE"):
        from scalade.parallelism.diloco.channel import PackedChannel

        add = PackedChannel._add
        wrong = float(share) if world.rank == 1 else 1.0
        PackedChannel._add = lambda self, message, total, weight: add(self, message, total, weight * wrong)
        return execute(case, world, reporter)
    rows = TorchEngine.rows
    TorchEngine.rows = lambda self: (0, rows(self)[1] - rows(self)[0])
    return execute(case, world, reporter)


if __name__ == "__main__":
    rank.main(program=program)
