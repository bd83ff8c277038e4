"""The standard library's text: what is in it, how it is split, and its cache."""

import hashlib
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from scalade.bench.data import DataSpec, open_source
from scalade.bench.data import stdlib as stdlib_source


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache of 'mine'"))
    return tmp_path / "cache of 'mine'" / "scalade"


@pytest.fixture
def library(tmp_path):
    """A small library: 30 modules, a package, and what must be left out."""
    root = tmp_path / "lib"
    for i in range(30):
        (root / f"m{i:02}.py").parent.mkdir(exist_ok=True)
        (root / f"m{i:02}.py").write_text(f"# module {i}\n" * 20)
    for folder in ("package/inner", "test", "site-packages", "package/tests", ".git"):
        (root / folder).mkdir(parents=True)
        (root / folder / "a.py").write_text(f"# in {folder}\n" * 20)
    (root / "notes.txt").write_text("no Python")
    (root / "package" / "circle").symlink_to(root)
    return root


def text_of(pieces) -> bytes:
    return b"".join(bytes(piece) for piece in pieces)


def test_it_is_this_interpreters_library(cache):
    source = open_source(DataSpec(), 64, 0)
    train = text_of(source.train.pieces)
    assert len(train) > 2_000_000 and source.vocab == 256
    for module in (hashlib, subprocess):
        text = open(module.__file__, "rb").read()
        assert (text in train) != (text in text_of(source.val.pieces))
    assert b"site-packages" not in [part.encode() for part, _ in source_units(cache)]
    rows = source.train_rows(0, 100)
    assert all(bytes(row.astype(np.uint8)) in train for row in rows)
    assert source.columns() == {
        "data_hash": hash_of_cache(cache),
        "data_tokens": source.train.count * 64,
        "data_entropy_nats": None,
    }


def source_units(cache):
    (file,) = cache.iterdir()
    about, _ = stdlib_source._read_cache(file)
    return about["units"]


def hash_of_cache(cache) -> str:
    (file,) = cache.iterdir()
    return hashlib.sha256(file.read_bytes().partition(b"\n")[2]).hexdigest()


@pytest.mark.parametrize("fraction", [0, 0.01, 0.05, 0.3])
def test_whole_modules_are_held_out(cache, fraction):
    text = stdlib_source.read_text(fraction)
    held = sum(map(len, text.val))
    total = held + sum(map(len, text.train))
    assert held <= fraction * total and held >= fraction * total * 0.98
    lengths = dict(source_units(cache)).values()
    assert len(text.val) + len(text.train) == len(lengths) and {len(p) for p in text.val} <= set(lengths)


def test_what_is_left_out(cache, library):
    text = stdlib_source.read_text(0, str(library))
    joined = text_of(text.train)
    assert joined.count(b"\n") == 31 * 20 and b"# in package/inner\n" in joined


def test_order_is_by_path_not_by_the_file_system(cache, library):
    joined = text_of(stdlib_source.read_text(0, str(library)).train)
    names = [f"m{i:02}.py" for i in range(30)] + ["package/inner/a.py"]
    assert joined == b"".join((library / name).read_bytes() for name in names)


def test_a_changed_library_is_noticed(cache, library):
    before = stdlib_source.read_text(0.1, str(library)).content_hash()
    assert stdlib_source.read_text(0.1, str(library)).content_hash() == before
    assert len(list(cache.iterdir())) == 1
    (library / "m00.py").write_text("# module X\n" * 20)  # the same size
    os.utime(library / "m00.py", ns=(1, 1))
    assert stdlib_source.read_text(0.1, str(library)).content_hash() != before


def test_a_damaged_cache_is_made_again(cache, library):
    whole = stdlib_source.read_text(0, str(library))
    expected = text_of(whole.train)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    for damaged in (b"", b"\n", b"{}\n", b"[1]\n", content[:-1], content + b"x", b"\xff" * 100, content[:40]):
        file.unlink()  # what is mapped must not be cut
        file.write_bytes(damaged)
        again = stdlib_source.read_text(0, str(library))
        assert text_of(again.train) == expected and again.content_hash() == whole.content_hash()
        assert file.read_bytes() == content


@pytest.mark.parametrize("where", ["a file in the way", "relative", "no home"])
def test_without_a_writable_cache_it_is_kept_in_memory(where, tmp_path, monkeypatch, library):
    monkeypatch.chdir(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", {"a file in the way": str(blocked), "relative": "x"}.get(where, ""))
    monkeypatch.setenv("HOME", {"relative": str(blocked), "no home": ""}.get(where, str(tmp_path)))
    text = stdlib_source.read_text(0.1, str(library))
    assert len(text_of(text.train)) > 1000 and len(text.content_hash()) == 64
    assert not (tmp_path / "x").exists()


def test_memory_mapped(cache, library):
    piece = stdlib_source.read_text(0, str(library)).train[0]
    assert isinstance(piece, np.memmap) and not piece.flags.writeable


def test_two_processes_at_once(cache):
    """Four start together on an empty cache; all see the same text, and one whole file is left."""
    code = (
        "from scalade.bench.data import *; s = open_source(DataSpec(), 32, 3);"
        "print(s.columns()['data_hash'], s.train_rows(10, 12).sum(), s.val_rows(0, 2).sum())"
    )
    children = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)]
    said = {child.communicate(timeout=60)[0] for child in children}
    assert all(child.returncode == 0 for child in children)
    assert len(said) == 1 and said != {b""}
    assert [path.suffix for path in cache.iterdir()] == [".bin"]


def test_the_second_time_is_cheap(cache):
    open_source(DataSpec(), 64, 0)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        open_source(DataSpec(), 64, 0).columns()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05  # about 2 ms on an idle machine; hashing or joining the text again would show


def test_an_interpreter_without_sources(cache, tmp_path):
    with pytest.raises(ValueError, match="no Python source text under"):
        stdlib_source.read_text(0.1, str(tmp_path / "nowhere"))
