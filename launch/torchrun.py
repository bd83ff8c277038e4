"""torchrun as a program of ours, where a world has several hosts: its agents end although one of them is gone.

When its workers have ended well, torchrun's agent waits five minutes for those of the other hosts, and no option of
torchrun's says otherwise. Supervisors end together, so some seconds are enough; an agent that does not come by then
has crashed, and a run with a quorum is done without it.

Batch scripts that wait in a queue name this module: it stays at this place.
"""

from __future__ import annotations

from functools import partial

from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.launcher import api
from torch.distributed.run import main

WAIT_S = 15.0

if __name__ == "__main__":
    setattr(api, "LocalElasticAgent", partial(LocalElasticAgent, exit_barrier_timeout=WAIT_S))  # noqa: B010
    main()
