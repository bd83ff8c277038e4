"""Files of tensors and of JSON in a checkpoint: what goes in comes out, and nothing else is taken for it."""

import hashlib
import json
import os
import pickle
import struct
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from scalade.bench import tensor_file
from scalade.bench.checkpoint_files import Outgoing, Saved
from scalade.bench.tensor_file import Digest, from_bytes, size_limit, to_bytes, write_tensors
from scalade.parallelism.checkpoint import assigned, overlap
from scalade.parallelism.state_file import read_state, write_state

TENSORS = {
    "fp32": torch.randn(5, 7),
    "bf16": torch.randn(3, 2).bfloat16(),
    "fp16": torch.randn(3).half(),
    "fp64": torch.randn(2, 1, 3).double(),
    "int64": torch.tensor([-(2**63), 2**63 - 1]),
    "bool": torch.tensor([True, False]),
    "uint8": torch.arange(255, dtype=torch.uint8),
    "int8": torch.tensor([-128], dtype=torch.int8),
    "0-dim": torch.tensor(3.5),
    "0-dim int": torch.tensor(7),
    "empty": torch.empty(0, 4),
    "empty int": torch.empty(0).long(),
    "not contiguous": torch.randn(4, 6).t()[1:, ::2],
    'naïve "name"\n': torch.tensor([float("nan"), float("inf"), -0.0]),
}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    bits = [each.contiguous().reshape(-1).view(torch.uint8) for each in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)


@pytest.fixture(params=["before", "beside"])
def checked(request, monkeypatch):
    """A small file is hashed before it is read, a large one beside it, in a thread: here all are small, or large."""
    monkeypatch.setattr(tensor_file, "THREAD_BYTES", 1 if request.param == "beside" else 2**40)


both_ways = pytest.mark.usefixtures("checked")


@both_ways
def test_every_kind_of_tensor_comes_back_bitwise(tmp_path):
    out = Outgoing(tmp_path / "at", tmp_path)
    out.within("inside").tensors("x.safetensors", TENSORS, {"about": "ü"})
    file = tmp_path / "at" / "inside" / "x.safetensors"
    content = file.read_bytes()
    assert out.digests == {"inside/x.safetensors": Digest(len(content), hashlib.sha256(content).hexdigest())}
    assert all(same(tensor, TENSORS[name]) for name, tensor in load_file(file).items())  # by the library alone
    saved = Saved(tmp_path / "at", tmp_path, out.digests).within("inside")
    with saved.tensors("x.safetensors") as found:
        assert found.about == {"about": "ü"}
        assert all(same(found.get(name), tensor) for name, tensor in TENSORS.items())
        assert same(found.get("fp32", (slice(1, 3), slice(0, 6))), TENSORS["fp32"][1:3, :6])
        with pytest.raises(ValueError, match="x.safetensors has no y"):
            found.get("y")


@both_ways
@pytest.mark.parametrize("tensors", [{}, {"only": torch.empty(0)}])
def test_a_file_of_nothing(tmp_path, tensors):
    digest = write_tensors(tmp_path / "x", tmp_path, tensors)
    with Saved(tmp_path, tmp_path, {"x": digest}).tensors("x") as found:
        assert all(found.get(name).numel() == 0 for name in tensors)


def test_what_the_format_lacks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="z is torch.complex64, which x cannot hold"):
        write_tensors(tmp_path / "x", tmp_path, {"z": torch.zeros(1, dtype=torch.complex64)})


STATE = {
    "steps": [3, None, torch.tensor(2.0)],
    "layout": "torch",
    "lr": 1e-300,
    "on": True,
    "none": None,
    "empty": {},
    "nested": [[{"a": torch.arange(3)}, []], {"tensor": torch.ones(2), "of": "0"}],
}


@both_ways
def test_nested_state_comes_back(tmp_path):
    out = Outgoing(tmp_path, tmp_path)
    write_state(out, "x", STATE)
    found = read_state(Saved(tmp_path, tmp_path, out.digests), "x")
    (tmp_path / "x").write_bytes(b"")  # nothing of it is still mapped
    assert found.keys() == STATE.keys() and found["steps"][:2] == [3, None] and float(found["steps"][2]) == 2.0
    assert [found[k] for k in ("layout", "lr", "on", "none", "empty")] == ["torch", 1e-300, True, None, {}]
    assert found["nested"][0][0]["a"].tolist() == [0, 1, 2] and found["nested"][0][1] == []
    assert found["nested"][1]["tensor"].tolist() == [1, 1] and found["nested"][1]["of"] == "0"


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def header(text: str, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text.encode()


TENSOR = '{"x":{"dtype":"F32","shape":[%s],"data_offsets":[%s]}}'
HOSTILE = {  # content of a file whose digest fits
    "nothing": b"",
    "pickle": pickle.dumps(Bomb()),
    "header that is too long": header("{}", 2**63),
    "header that is cut off": header("{}", 1000),
    "nested header": header("[" * 100_000),
    "no JSON": header("{]"),
    "beyond the file": header(TENSOR % ("1000000000", "0,4000000000")),
    "overflow": header(TENSOR % ("4611686018427387904,4", "0,0")),
    "negative": header(TENSOR % ("-1", "0,4")) + b"1234",
    "another size": header(TENSOR % ("1", "0,8")) + b"12345678",
    "another type": header(TENSOR.replace("F32", "PYTHON") % ("1", "0,4")) + b"1234",
    "a hole": header(TENSOR % ("1", "4,8")) + b"12345678",
    "no state": header("{}"),
    "state that is no JSON": header('{"__metadata__":{"state":"{"}}'),
    "state of another file": header('{"__metadata__":{"state":"{\\"tensor\\":\\"../../x\\"}"}}'),
    "tensor of no name": header('{"__metadata__":{"state":"{\\"tensor\\":[1]}"}}'),
    "nested state": header('{"__metadata__":{"state":"' + "[" * 50_000 + '"}}'),
    "deep state": header('{"__metadata__":{"state":"' + "[" * 900 + "]" * 900 + '"}}'),
}


@both_ways
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_content_is_one_line(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_bytes(HOSTILE[kind])
    saved = Saved(tmp_path, tmp_path, {"x": Digest(len(HOSTILE[kind]), hashlib.sha256(HOSTILE[kind]).hexdigest())})
    with pytest.raises(ValueError, match="^x ") as told:
        read_state(saved, "x")
    assert "\n" not in str(told.value) and not (tmp_path / "ran").exists()


@both_ways
@pytest.mark.parametrize("kind", ["flipped", "cut", "longer", "missing", "link", "pipe", "folder", "device"])
def test_another_file_is_one_line(kind, tmp_path):
    out = Outgoing(tmp_path, tmp_path)
    out.tensors("x", {"x": torch.randn(1000)})
    out.json("y", {"x": 1})
    for file in (tmp_path / "x", tmp_path / "y"):
        content = file.read_bytes()
        if kind in ("flipped", "cut", "longer"):
            flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
            file.write_bytes({"flipped": flipped, "cut": content[:-1], "longer": content + b" "}[kind])
            continue
        file.unlink()
        if kind == "link":
            (tmp_path / f"real {file.name}").write_bytes(content)
            file.symlink_to(tmp_path / f"real {file.name}")
        elif kind == "device":
            file.symlink_to("/dev/zero")
        elif kind != "missing":
            {"pipe": os.mkfifo, "folder": os.mkdir}[kind](file)
    saved = Saved(tmp_path, tmp_path, out.digests)
    with pytest.raises(ValueError, match="^x"), saved.tensors("x"):
        pass
    with pytest.raises(ValueError, match="^y"):
        saved.json("y")
    with pytest.raises(ValueError, match="^z is missing$"):
        saved.json("z")


class SlowHash:
    """SHA-256 whose thread lags behind."""

    def __init__(self):
        self.hash = KNOWN_HASH()
        self.hexdigest = self.hash.hexdigest

    def update(self, content):
        time.sleep(0.01)
        self.hash.update(content)


KNOWN_HASH = hashlib.sha256


def hash_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hash")]


@pytest.mark.parametrize("turned", [False, True])
def test_a_thread_that_lags_hashes_all_that_was_written_and_of_copies_one_is_kept(tmp_path, monkeypatch, turned):
    write, lagged = tensor_file.HashedFile.write, []

    def watched(file, content):
        lagged.append(file._last is not None and not file._last.done())
        write(file, content)

    monkeypatch.setattr(tensor_file, "THREAD_BYTES", 1)
    monkeypatch.setattr(tensor_file.HashedFile, "write", watched)
    monkeypatch.setattr(hashlib, "sha256", SlowHash)
    tensors = {f"x{i}": torch.randn(20, 30) for i in range(9)}
    digest = write_tensors(tmp_path / "x", tmp_path, {k: v.t() if turned else v for k, v in tensors.items()})
    assert digest.sha256 == KNOWN_HASH((tmp_path / "x").read_bytes()).hexdigest() and not hash_threads()
    assert any(lagged[2:]) != turned, "a copy waits for its hash; a tensor's own memory does not"


def test_a_disk_that_fails_is_told_and_leaves_no_thread(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_file, "THREAD_BYTES", 1)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(tmp_path / "x", tmp_path, {"x": torch.randn(100)})
    assert not hash_threads()


@both_ways
@pytest.mark.parametrize("part", ["header", "values"])
def test_damage_is_named_as_such_whatever_is_made_of_it(part, tmp_path):
    """Beside the check a reader sees what is damaged: what it fails at is not told, and what it found is not given."""
    out = Outgoing(tmp_path, tmp_path)
    write_state(out, "x", {"a": torch.randn(1000)})
    content = (tmp_path / "x").read_bytes()
    at = 10 if part == "header" else len(content) - 9
    (tmp_path / "x").write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
    saved = Saved(tmp_path, tmp_path, out.digests)
    with pytest.raises(ValueError, match="^x is not what was written: its SHA-256 differs$"):
        read_state(saved, "x")
    with pytest.raises(ValueError, match="SHA-256 differs"), saved.tensors("x") as found:
        found.get("no such tensor")
    assert not hash_threads()


def test_writing_goes_through_no_link(tmp_path):
    (tmp_path / "mine").write_text("mine")
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "x").symlink_to(tmp_path / "mine")
    (folder / "inside").symlink_to(tmp_path)
    out = Outgoing(folder, folder)
    out.json("x", 1)
    with pytest.raises(OSError, match="symbolic link"):
        out.within("inside").json("mine", 1)
    assert (tmp_path / "mine").read_text() == "mine" and json.loads((folder / "x").read_text()) == 1


def test_a_message_of_tensors_is_what_is_expected_or_one_line():
    like = {"a.b": torch.randn(3, 4), "step": torch.tensor(3), "c": torch.randn(2).bfloat16()}
    content = to_bytes(like)
    assert len(content) <= size_limit(like) < len(content) + 4000
    found = from_bytes(content, like)
    assert found.keys() == like.keys() and all(same(found[name], like[name]) for name in like)
    others = [{"a.b": torch.randn(4, 3)}, {"a.b": torch.randn(3, 4).double()}, {"d": torch.ones(1)}]
    for other in [to_bytes(like | each) for each in others] + [to_bytes({}), pickle.dumps(Bomb()), b"", content[:-1]]:
        with pytest.raises(ValueError, match="^a message of tensors"):
            from_bytes(other, like)


def boxes_of(shape: tuple[int, int], rows: int, columns: int) -> list[list]:
    """Of each rank of a grid, as chunks: offset and shape of its box of a matrix; ranks beyond the end hold nothing."""

    def cut(size: int, ways: int) -> list[tuple[int, int]]:
        each = -(-size // ways)
        return [(min(i * each, size), min(each, max(size - i * each, 0))) for i in range(ways)]

    return [[[a, b], [n, m]] for a, n in cut(shape[0], rows) for b, m in cut(shape[1], columns)]


@pytest.mark.parametrize("shape", [(6, 4), (5, 7), (1, 3), (2, 2)])
@pytest.mark.parametrize(("saved", "loaded"), [((2, 2), (3, 1)), ((1, 1), (4, 2)), ((4, 1), (1, 3)), ((3, 2), (2, 3))])
def test_any_grid_finds_its_boxes_in_those_of_another(shape, saved, loaded):
    whole = torch.arange(shape[0] * shape[1]).view(shape)
    written = [box for box in boxes_of(shape, *saved) if all(box[1])]
    for offset, size in boxes_of(shape, *loaded):
        mine, missing = torch.full(size, -1), size[0] * size[1]
        for box in written:
            if common := overlap((tuple(offset), tuple(size)), box):
                (a, b), (n, m) = common
                mine[a - offset[0] : a - offset[0] + n, b - offset[1] : b - offset[1] + m] = whole[a : a + n, b : b + m]
                missing -= n * m
        assert missing == 0 and -1 not in mine


def test_each_box_is_written_once_and_all_write_about_equally_much():
    every = [
        [[f"p{i}", [8, 2], [4 * (rank % 2), 0], [4, 2], ["s"]] for i in range(6)] + [["n", [2], [0], [2], []]]
        for rank in range(4)
    ]
    boxes, orders = assigned(every)
    assert all(len(entry["boxes"]) == (1 if name == "n" else 2) for name, entry in boxes.items())
    per_rank = [sum(len(names) for file, names in order.items() if "-of2." in file) for order in orders]
    assert per_rank == [3, 3, 3, 3] and sum("-of4." in file for order in orders for file in order) == 1
    with pytest.raises(AssertionError, match="elements of p0"):
        assigned([[["p0", [8, 2], [0, 0], [4, 2], []]]])
