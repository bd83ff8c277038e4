"""Faults of disks and files: full, moved, removed, cut, emptied, padded, with bits that have changed."""

import shutil
import subprocess
import time
from contextlib import suppress

from . import kind


def truncate(content, rng):
    return content[: rng.randrange(len(content))] if content else content


def empty(content, rng):
    return b""


def pad(content, rng):
    return content + rng.randbytes(rng.randrange(1, 5000))


def flip(content, rng):
    """Of every 64 bytes one, of a short file at least one."""
    changed = bytearray(content)
    for _ in range(max(1, len(content) // 64) if content else 0):
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def zero(content, rng):
    """A page that never reached the disk."""
    start = rng.randrange(len(content)) if content else 0
    return content[:start] + bytes(len(content) - start)


WAYS = (truncate, empty, pad, flip, zero)


def damage(file, rng):
    """One of WAYS, or the file is deleted; what was done, for people."""
    way = rng.choice((*WAYS, None))
    if way is None:
        file.unlink()
        return f"deleted {file.name}"
    file.write_bytes(way(file.read_bytes(), rng))
    return f"{way.__name__} {file.name}"


def _finished(lab, **env):
    code, out, err = lab.ended(lab.sweep(**env))
    assert code == 0, (code, out, err)


def _damage(lab, names):
    """Files of those names, one in each of some of the runs that are done."""
    found = sorted(file for name in names for file in lab.results.glob(f"runs/{name}"))
    for file in lab.rng.sample(found, lab.rng.randrange(1, len(found) + 1)):
        before = file.read_bytes()
        print(damage(file, lab.rng), "of", file.parent.relative_to(lab.results))
        if file.name in ("run.json", "steps.arrow") and (not file.exists() or file.read_bytes() != before):
            lab.damaged.add(str(file.parent.relative_to(lab.results)))


@kind("files", repeats=3, steps=3)
def damage_rows(lab):
    _finished(lab)
    _damage(lab, ["*/a1/run.json"])


@kind("files", repeats=3, steps=3)
def damage_steps(lab):
    """Their runs run again."""
    _finished(lab)
    _damage(lab, ["*/a1/steps.arrow"])


@kind("files", repeats=3, steps=3)
def damage_starts_and_locks(lab):
    _finished(lab)
    _damage(lab, ["*/starts.jsonl", "*/lock"])


@kind("files", repeats=2)
def damage_starts_of_a_run_that_is_on(lab):
    process = lab.sweep()
    if now := lab.reach(process):
        with suppress(FileNotFoundError):
            damage(lab.results / "runs" / now[0] / lab.rng.choice(["starts.jsonl", "lock"]), lab.rng)
    process.kill()
    lab.ended(process)


@kind("files", repeats=2)
def damage_scratch(lab):
    """What a run left that was killed: its progress, its orders, the rows that it had kept so far."""
    process = lab.sweep()
    lab.reach(process)
    process.kill()
    lab.ended(process)
    time.sleep(0.2)  # the guard ends the ranks
    left = sorted(file for file in lab.results.glob("runs/*/scratch/**/*") if file.is_file())
    for file in lab.rng.sample(left, min(len(left), 4)):
        with suppress(FileNotFoundError):
            print(damage(file, lab.rng))


@kind("checkpoints", repeats=2)
def damage_checkpoint(lab):
    """Of a rank that was killed after it had written one."""
    process = lab.sweep()
    deadline = time.monotonic() + 60
    while process.poll() is None and not (found := list(lab.results.glob("runs/*/scratch/checkpoint/step-*/*"))):
        assert time.monotonic() < deadline, "no checkpoint comes"
        time.sleep(0.002)
    process.kill()
    lab.ended(process)
    time.sleep(0.2)
    for file in found:
        with suppress(FileNotFoundError):
            print(damage(file, lab.rng))


@kind("disks", slow=True, repeats=2, time_limit_s=15)
def remove_scratch(lab):
    """Somebody tidies up under a run that is on."""
    process = lab.sweep(FAKE_LINGER_S="0.3")
    if now := lab.reach(process):
        shutil.rmtree(lab.results / "runs" / now[0] / "scratch", ignore_errors=True)
    code, out, err = lab.ended(process)
    assert code in (0, 1, 2), (code, out, err)


@kind("disks", slow=True, repeats=2, time_limit_s=15)
def move_results_away(lab):
    """And back, as a mount that goes away for a while."""
    process = lab.sweep(FAKE_LINGER_S="0.2")
    lab.reach(process)
    away = lab.results.with_name("away")
    with suppress(FileNotFoundError):
        lab.results.rename(away)
    time.sleep(lab.rng.uniform(0.05, 0.8))
    early = lab.rng.random() < 0.5
    if early:
        _put_back(lab, away)
    code, out, err = lab.ended(process)
    assert code in (0, 1, 2), (code, out, err)
    if not early:
        _put_back(lab, away)


def _put_back(lab, away):
    """A sweep may have made the folder anew meanwhile; what it wrote there is as good as lost."""
    if lab.results.exists():
        shutil.rmtree(lab.results, ignore_errors=True)
    if away.exists():
        away.rename(lab.results)


@kind("disks", root=True, repeats=2)
def fill_the_disk(lab):
    """A small tmpfs that others fill in mid-run."""
    lab.results.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "scalade-test", str(lab.results)]).returncode:
        print("this container mounts nothing")
        return
    lab.mounted.append(lab.results)
    process = lab.sweep()
    lab.reach(process)
    filler = lab.results / "filler"
    fill(filler)
    code, out, err = lab.ended(process)
    if code == 2:
        assert err.startswith("scalade: ") and len(err.splitlines()) == 1 and "No space left on device" in err, err
    else:
        assert code == 0, (code, out, err)
    filler.unlink()


def fill(file):
    """To the last page."""
    with open(file, "wb", buffering=0) as stream, suppress(OSError):
        while stream.write(bytes(4096)):
            pass


@kind("disks", root=True, repeats=2)
def read_only_disk(lab):
    """Remounted in mid-run, as a kernel does after an error."""
    lab.results.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "scalade-test", str(lab.results)]).returncode:
        print("this container mounts nothing")
        return
    lab.mounted.append(lab.results)
    process = lab.sweep(FAKE_LINGER_S="0.2")
    lab.reach(process)
    told = subprocess.run(["mount", "-o", "remount,ro", str(lab.results)], capture_output=True, text=True)
    code, out, err = lab.ended(process)
    assert code in (0, 1, 2), (code, out, err)
    if told.returncode == 0:
        subprocess.run(["mount", "-o", "remount,rw", str(lab.results)], check=True)
