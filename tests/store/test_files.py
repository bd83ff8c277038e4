"""results/files.py: below the trusted folder no link is followed, and only regular files are read, within a limit."""

import errno
import os
import resource
import socket
import tempfile
import time

import pytest

from scalade.results import files


@pytest.fixture
def trusted(tmp_path):
    """A folder reached through a link, as a results folder may be, beside one that nobody may touch."""
    (tmp_path / "real" / "runs").mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    (tmp_path / "named").symlink_to(tmp_path / "real")
    return tmp_path / "named"


def precious(trusted) -> str:
    assert os.listdir(trusted.parent / "precious") == ["thesis.txt"]
    return (trusted.parent / "precious" / "thesis.txt").read_text()


def test_the_trusted_folder_may_be_a_link_and_nothing_below_it(trusted):
    files.write(trusted / "runs" / "row.json", "{}", trusted)
    assert files.read(trusted / "runs" / "row.json", trusted) == b"{}"
    (trusted / "runs" / "linked").symlink_to(trusted.parent / "precious")
    (trusted / "runs" / "file").symlink_to(trusted.parent / "precious" / "thesis.txt")
    deep = trusted / "runs" / "linked" / "thesis.txt"
    for attempt in (
        lambda: files.read(deep, trusted),
        lambda: files.read(trusted / "runs" / "file", trusted),
        lambda: files.write(deep, "gone", trusted),
        lambda: files.write_folder(trusted / "runs" / "linked" / "a1", {"run.json": b""}, trusted),
        lambda: files.names(trusted / "runs" / "linked", trusted),
        lambda: files.remove(deep, trusted),
        lambda: files.make_folder(trusted / "runs" / "linked" / "deeper", trusted),
        lambda: files.make_folder(trusted / "runs" / "linked", trusted),
        lambda: files.look(deep, trusted),
        lambda: files.open_file(trusted / "runs" / "file", trusted, os.O_WRONLY | os.O_TRUNC | os.O_CREAT),
        lambda: files.open_file(trusted / "runs" / "file", trusted, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
    ):
        with pytest.raises(files.Refused, match=r"runs/(linked|file): a symbolic link, and links below a results"):
            attempt()
    assert not files.is_file(deep, trusted) and not files.is_folder(trusted / "runs" / "linked", trusted)
    assert precious(trusted) == "years of work"


def test_removing_a_link_removes_the_link(trusted):
    (trusted / "runs" / "linked").symlink_to(trusted.parent / "precious")
    (trusted / "runs" / "tree").mkdir()
    (trusted / "runs" / "tree" / "inner").symlink_to(trusted.parent / "precious")
    files.remove(trusted / "runs" / "linked", trusted)
    files.remove(trusted / "runs" / "tree", trusted)
    files.remove(trusted / "runs" / "never was", trusted)
    assert files.names(trusted / "runs", trusted) == []
    assert precious(trusted) == "years of work"


def test_a_very_deep_folder_is_removed():
    """Deeper than Python recurses, than paths are long and than descriptors last. In memory: disks take seconds."""
    top = tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    here = os.open(top, os.O_RDONLY)
    for depth in range(1200):
        for name in ("d", f"side-{depth % 2}"):
            os.mkdir(name, dir_fd=here)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    before = len(os.listdir("/proc/self/fd"))
    files.remove(top)
    assert not os.path.lexists(top)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", ["fifo", "socket", "folder", "device"])
def test_only_regular_files_are_opened_and_nothing_waits(trusted, kind):
    path = trusted / "runs" / "row.json"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            at = os.getcwd()
            os.chdir(path.parent)
            listening.bind(path.name)
            os.chdir(at)
    elif kind == "folder":
        path.mkdir()
    else:
        path, trusted = files.Path("/dev/zero"), files.Path("/dev")
    began = time.monotonic()
    with pytest.raises(files.Refused, match="named pipe|socket|a folder|device"):
        files.read(path, trusted)
    with pytest.raises(files.Refused):
        files.open_file(path, trusted, os.O_WRONLY | os.O_CREAT)
    with pytest.raises((files.Refused, OSError)):
        files.read_named(path)
    assert time.monotonic() - began < 5


def test_no_more_is_read_than_the_limit(trusted):
    sparse = trusted / "runs" / "steps.arrow"
    with open(sparse, "wb") as file:
        file.truncate(2**40)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(files.Refused, match=f"{2**40} bytes, and no more than 1024 are read") as refused:
        files.read(sparse, trusted, 1024)
    assert refused.value.errno == errno.EFBIG
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 50_000
    (trusted / "runs" / "row.json").write_bytes(b"x" * 1024)
    assert len(files.read(trusted / "runs" / "row.json", trusted, 1024)) == 1024


def test_a_file_that_grows_while_it_is_read_is_read_whole_or_refused(trusted, monkeypatch):
    (trusted / "runs" / "log").write_bytes(b"12345678")
    real = os.fstat

    def smaller(descriptor):
        found = list(real(descriptor))
        found[6] = min(found[6], 3)
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", smaller)
    assert files.read(trusted / "runs" / "log", trusted, 8) == b"12345678"
    with pytest.raises(files.Refused, match="no more than 7"):
        files.read(trusted / "runs" / "log", trusted, 7)


def test_what_has_another_name_elsewhere_is_not_changed_in_place(trusted):
    os.link(trusted.parent / "precious" / "thesis.txt", trusted / "runs" / "starts.jsonl")
    for flags in (os.O_TRUNC, os.O_APPEND):
        with pytest.raises(files.Refused, match="hard links"):
            files.open_file(trusted / "runs" / "starts.jsonl", trusted, os.O_WRONLY | os.O_CREAT | flags)
    files.write(trusted / "runs" / "starts.jsonl", "new", trusted)  # replaced, so that the other name keeps its content
    assert precious(trusted) == "years of work"


@pytest.mark.parametrize("bomb", ["[" * 500_000, '{"a":' * 500_000, "9" * 1_000_000, '{"a": 1', "\udcff", "\0"])
def test_what_is_no_json_is_a_value_error(trusted, bomb):
    (trusted / "runs" / "row.json").write_bytes(bomb.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError):
        files.read_json(trusted / "runs" / "row.json", trusted)


def test_a_replaced_file_is_whole_and_leaves_nothing_beside_it(trusted, monkeypatch):
    file = trusted / "runs" / "record.json"
    files.write(file, "old", trusted)
    (trusted / "runs" / "elsewhere").symlink_to(trusted.parent / "precious" / "thesis.txt")
    files.write(trusted / "runs" / "elsewhere", "new", trusted)
    assert precious(trusted) == "years of work" and not (trusted / "runs" / "elsewhere").is_symlink()
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="No space left") as full:
        files.write(file, "new", trusted)
    assert full.value.filename == str(file)
    with pytest.raises(OSError, match="No space left"):
        files.write_folder(trusted / "runs" / "a1", {"run.json": b"{}"}, trusted)
    assert file.read_text() == "old"
    assert files.names(trusted / "runs", trusted) == ["elsewhere", "record.json"]


def test_of_two_writers_of_one_folder_the_first_wins(trusted):
    files.write_folder(trusted / "runs" / "a1", {"run.json": b"first", "steps.arrow": b"1"}, trusted)
    with pytest.raises(FileExistsError, match="a1"):
        files.write_folder(trusted / "runs" / "a1", {"run.json": b"second"}, trusted)
    (trusted / "runs" / "a2").symlink_to(trusted.parent / "precious")
    with pytest.raises(FileExistsError, match="a2"):
        files.write_folder(trusted / "runs" / "a2", {"run.json": b"second"}, trusted)
    assert files.read(trusted / "runs" / "a1" / "run.json", trusted) == b"first"
    assert files.names(trusted / "runs", trusted) == ["a1", "a2"]
    assert precious(trusted) == "years of work"


def test_a_path_out_of_the_trusted_folder_is_our_own_mistake(trusted):
    with pytest.raises(ValueError, match="not in the subpath"):
        files.read(trusted.parent / "precious" / "thesis.txt", trusted)
    with pytest.raises(AssertionError, match="is not below"):
        files.read(trusted / ".." / "precious" / "thesis.txt", trusted)
