"""Token files: nanoGPT's, llm.c's and Megatron's, whole, damaged and hostile."""

import os
import pickle
import struct

import numpy as np
import pytest

from scalade.bench.data import DataSpec, open_source, vocab_of
from scalade.bench.data.token_file import MEGATRON_DTYPES, fingerprint, open_tokens

TOKENS = np.random.default_rng(0).integers(0, 1000, 20_000)


def flat(path, dtype="<u2", tokens=TOKENS):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(tokens.astype(dtype).tobytes())
    return path


def llmc(path, tokens=TOKENS, magic=20240520, version=1, dtype="<u2"):
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens)
    path.write_bytes(header.tobytes() + tokens.astype(dtype).tobytes())
    return path


def megatron(prefix, tokens=TOKENS, code=8, documents=20, modes=False, change=()):
    """As megatron/core/datasets/indexed_dataset.py writes it; `change` replaces parts of the index."""
    kind = np.dtype(MEGATRON_DTYPES.get(code, "<u2"))
    edges = np.linspace(0, len(tokens), 2 * documents + 1).astype(np.int64)  # two sequences a document
    lengths = np.diff(edges).astype("<i4")
    parts = {
        "magic": b"MMIDIDX\x00\x00",
        "version": struct.pack("<Q", 1),
        "code": struct.pack("<B", code),
        "counts": struct.pack("<QQ", len(lengths), documents + 1),
        "lengths": lengths.tobytes(),
        "pointers": (edges[:-1] * kind.itemsize).astype("<i8").tobytes(),
        "documents": np.arange(0, 2 * documents + 1, 2).astype("<i8").tobytes(),
        "modes": b"\0" * len(lengths) if modes else b"",
    }
    prefix.with_name(prefix.name + ".idx").write_bytes(b"".join((parts | dict(change)).values()))
    flat(prefix.with_name(prefix.name + ".bin"), kind, tokens)
    return prefix


def spec(path, **settings):
    return DataSpec("tokens", path=str(path), **{"vocab": 1000} | settings)


@pytest.mark.parametrize(
    ("write", "settings"),
    [
        (lambda folder: flat(folder / "train.bin"), {}),
        (lambda folder: flat(folder / "train.bin", "<u4"), {}),
        (lambda folder: flat(folder / "train.bin", "<u4"), {"dtype": "uint32"}),
        (lambda folder: flat(folder / "a 'b' \"c\" $(touch x)" / "no extension"), {"dtype": "uint16"}),
        (lambda folder: llmc(folder / "t.bin"), {}),
        (lambda folder: llmc(folder / "t.bin", magic=20240801, version=7, dtype="<u4"), {"vocab": 128256}),
        (lambda folder: megatron(folder / "my.corpus_text_document"), {}),
        (lambda folder: megatron(folder / "c").with_name("c.bin"), {}),
        (lambda folder: megatron(folder / "c", code=4, modes=True).with_name("c.idx"), {}),
    ],
    ids=["uint16", "uint32", "uint32 said", "odd path", "llm.c", "llm.c llama3", "prefix", "bin", "idx, int32, modes"],
)
def test_every_format_gives_the_tokens_back(tmp_path, write, settings):
    path = write(tmp_path)
    assert np.array_equal(open_tokens(str(path), settings.get("dtype", "auto"), 1000).tokens, TOKENS)
    source = open_source(spec(path, val_fraction=0, **settings), 19, 0)
    count = source.train.count
    rows = source.train_rows(0, count)
    assert rows.dtype == np.int64
    assert np.array_equal(rows[np.argsort(source_order(source))][:, 1:].ravel(), TOKENS[1 : 19 * count + 1])


def source_order(source):
    """Window number of each position of the first epoch, found by looking for its tokens."""
    starts = {tuple(row): i for i, row in enumerate(source.train.read(np.arange(source.train.count)))}
    return [starts[tuple(row)] for row in source.train_rows(0, source.train.count)]


def test_mapped_not_loaded(tmp_path):
    """A sparse file of 64 GB opens, hashes and gives rows."""
    path = tmp_path / "big.bin"
    with open(path, "wb") as file:
        file.write(b"\x01\x00\x02\x00")
        file.truncate(64 << 30)
    source = open_source(spec(path, dtype="uint16"), 128, 0)
    assert source.train_rows(10**9, 10**9 + 4).sum() <= 3
    assert source.columns()["data_tokens"] > 30e9


def test_megatron_holds_out_whole_documents(tmp_path):
    numbered = np.arange(50_000)
    source = open_source(spec(megatron(tmp_path / "c", numbered, code=4, documents=1000), vocab=50_000), 9, 0)
    edges = np.linspace(0, 50_000, 2001).astype(int)[::2]
    for piece in source.val.pieces:
        assert piece[0] in edges and piece[-1] + 1 in edges
    assert abs(source.val.tokens - 2500) < 200


def test_a_validation_file_of_its_own(tmp_path):
    train, val = flat(tmp_path / "train.bin"), flat(tmp_path / "val.bin", tokens=TOKENS[:500] * 0 + 7)
    source = open_source(spec(train, val_path=str(val)), 10, 0)
    assert source.train.tokens == len(TOKENS) and source.val_windows == 49 and (source.val_rows(0, 49) == 7).all()
    only_train = open_source(spec(train), 10, 0)
    assert source.columns()["data_hash"] != only_train.columns()["data_hash"]
    (tmp_path / "link.bin").symlink_to(train)
    with pytest.raises(ValueError, match=r"data\.val_path = .*: is the file that is trained on"):
        open_source(spec(train, val_path=str(tmp_path / "link.bin")), 10, 0)
    flat(val, tokens=TOKENS[:500] * 0 + 1000)
    with pytest.raises(ValueError, match=r"data\.val_path = .*val\.bin': token 1000 is outside"):
        open_source(spec(train, val_path=str(val)), 10, 0)


def test_a_token_outside_the_vocabulary_names_file_token_and_vocabulary(tmp_path):
    path = flat(tmp_path / "train.bin")
    with pytest.raises(ValueError, match=r"data\.path = .*train\.bin': token 999 is outside .* data\.vocab = 999"):
        open_source(spec(path, vocab=999), 16, 0)
    negative = megatron(tmp_path / "n", np.full(100, -3), code=4)
    with pytest.raises(ValueError, match="token -3 is outside"):
        open_source(spec(negative), 5, 0)


def test_a_token_outside_the_vocabulary_that_no_sample_shows_stops_the_run(tmp_path):
    tokens = np.tile(TOKENS, 200)
    tokens[50_000:60_000] = 1000  # between two of the blocks that are looked at
    source = open_source(spec(flat(tmp_path / "train.bin", tokens=tokens)), 16, 0)
    with pytest.raises(ValueError, match=r"data\.path = .*train\.bin': token 1000 is outside .* data\.vocab = 1000"):
        source.train_rows(0, source.train.count)


BAD = [
    ("missing", lambda p: None, "there is no such file"),
    ("a folder", lambda p: p.mkdir(), "is a folder"),
    ("empty", lambda p: p.write_bytes(b""), "is empty"),
    ("odd", lambda p: p.write_bytes(b"1234567"), "7 bytes are no whole number of uint16 tokens"),
    ("a pipe", lambda p: os.mkfifo(p), "is no regular file"),
    ("a dangling link", lambda p: p.symlink_to("nowhere"), "there is no such file"),
    ("npy", lambda p: np.save(open(p, "wb"), TOKENS), "is a NumPy array"),
    ("npz", lambda p: np.savez(open(p, "wb"), TOKENS), "is a zip archive"),
    ("llm.c cut", lambda p: p.write_bytes(llmc(p).read_bytes()[:-4]), "tells of 40000 bytes of tokens, 39996 follow"),
    ("llm.c header cut", lambda p: p.write_bytes(llmc(p).read_bytes()[:100]), "40000 bytes of tokens, 0 follow"),
    ("too short", lambda p: p.write_bytes(b"1\0002\000"), "tokens to train on, fewer than the 17"),
]


@pytest.mark.parametrize(("make", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_flat_files(tmp_path, make, message):
    path = tmp_path / "bad.bin"
    make(path)
    with pytest.raises(ValueError, match=message) as caught:
        open_source(spec(path), 16, 0)
    assert str(caught.value).startswith(f"data.path = {str(path)!r}: ") and "\n" not in str(caught.value)


BAD_INDEX = [
    ("foreign", {"magic": b"SOMETHING"}, "is no Megatron index"),
    ("version", {"version": struct.pack("<Q", 2)}, "has version 2"),
    ("floats", {"code": b"\x07"}, "has dtype code 7"),
    ("no documents", {"documents": b""}, "truncated or foreign"),
    ("huge count", {"counts": struct.pack("<QQ", 2**63, 2**63)}, "truncated or foreign"),
    ("gaps", {"pointers": np.arange(40).astype("<i8").tobytes()}, "do not lie end to end"),
    ("negative", {"lengths": np.full(40, -5, "<i4").tobytes()}, "do not lie end to end"),
    ("boundaries", {"documents": np.arange(21, 0, -1).astype("<i8").tobytes()}, "do not ascend from 0 to 40"),
    ("wild boundaries", {"documents": np.r_[0, np.full(19, 10**12), 40].astype("<i8").tobytes()}, "do not ascend"),
]


@pytest.mark.parametrize(("change", "message"), [b[1:] for b in BAD_INDEX], ids=[b[0] for b in BAD_INDEX])
def test_bad_megatron_indices(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        open_source(spec(megatron(tmp_path / "c", change=change)), 16, 0)


def test_half_a_megatron_pair(tmp_path):
    prefix = megatron(tmp_path / "c")
    data, index = tmp_path / "c.bin", tmp_path / "c.idx"
    whole = data.read_bytes()
    data.write_bytes(whole[:-2])
    with pytest.raises(ValueError, match="tells of 20000 tokens, c.bin holds 19999"):
        open_source(spec(prefix), 16, 0)
    index_bytes = index.read_bytes()
    for cut in (5, 20, 100):
        index.write_bytes(index_bytes[:cut])
        with pytest.raises(ValueError, match="truncated|no Megatron index"):
            open_source(spec(prefix), 16, 0)
    index.write_bytes(index_bytes)
    data.unlink()
    with pytest.raises(ValueError, match="there is no such file"):
        open_source(spec(prefix), 16, 0)
    data.write_bytes(index_bytes + b"\0" * (len(index_bytes) % 2))
    index.unlink()
    with pytest.raises(ValueError, match="is the index of a Megatron pair"):
        open_source(spec(data), 16, 0)


def test_a_dtype_that_the_file_contradicts(tmp_path):
    with pytest.raises(ValueError, match=r"holds uint16 by its own header, data\.dtype = 'uint32'"):
        open_source(spec(llmc(tmp_path / "t.bin"), dtype="uint32"), 16, 0)


def test_the_hash_is_of_the_content(tmp_path):
    one, two = flat(tmp_path / "one.bin"), flat(tmp_path / "elsewhere" / "two.bin")
    hashes = [open_source(spec(path), 16, 0).columns()["data_hash"] for path in (one, two)]
    assert hashes[0] == hashes[1] and len(hashes[0]) == 64
    changed = flat(tmp_path / "three.bin", tokens=np.append(TOKENS[:-1], (TOKENS[-1] + 1) % 1000))
    assert open_source(spec(changed), 16, 0).columns()["data_hash"] != hashes[0]


def test_a_large_file_is_hashed_by_a_spread_of_blocks(tmp_path):
    path = tmp_path / "large.bin"
    with open(path, "wb") as file:
        file.truncate(200 << 20)
    before = fingerprint((path,))
    for offset in (0, (200 << 20) - 1):
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(b"\x01")
        assert (after := fingerprint((path,))) != before
        before = after
    with open(path, "ab") as file:
        file.write(b"\0")
    assert fingerprint((path,)) != before


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nanogpt_meta_is_read_and_never_unpickled(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    path = flat(tmp_path / "train.bin")
    meta = {"vocab_size": 1000, "itos": {0: "a"}, "stoi": {"a": 0}, "bomb": Bomb()}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta, protocol))
    assert vocab_of(DataSpec("tokens", path=str(path))) == 1000
    assert vocab_of(DataSpec("tokens", path=str(path), vocab=1024)) == 1024
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [None, b"", b"\x80", b"garbage", pickle.dumps({"vocab_size": "many"})])
def test_a_vocabulary_is_never_guessed(tmp_path, content):
    path = flat(tmp_path / "train.bin")
    if content is not None:
        (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"data\.vocab is missing: .*train\.bin'"):
        vocab_of(DataSpec("tokens", path=str(path)))


@pytest.mark.slow
def test_what_megatrons_own_writer_writes(tmp_path):
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    torch = pytest.importorskip("torch")
    builder = indexed.IndexedDatasetBuilder(str(tmp_path / "c.bin"), dtype=np.uint16)
    parts = np.split(TOKENS, [100, 5000, 5001, 12_000])
    for part in parts:
        builder.add_document(torch.from_numpy(part), [len(part)])
    builder.finalize(str(tmp_path / "c.idx"))
    file = open_tokens(str(tmp_path / "c"))
    assert np.array_equal(file.tokens, TOKENS)
    assert file.documents.tolist() == [0, 100, 5000, 5001, 12_000]
