"""stdlib: the Python source text of the running interpreter's standard library, as bytes.

Always there, real, nothing to download. Left out: what is not the library's (site-packages), tests, what is generated
(encodings' tables, build configuration, pydoc's topics), and packages that copy others (lib2to3, distutils, idlelib).

Held out are whole top-level modules and packages, chosen by a hash of their name: files of one package repeat each
other's text, modules hardly do, and a tail of the alphabet would be no fair sample.

The text is cached as one file, $XDG_CACHE_HOME/scalade/stdlib-<key>.bin (~/.cache by default): a line of JSON (hash,
length of each unit), then the bytes. The key covers path, size and modification time of every file read, so another or
a changed interpreter makes a cache of its own. Without a writable cache the text is kept in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from .spec import DataSpec, in_use
from .windows import Text, WindowedSource

LEFT_OUT = {
    "site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "idlelib", "lib2to3", "distutils",
    "turtledemo", "ensurepip", "encodings", "pydoc_data", "lib-dynload", "__phello__", "sitecustomize.py",
    "usercustomize.py",
}  # fmt: skip
LEFT_OUT_PREFIXES = (".", "config-", "_sysconfigdata")


def open_source(spec: DataSpec, seq_len: int, seed: int) -> WindowedSource:
    return WindowedSource(read_text(in_use(spec.val_fraction)), seq_len, seed)


def read_text(val_fraction: float, root: str | None = None) -> Text:
    """The text of the library under `root` (the running interpreter's), split.

    Raises
    ------
    ValueError: no Python source lies there
    """
    root = root or sysconfig.get_path("stdlib")
    files = sorted(_python_files(root))
    if not files:
        raise ValueError(f"data.source = 'stdlib': no Python source text under {root}; use another data.source")
    about, text = _joined(root, files)
    held = _held_out(about["units"], val_fraction)
    train: list[np.ndarray] = []
    val: list[np.ndarray] = []
    start = 0
    for unit, length in about["units"]:
        (val if unit in held else train).append(text[start : start + length])
        start += length
    return Text(train, val, 256, lambda: about["sha256"], "data.source = 'stdlib'")


def _joined(root: str, files: list[tuple[str, int, int]]) -> tuple[dict, np.ndarray]:
    """As `_join`, from the cache where it is there. files: as _python_files has them, sorted"""
    cache = _cache_file(hashlib.sha256(repr((root, files)).encode()).hexdigest()[:32])
    cached = None if cache is None else _read_cache(cache)
    if cached is not None:
        return cached
    joined = _join(root, [name for name, _, _ in files])
    if cache is None or not _write_cache(cache, *joined):
        return joined
    return _read_cache(cache) or joined


def _python_files(root: str, below: str = "") -> list[tuple[str, int, int]]:
    """(path from `root` with /, size, modification time in ns) of every source file."""
    files = []
    with suppress(OSError), os.scandir(os.path.join(root, below)) as entries:
        for entry in entries:
            name = below + entry.name
            if entry.name in LEFT_OUT or entry.name.startswith(LEFT_OUT_PREFIXES):
                continue
            if entry.is_dir(follow_symlinks=False):  # a link may lead in a circle
                files += _python_files(root, name + "/")
            elif entry.name.endswith(".py") and entry.is_file() and os.access(entry.path, os.R_OK):
                status = entry.stat()
                files.append((name, status.st_size, status.st_mtime_ns))
    return files


def _join(root: str, names: list[str]) -> tuple[dict, np.ndarray]:
    """({sha256, units: [[top-level name, bytes], ...]}, text)."""
    units: dict[str, int] = {}
    parts = []
    for name in names:
        parts.append(Path(root, name).read_bytes())
        unit = name.partition("/")[0]
        units[unit] = units.get(unit, 0) + len(parts[-1])
    text = b"".join(parts)
    return {"sha256": hashlib.sha256(text).hexdigest(), "units": list(units.items())}, np.frombuffer(text, np.uint8)


def _held_out(units: list, fraction: float) -> set[str]:
    """Names of the units held out: in the order of their hashes, each that still fits into the fraction."""
    room = int(sum(length for _, length in units) * fraction)
    held = set()
    for unit, length in sorted(units, key=lambda pair: hashlib.sha256(pair[0].encode()).digest()):
        if length <= room:
            held.add(unit)
            room -= length
    return held


def _cache_file(key: str) -> Path | None:
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification: relative ones are ignored
        base = os.path.expanduser("~/.cache")
    return Path(base, "scalade", f"stdlib-{key}.bin") if os.path.isabs(base) else None


def _read_cache(path: Path) -> tuple[dict, np.ndarray] | None:
    """What `_write_cache` left there, memory-mapped; None where there is nothing whole."""
    try:
        with open(path, "rb") as file:
            line = file.readline(1 << 20)
            size = os.fstat(file.fileno()).st_size
            about = json.loads(line)
            if sum(length for _, length in about["units"]) != size - len(line) or len(about["sha256"]) != 64:
                return None
            return about, np.memmap(file, np.uint8, mode="r", offset=len(line))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_cache(path: Path, about: dict, text: np.ndarray) -> bool:
    """Atomically: aside, then renamed; of two processes at once the later one replaces the same content."""
    aside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
        with open(handle, "wb") as file:
            file.write(json.dumps(about).encode() + b"\n")
            file.write(text.data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        return True
    except OSError:
        if aside:
            with suppress(OSError):
                os.unlink(aside)
        return False
