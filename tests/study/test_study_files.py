"""What a user may hand over as a study file: editors' byte-order marks are read, all else that is no text says so."""

import os
import subprocess
import sys
import time

import pytest

from scalade.launch.study.study import StudyError, load_study

STUDY = """
name = "t"
[model]
size = "tiny-100k"
[recipe]
global_batch = 8
[budget]
steps = 3
[layout]
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "study.toml"


def refused(path) -> str:
    with pytest.raises(StudyError) as error:
        load_study(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_byte_order_mark_is_read(path):
    path.write_text(STUDY)
    plain = load_study(path).all_cases
    path.write_bytes(b"\xef\xbb\xbf" + STUDY.encode())
    assert [case.case_id for case in load_study(path).all_cases] == [case.case_id for case in plain]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (STUDY.encode("utf-16"), "UTF-16: TOML is UTF-8, save it so"),
        (STUDY.encode("utf-16-be"), "not valid TOML"),
        (STUDY.replace("tiny", "t\xefny").encode("latin-1"), "not UTF-8 at byte"),
        (STUDY.encode() + b"\0", "not valid TOML"),
        (b"\x7fELF\x02\x01\x01", "not valid TOML"),
    ],
)
def test_other_encodings_cost_one_line(path, content, told):
    path.write_bytes(content)
    assert told in refused(path)


def test_what_is_no_file_costs_one_line_and_no_time(path, tmp_path):
    os.mkfifo(path)
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    with open(tmp_path / "sparse.toml", "wb") as sparse:
        sparse.truncate(2**30)
    began = time.monotonic()
    assert "cannot be read: a named pipe, not a file" in refused(path)
    assert "cannot be read: a device, not a file" in refused(tmp_path / "zero.toml")
    assert "larger than" in refused(tmp_path / "sparse.toml")
    assert "a folder, not a file" in refused(tmp_path)
    assert time.monotonic() - began < 5


def test_a_link_to_a_study_is_read(path, tmp_path):
    path.write_text(STUDY)
    (tmp_path / "link.toml").symlink_to(path)
    assert len(load_study(tmp_path / "link.toml").all_cases) == 1


@pytest.mark.parametrize("budget", ["tokens_per_param = 1e308", "flops = 1e308", "tokens_per_param = 1e300"])
def test_a_budget_beyond_all_numbers_costs_one_line(path, budget):
    path.write_text(STUDY.replace("steps = 3", budget))
    assert "more than 2**63 tokens" in refused(path)


INTERRUPTED = """
import runpy, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
runpy.run_module("scalade", run_name="__main__")
"""


def test_ctrl_c_while_importing_leaves_no_trace():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
