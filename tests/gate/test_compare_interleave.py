"""Both revisions checked out, installed and run in turns. The revisions here are small packages of their own, in a
repository of their own, that write rows through the installed store; a slow test runs the real thing."""

from __future__ import annotations

import subprocess
import tomllib
from functools import partial
from pathlib import Path

import pytest

import scalade
from scalade.launch.interleave import interleave, with_repeats
from scalade.results.gate.compare import compare
from scalade.results.gate.rule import Rule

STUDY = """
[model]
size = "tiny-100k"
seq_len = 32
[data]
source = "stdlib"
[recipe]
global_batch = 2
[budget]
steps = 2
[run]
repeats = 4
"""

MAIN = '''
"""A revision: `run STUDY --results FOLDER --quiet` writes the missing rows; STEP_S is its step time."""
import subprocess, sys, tomllib
from pathlib import Path
import scalade

STEP_S = 0.1
study, results = sys.argv[2], sys.argv[4]
assert sys.argv[1] == "run" and sys.argv[3:6:2] == ["--results", "--quiet"]
repeats = tomllib.loads(Path(study).read_text())["run"]["repeats"]
rows = [
    {"run_id": f"c-r{k}", "case_id": "c", "repeat": k, "attempt": 1, "status": "ok", "loss": 3.0,
     "step_time_s": STEP_S + 1e-4 * k, "git_commit": str(Path(scalade.__file__).parent.resolve())}
    for k in range(repeats)
]
write = f"""
import datetime
from scalade.results.store.store import RunStore
store = RunStore({results!r})
for row in {rows!r}:
    if store.finished(row["run_id"]) is None:
        store.write_run(row | {{"started_at": datetime.datetime.now(datetime.timezone.utc).isoformat()}})
"""
subprocess.run([sys.executable, "-I", "-c", write], check=True)
'''

SETUP = """
[metadata]
name = scalade
version = 9.9
[options]
package_dir =
    scalade = .
packages = scalade
install_requires =
    numpy
"""


def git(folder, *arguments):
    who = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
    told = subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True)
    return told.stdout.strip()


def commit(repo, **files):
    for name, text in files.items():
        (repo / name.replace("_dot_", ".")).write_text(text)
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "x")


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repo")
    git(folder, "init", "-q")
    project = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    (folder / "__main__.py").write_text(MAIN)
    commit(folder, __init___dot_py="", setup_dot_cfg=SETUP, pyproject_dot_toml=project)
    (folder / "study.toml").write_text(STUDY)  # not part of any revision
    git(folder, "tag", "base")
    (folder / "__main__.py").write_text(MAIN.replace("0.1\n", "0.12\n"))
    commit(folder)
    git(folder, "tag", "slower")
    (folder / "__main__.py").write_text("raise SystemExit('scalade: no such command')\n")
    commit(folder)
    git(folder, "tag", "broken")
    commit(folder, setup_dot_cfg=SETUP.replace("numpy", "numpy >= 900"))
    git(folder, "tag", "demanding")
    return folder


@pytest.fixture
def clean(repo):
    """After the test neither a worktree nor a temporary folder is left, and the checkout is as it was."""
    before = git(repo, "status", "--porcelain"), git(repo, "rev-parse", "HEAD")
    yield repo
    assert len(git(repo, "worktree", "list").splitlines()) == 1 and not list((repo / ".git").glob("worktrees/*"))
    assert (git(repo, "status", "--porcelain"), git(repo, "rev-parse", "HEAD")) == before


@pytest.mark.slow
def test_revisions_take_turns_and_are_compared(clean, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    (clean / ".git" / "hooks" / "post-checkout").write_text("#!/bin/sh\nexit 1\n")  # the user's own, and broken
    (clean / ".git" / "hooks" / "post-checkout").chmod(0o755)
    said = []
    found = interleave("base", "slower", clean / "study.toml", tmp_path / "out", repo=clean, say=said.append)
    (clean / ".git" / "hooks" / "post-checkout").unlink()
    (one,) = found.findings
    assert one.verdict == "slower" and one.ratio == pytest.approx(1.2, rel=0.01) and one.interleaved is True
    assert found.exit_code == 1 and one.base_runs == one.head_runs == 4
    assert [line.split(":")[0] for line in said[2:]] == ["base base", "head slower"] * 4
    assert not list((tmp_path / "tmp").iterdir())
    scratch = {note for note in found.notes if note.startswith("git_commit")}  # where each side ran from
    assert len(scratch) == 1 and "/base in BASE" in scratch.pop()
    lenient = partial(compare, rule=Rule(min_effect=0.5))
    again = interleave("base", "slower", clean / "study.toml", tmp_path / "out", repo=clean, repeats=5, compare=lenient)
    assert again.findings[0].head_runs == 5 and again.exit_code == 0  # only the fifth was run


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("nowhere", "no revision 'nowhere'"),
        ("--upload-pack=x", "no revision '--upload-pack=x'"),
        pytest.param("broken", "head broken cannot run the study .*: scalade: no such command", marks=pytest.mark.slow),
        ("demanding", "revision demanding asks for numpy>=900, here is"),
    ],
)
def test_a_revision_that_cannot_be_run_is_told_and_cleaned_up(clean, tmp_path, ref, message):
    with pytest.raises(ValueError, match=message):
        interleave("base", ref, clean / "study.toml", tmp_path / "out", repo=clean, repeats=1)


def test_outside_a_repository(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    with pytest.raises(ValueError, match="no git repository in"):
        interleave("base", "head", tmp_path / "study.toml", repo=tmp_path)
    with pytest.raises(ValueError, match="repeats = 0"):
        interleave("base", "head", tmp_path / "study.toml", repo=tmp_path, repeats=0)


def test_the_study_is_kept_but_for_its_repeats(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(
        'name = "x"\na."b.c" = [1, 2.5, true, "q\\"\\\\\\u007f\\n\\U0001F600"]\n'
        "inf = inf\n[[layout]]\ntp = [1, 2]\n[[layout]]\npp = 2\n[zip]\n'layout.tp' = [1]\n[run]\nseeds = [1, 2]\n"
    )
    before, after = tomllib.loads(path.read_text()), tomllib.loads(with_repeats(path, 7, "y"))
    assert after == before | {"run": {"seeds": [1, 2], "repeats": 7}}
    path.write_text("")
    assert tomllib.loads(with_repeats(path, 1, "y")) == {"name": "y", "run": {"repeats": 1}}


@pytest.mark.slow
def test_the_real_thing(tmp_path):
    """Two revisions of this package that differ in a comment, where the tests run from a git checkout."""
    checkout = Path(scalade.__file__).parent
    if not (checkout / ".git").exists():
        pytest.skip("the package does not run from a git checkout")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--shared", checkout, clone], check=True)
    git(clone, "tag", "base")
    with open(clone / "bench" / "loop.py", "a") as file:
        file.write("# another revision\n")
    git(clone, "commit", "-qam", "x")
    (tmp_path / "study.toml").write_text(STUDY.replace("steps = 2", "steps = 12"))
    found = interleave("base", "HEAD", tmp_path / "study.toml", tmp_path / "out", repo=clone, repeats=2)
    assert found.compared == 1 and found.findings[0].interleaved and found.findings[0].head_runs == 2
    assert [note.split()[0] for note in found.notes if "git" in note] == ["git_commit"]  # not dirty: the worktree's
    assert found.losses[0].difference == 0
