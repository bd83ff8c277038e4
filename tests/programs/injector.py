"""Random faults, seeded: `python tests/programs/injector.py --seed 7 --number 200` or `make faults SEED=7 N=200`.

Each fault has a kind and a seed of its own, is injected into a study in a folder of its own, and is then looked at:
every run has one final `ok` row, no row that stood has changed, none came twice, no process is left, nothing hung, and
the losses are those of an undisturbed run. A line for each; one that is violated says how to inject it again.

Exit status 0: nothing is violated; 1: something is.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import faults
from fault_lab import Lab


def draw(number, seed, names=(), slow=True):
    """[(kind, seed)]: every kind comes once before one comes twice, in an order of the seed's."""
    kinds, rng, drawn = faults.load(), random.Random(seed), []
    chosen = [name for name in names or kinds if os.geteuid() == 0 or not kinds[name].root]
    chosen = [name for name in chosen if slow or not kinds[name].slow]
    while len(drawn) < number:
        drawn += [(name, rng.randrange(10**9)) for name in rng.sample(chosen, len(chosen))]
    return drawn[:number]


def inject(name, seed, folder):
    """What is violated by one fault, as text; None: nothing. And what was done."""
    kind, told = faults.load()[name], StringIO()
    with redirect_stdout(told):
        lab = Lab(folder, seed, **kind.options)
        try:
            kind.inject(lab)
            lab.settled()
            lab.finish()
        except Exception:
            return traceback.format_exc(), told.getvalue()
        finally:
            lab.close()
            for place in lab.mounted:
                subprocess.run(["umount", "--lazy", str(place)], check=False)
    return None, told.getvalue()


def campaign(drawn, keep=None):
    """Inject one after the other; gives the kinds, seeds and texts of those that are violated.

    keep: a folder for the studies of those; None: nothing is kept
    """
    violated = []
    for number, (name, seed) in enumerate(drawn, 1):
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="scalade-fault-") as folder:
            problem, told = inject(name, seed, Path(folder))
            if problem and keep:
                shutil.copytree(folder, keep / f"{name}-{seed}", ignore_dangling_symlinks=True, dirs_exist_ok=True)
        took = f"{time.monotonic() - begun:.1f} s"
        print(f"[{number}/{len(drawn)}] {'VIOLATED' if problem else 'ok'}  {name}  seed {seed}  {took}", flush=True)
        if problem:
            violated.append((name, seed, problem))
            print(f"{told}{problem}again: make faults KIND={name} SEED={seed} N=1", flush=True)
    return violated


def main():
    kinds = faults.load()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=None, help="default: from the clock, printed")
    parser.add_argument("--number", type=int, default=200, help="of faults")
    parser.add_argument("--kind", action="append", default=[], choices=sorted(kinds), help="this kind; again for more")
    parser.add_argument("--keep", type=Path, help="a folder for the studies of the faults that are violated")
    asked = parser.parse_args()
    seed = asked.seed if asked.seed is not None else time.time_ns() % 10**9
    print(f"seed {seed}: {asked.number} faults of {len(asked.kind or kinds)} kinds", flush=True)
    # One fault of one kind is that of a line which has said so.
    alone = asked.number == 1 and len(asked.kind) == 1
    drawn = [(asked.kind[0], seed)] if alone else draw(asked.number, seed, asked.kind)
    violated = campaign(drawn, asked.keep)
    print(f"{len(drawn)} faults, {len(violated)} violated" + "".join(f"\n  {n} seed {s}" for n, s, _ in violated))
    return int(bool(violated))


if __name__ == "__main__":
    sys.exit(main())
