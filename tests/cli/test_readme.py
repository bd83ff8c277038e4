"""The README's commands, run as they are written, in one folder and in order."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

README = (ROOT / "README.md").read_text()
# `make` is what started this test; the others need a cluster.
ELSEWHERE = ("make", "git", "cd", "pip", "sbatch", "srun")


def commands() -> list[str]:
    """Lines of the README's sh blocks, less comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#") and shlex.split(line)[0] not in ELSEWHERE]


def studies() -> list[str]:
    return re.findall(r"^```toml\n(.*?)^```", README, re.M | re.S)


def test_there_are_commands_to_run():
    assert any(command.startswith("scalade run") for command in commands())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_commands_work_as_written(tmp_path):
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    for number, text in enumerate(studies()):
        name = re.search(r'^name = "(.*)"', text, re.M)
        (tmp_path / f"{name[1] if name else number}.toml").write_text(text)
    first = ROOT / "scalade-results" / "quickstart"
    if os.environ.get("CI") and first.is_dir():  # `make run` has just run the first study: it is not run twice
        shutil.copytree(first, tmp_path / "scalade-results" / "quickstart")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    env = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    for command in commands():
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
