"""A supervisor for the worker tests: `python fake_worker.py STUDY RESULTS`, with short patience. Its ranks are those of
the program that FAKE_PROGRAM names; by default fake_rank.py."""

import os
import sys
from pathlib import Path

from scalade.launch.host.placement import WorldError
from scalade.launch.host.signals import signal_names
from scalade.launch.process.supervisor import Signals
from scalade.launch.run import to_text
from scalade.launch.study.study import load_study
from scalade.launch.sweep.display import Lines
from scalade.launch.sweep.join import join_supervisors
from scalade.launch.sweep.worker import follow, work

COMMAND = [sys.executable, str(Path(__file__).with_name(os.environ.get("FAKE_PROGRAM", "fake_rank.py")))]


def main(study, results):
    try:
        patience = {"timeout_s": float(os.environ.get("FAKE_JOIN_S", "60")), "patience_s": 4.0}
        peers = join_supervisors(dict(os.environ), Path(results), **patience)
    except WorldError as error:
        sys.exit(f"scalade: {error}")
    warnings = signal_names(load_study(study).run.requeue_signals)
    with Signals(warnings, heeds=peers.place.rank == 0) as signals:
        if peers.place.rank:
            code, why = follow(peers, signals, COMMAND)
            print(f"rank {peers.place.rank}: {why}", file=sys.stderr)
            sys.exit(code)
        summary = work(load_study(study), Path(results), peers, signals, Lines(), command=COMMAND)
        print("\n".join(to_text(summary, results)), flush=True)
        sys.exit(summary.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
