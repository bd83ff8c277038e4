"""The tutorial's pages, run as they are written: their files are saved, and their commands run in order."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

TUTORIAL = ROOT / "docs" / "tutorial"
RUN = ("own-study", "own-trainer", "laws", "gate")  # first-study's are the README's; cluster's need a scheduler


def files(text):
    """(name, content) of the blocks that have a title."""
    return re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', text, re.M | re.S)


def commands(text):
    """Lines of the sh blocks."""
    return [line for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]


def test_each_page_that_runs_has_files_and_commands():
    assert {page.stem for page in TUTORIAL.glob("*.md")} == {*RUN, "first-study", "cluster"}
    for name in RUN:
        text = (TUTORIAL / f"{name}.md").read_text()
        assert files(text) and commands(text), name


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", RUN)
def test_a_page_works_as_written(page, tmp_path):
    text = (TUTORIAL / f"{page}.md").read_text()
    for name, content in files(text):
        (tmp_path / name).write_text(content)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    env = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    for command in commands(text):
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
