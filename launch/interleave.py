"""`scalade compare --interleave BASE_REF HEAD_REF STUDY`: both revisions run in turns in one job, then the gate.

    base r0, head r0, base r1, head r1, ...

Two jobs differ by more than most changes do; runs that take turns meet the same drift. Each revision has a git
worktree and an installation of its own beside it: pip builds it without its dependencies, which are those of this
environment, and the code is linked from the worktree, as `pip install -e` does, so that rows name its commit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..results.gate.compare import Comparison
from ..results.gate.compare import compare as compare_results
from ..results.table.read import noted, runs_table
from .process.guard import MARK, Guard, end_marked, new_mark
from .process.supervisor import Signals
from .study.parse import text_of
from .study.study import load_study

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGE = __package__.split(".")[0]
FAREWELL_S = 30.0  # for a revision to write its row, after SIGTERM
POLL_S = 0.02


@dataclass(frozen=True)
class Revision:
    """One side: what the user calls it, where it is installed, and where its rows go."""

    side: str  # base, head
    ref: str
    site: Path  # on PYTHONPATH
    results: Path


def interleave(
    base_ref: str,
    head_ref: str,
    study: Path,
    results: Path | None = None,
    *,
    repo: Path | None = None,
    repeats: int | None = None,
    compare: Callable[[Path, Path], Comparison] = compare_results,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Run a study with two revisions in turns and compare them. Started again it runs only what is missing.

    study: read as it stands now, for both revisions
    results: folder that gets `base` and `head`; None: scalade-results/<study>-<base commit>-<head commit>
    repo: a folder of the git repository; None: the current one
    repeats: runs of each case and side; None: the study's
    compare: what compares the results folders of base and head
    say: takes a line for people at each step

    Raises
    ------
    ValueError: no such revision, one that does not install or cannot run the study, or a wrong study
    InterruptedError: a signal ended it; what has run is kept
    """
    content = load_study(Path(study))
    repeats = content.run.repeats if repeats is None else repeats
    if repeats < 1:
        raise ValueError(f"repeats = {repeats}: must be at least 1")
    repo = Path(repo or ".")
    commits = [_commit(repo, ref) for ref in (base_ref, head_ref)]
    results = results or Path("scalade-results") / "-".join([content.name, *(commit[:10] for commit in commits)])
    revisions = []
    with ExitStack() as stack:
        signals = stack.enter_context(Signals())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scalade-compare-")))
        commands = stack.enter_context(Commands(signals, scratch))
        for side, ref, commit in zip(("base", "head"), (base_ref, head_ref), commits, strict=True):
            say(f"installing {side} {ref} ({commit[:10]})")
            worktree = stack.enter_context(_worktree(repo, commit, scratch / side))
            site = scratch / f"{side}-site"
            _install(ref, worktree, site, commands)
            revisions.append(Revision(side, ref, site, Path(results) / side))
        for repeat in range(repeats):
            text = with_repeats(Path(study), repeat + 1, content.name)
            (scratch / "study.toml").write_text(text)
            for revision in revisions:
                say(f"{revision.side} {revision.ref}: repeat {repeat + 1} of {repeats}")
                _run(revision, scratch / "study.toml", repeat, commands)
    return compare(revisions[0].results, revisions[1].results)


def _run(revision: Revision, study: Path, repeat: int, commands: Commands) -> None:
    """Let a revision run what it lacks up to this repeat; runs that fail leave rows that say so."""
    program = [PACKAGE, "run", str(study), "--results", str(revision.results.absolute()), "--quiet"]
    done = commands.run([sys.executable, "-m", *program], revision.site)
    if done.status not in (0, 1) or repeat not in _repeats_in(revision.results):
        line = _last(done.output)
        raise ValueError(f"{revision.side} {revision.ref} cannot run the study (status {done.status}): {line}")


def _repeats_in(results: Path) -> list[int]:
    """The repeat of each run that has a row."""
    if not (results / "runs").is_dir():
        return []
    with noted():
        return runs_table(results, columns=["repeat"])["repeat"].to_pylist()


def _commit(repo: Path, ref: str) -> str:
    parsed = _git(repo, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if parsed.returncode:
        inside = _git(repo, "rev-parse", "--git-dir").returncode == 0
        what = f"no revision {ref!r}" if inside else "no git repository"
        raise ValueError(f"{what} in {str(repo.absolute())!r}")
    return parsed.stdout.strip()


@contextmanager
def _worktree(repo: Path, commit: str, folder: Path) -> Iterator[Path]:
    # The user's hooks are for the user's own checkouts.
    added = _git(repo, "-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", "--quiet", str(folder), commit)
    try:
        if added.returncode:
            raise ValueError(f"cannot check out {commit[:10]}: {_last(added.stderr)}")
        yield folder
    finally:
        _git(repo, "worktree", "remove", "--force", "--force", str(folder))


def _install(ref: str, worktree: Path, site: Path, commands: Commands) -> None:
    """Install a worktree into `site`.

    Raises
    ------
    ValueError: it does not build, needs what this environment does not have, or cannot be imported
    """
    options = ["--no-deps", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--target", str(site)]
    if util.find_spec("setuptools"):  # else pip fetches it for the build
        options.append("--no-build-isolation")
    done = commands.run([sys.executable, "-m", "pip", "install", *options, str(worktree)])
    if done.status:
        raise ValueError(f"revision {ref} does not install: {_last(done.output)}")
    if (worktree / "__init__.py").exists():
        shutil.rmtree(site / PACKAGE, ignore_errors=True)
        _git(worktree, "clean", "-ffdxq")  # what the build left
        (site / PACKAGE).symlink_to(worktree.absolute(), target_is_directory=True)
    unmet = "; ".join(_unmet(site))
    if unmet:
        raise ValueError(f"revision {ref} asks for {unmet}: install it into this environment first")
    where = f"import {PACKAGE}; print({PACKAGE}.__file__)"
    done = commands.run([sys.executable, "-c", where], site)
    if done.status or not _last(done.output).startswith(str(site)):
        raise ValueError(f"revision {ref} was installed, but Python finds {_last(done.output)}")


def _unmet(site: Path) -> Iterator[str]:
    """Requirements of what is installed in `site` that this environment does not meet."""
    from packaging.requirements import InvalidRequirement, Requirement

    for distribution in metadata.distributions(path=[str(site)]):
        for line in distribution.requires or ():
            with suppress(InvalidRequirement):
                need = Requirement(line)
                if need.marker is None or need.marker.evaluate({"extra": ""}):
                    yield from _missing(need)


def _missing(need: Requirement) -> Iterator[str]:
    try:
        version = metadata.version(need.name)
    except metadata.PackageNotFoundError:
        yield f"{need}, which is not here"
        return
    if not need.specifier.contains(version, prereleases=True):
        yield f"{need}, here is {version}"


class Done(NamedTuple):
    """A command that has ended: its exit status, and what it printed."""

    status: int
    output: str


class Commands:
    """Runs one command at a time; on exit it ends all that these have started.

    scratch: a folder for what a command prints
    """

    def __init__(self, signals: Signals, scratch: Path) -> None:
        self.signals, self.scratch, self.mark = signals, scratch, new_mark()

    def __enter__(self) -> Commands:
        self._guard = Guard(self.mark)
        return self

    def __exit__(self, *error: object) -> None:
        end_marked(self.mark)
        self._guard.close()

    def run(self, command: Sequence[str], site: Path | None = None) -> Done:
        """site: goes before everything else on PYTHONPATH. Raises InterruptedError: a signal came"""
        with open(self.scratch / "output", "w+", errors="replace") as output:
            process = subprocess.Popen(
                command,
                env=self._environment(site),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            status = self._wait(process)
            output.seek(0)
            text = output.read()
        if self.signals.received:
            raise InterruptedError(f"ended early by {self.signals.received}; start it again for the rest")
        return Done(status, text)

    def _environment(self, site: Path | None) -> dict[str, str]:
        env = os.environ | {MARK: self.mark, "PYTHONSAFEPATH": "1"}  # the current folder may hold another scalade
        if site is not None:
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
        return env

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """Until it has ended; a signal ends it, some seconds later by force."""
        asked_at: float | None = None
        while (status := process.poll()) is None:
            if self.signals.received and asked_at is None:
                asked_at = time.monotonic()
                process.terminate()
            elif asked_at is not None and time.monotonic() > asked_at + FAREWELL_S:
                process.kill()
            time.sleep(POLL_S)
        return status


def with_repeats(study: Path, repeats: int, name: str) -> str:
    """The study file's content with another [run] repeats, as TOML. name: where the file does not say one."""
    content = tomllib.loads(text_of(study))
    content = {"name": name} | content | {"run": content.get("run", {}) | {"repeats": repeats}}
    return "".join(f"{_toml(key)} = {_toml(value)}\n" for key, value in content.items())


def _toml(value: object) -> str:
    """A TOML value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)
        return f'"{escaped}"'
    return str(value)  # numbers: inf and nan too are written as TOML has them; dates as ISO 8601


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise ValueError("git is not installed: --interleave checks out revisions with it") from None


def _last(text: str) -> str:
    """The last line that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing said")
