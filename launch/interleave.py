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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from ..results.gate.compare import Comparison, compare
from ..results.gate.rule import Rule
from ..results.table.read import noted, runs_table
from .process.guard import MARK, Guard, end_marked, new_mark
from .process.supervisor import Signals
from .study.parse import text_of
from .study.study import load_study

PACKAGE = __package__.split(".")[0]
FAREWELL_S = 30.0  # for a revision that was asked to end to write its row
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
    rule: Rule | None = None,
    where: str | None = None,
    confirm: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Run a study with two revisions in turns and compare them. Started again it runs only what is missing.

    study: read as it stands now, for both revisions
    results: folder that gets `base` and `head`; None: scalade-results/<study>-<base commit>-<head commit>
    repo: a folder of the git repository; None: the current one
    repeats: runs of each case and side; None: the study's
    rule, where, confirm: as results.compare.compare takes them

    Raises
    ------
    ValueError: no such revision, one that does not install or cannot run the study, or a wrong study
    InterruptedError: a signal ended it; what has run is kept
    """
    study = Path(study)
    plan = load_study(study)
    repeats = plan.run.repeats if repeats is None else repeats
    if repeats < 1:
        raise ValueError(f"repeats = {repeats}: must be at least 1")
    repo = Path(repo or ".")
    commits = [_commit(repo, ref) for ref in (base_ref, head_ref)]
    results = results or Path("scalade-results") / "-".join([plan.name, *(commit[:10] for commit in commits)])
    with ExitStack() as stack:
        signals = stack.enter_context(Signals())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scalade-compare-")))
        execute = stack.enter_context(_executor(signals, scratch))
        revisions = []
        for side, ref, commit in zip(("base", "head"), (base_ref, head_ref), commits, strict=True):
            say(f"installing {side} {ref} ({commit[:10]})")
            worktree = stack.enter_context(_worktree(repo, commit, scratch / side))
            site = scratch / f"{side}-site"
            _install(ref, worktree, site, execute)
            revisions.append(Revision(side, ref, site, Path(results) / side))
        for repeat in range(repeats):
            text = with_repeats(study, repeat + 1, plan.name)
            (scratch / "study.toml").write_text(text)
            for revision in revisions:
                say(f"{revision.side} {revision.ref}: repeat {repeat + 1} of {repeats}")
                _run(revision, scratch / "study.toml", repeat, execute)
    return compare(revisions[0].results, revisions[1].results, rule, where, confirm)


def _run(revision: Revision, study: Path, repeat: int, execute) -> None:
    """Let a revision run what it lacks up to this repeat; runs that fail leave rows that say so."""
    program = [PACKAGE, "run", str(study), "--results", str(revision.results.absolute()), "--quiet"]
    status, told = execute([sys.executable, "-m", *program], revision.site)
    with noted():
        written = (revision.results / "runs").is_dir() and runs_table(revision.results, columns=["repeat"])
    if status not in (0, 1) or not written or repeat not in written["repeat"].to_pylist():
        raise ValueError(f"{revision.side} {revision.ref} cannot run the study (status {status}): {_last(told)}")


def _commit(repo: Path, ref: str) -> str:
    told = _git(repo, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if told.returncode:
        inside = _git(repo, "rev-parse", "--git-dir").returncode == 0
        what = f"no revision {ref!r}" if inside else "no git repository"
        raise ValueError(f"{what} in {str(repo.absolute())!r}")
    return told.stdout.strip()


@contextmanager
def _worktree(repo: Path, commit: str, folder: Path) -> Iterator[Path]:
    # The user's hooks are for the user's own checkouts.
    told = _git(repo, "-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", "--quiet", str(folder), commit)
    try:
        if told.returncode:
            raise ValueError(f"cannot check out {commit[:10]}: {_last(told.stderr)}")
        yield folder
    finally:
        _git(repo, "worktree", "remove", "--force", "--force", str(folder))


def _install(ref: str, worktree: Path, site: Path, execute) -> None:
    """Install a worktree into `site`.

    Raises
    ------
    ValueError: it does not build, needs what this environment does not have, or cannot be imported
    """
    options = ["--no-deps", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--target", str(site)]
    if util.find_spec("setuptools"):  # else pip fetches it for the build
        options.append("--no-build-isolation")
    status, told = execute([sys.executable, "-m", "pip", "install", *options, str(worktree)], None)
    if status:
        raise ValueError(f"revision {ref} does not install: {_last(told)}")
    if (worktree / "__init__.py").exists():
        shutil.rmtree(site / PACKAGE, ignore_errors=True)
        _git(worktree, "clean", "-ffdxq")  # what the build left
        (site / PACKAGE).symlink_to(worktree.absolute(), target_is_directory=True)
    unmet = "; ".join(_unmet(site))
    if unmet:
        raise ValueError(f"revision {ref} asks for {unmet}: install it into this environment first")
    where = f"import {PACKAGE}; print({PACKAGE}.__file__)"
    status, told = execute([sys.executable, "-c", where], site)
    if status or not _last(told).startswith(str(site)):
        raise ValueError(f"revision {ref} was installed, but Python finds {_last(told)}")


def _unmet(site: Path) -> Iterator[str]:
    """Requirements of what is installed in `site` that this environment does not meet."""
    from packaging.requirements import InvalidRequirement, Requirement

    for distribution in metadata.distributions(path=[str(site)]):
        for line in distribution.requires or ():
            try:
                need = Requirement(line)
            except InvalidRequirement:
                continue
            if need.marker and not need.marker.evaluate({"extra": ""}):
                continue
            try:
                found = metadata.version(need.name)
            except metadata.PackageNotFoundError:
                yield f"{need}, which is not here"
            else:
                if not need.specifier.contains(found, prereleases=True):
                    yield f"{need}, here is {found}"


@contextmanager
def _executor(signals: Signals, scratch: Path) -> Iterator[Callable[[list[str], Path | None], tuple[int, str]]]:
    """Runs one command at a time and gives its exit status and what it said; ends all it started when it closes."""
    mark = new_mark()
    guard = Guard(mark)

    def execute(command: list[str], site: Path | None) -> tuple[int, str]:
        env = os.environ | {MARK: mark, "PYTHONSAFEPATH": "1"}  # the current folder may hold another scalade
        if site is not None:
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
        with open(scratch / "said", "w+", errors="replace") as said:
            process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            asked = None
            while process.poll() is None:
                if signals.received and asked is None:
                    asked = time.monotonic()
                    process.terminate()
                elif asked and time.monotonic() > asked + FAREWELL_S:
                    process.kill()
                time.sleep(POLL_S)
            said.seek(0)
            text = said.read()
        if signals.received:
            raise InterruptedError(f"ended early by {signals.received}; start it again for the rest")
        return process.returncode, text

    try:
        yield execute
    finally:
        end_marked(mark)
        guard.close()


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


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise ValueError("git is not installed: --interleave checks out revisions with it") from None


def _last(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing said")
