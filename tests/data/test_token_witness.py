"""Token files read in a dtype that is not theirs: refused by name or read rightly, and no right reading is refused."""

import gzip
import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scalade.bench.data import DataSpec, open_source
from scalade.bench.data.spec import HOLDS
from scalade.bench.data.token_file import open_tokens

LENGTH = 4096
CODES = {name: "<" + ("i" if name[0] == "i" else "u") + str(int(name.lstrip("uint")) // 8) for name in HOLDS}
FOREIGN = {
    ">u2": "big-endian uint16",
    ">u4": "big-endian uint32",
    ">i8": "big-endian int64",
    "<f4": "float32",
    "<f8": "float64",
}
CONTENTS = {
    "uniform": lambda random, vocab: random.integers(0, vocab, LENGTH),
    "frequent ones": lambda random, vocab: np.minimum(random.zipf(1.3, LENGTH) - 1, vocab - 1),
    "bytes": lambda random, vocab: random.integers(0, min(vocab, 256), LENGTH),
    "mostly padding": lambda random, vocab: random.integers(0, vocab, LENGTH) * (random.random(LENGTH) < 0.1),
    "padded documents": lambda random, vocab: random.integers(0, vocab, LENGTH) * (np.arange(LENGTH) % 64 < 21),
    "few": lambda random, vocab: random.choice(random.integers(0, vocab, 5), LENGTH),
    "counting": lambda random, vocab: np.arange(LENGTH) % vocab,
    "every second the last": lambda random, vocab: np.where(
        np.arange(LENGTH) % 2, vocab - 1, random.integers(0, vocab, LENGTH)
    ),
}
VOCABS = st.sampled_from([2, 3, 50, 256, 257, 1000, 32_000, 50_257, 65_536, 100_277, 128_256, 262_144])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens") / "t.bin"


def test_the_case_at_hand(tmp_path):
    """40,000 bytes as int64, what numpy writes where nobody says a dtype: read as uint32 until here, loss 2.949."""
    tokens = np.random.default_rng(0).integers(0, 256, 40_000)
    tokens.astype("<i8").tofile(tmp_path / "i64.bin")
    spec = DataSpec("tokens", path=str(tmp_path / "i64.bin"), vocab=256)
    source = open_source(spec, 32, 0)
    assert source.columns()["data_tokens"] == 37_984  # with 5% held out, in windows of 32
    assert np.array_equal(open_tokens(spec.path, "auto", 256).tokens, tokens)
    for name in ("uint16", "uint32", "int32"):
        with pytest.raises(ValueError, match=r"tokens? (is|are) 0.*looks like int64: write data\.dtype = 'int64'"):
            open_tokens(spec.path, name, 256)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from([*HOLDS]), VOCABS, st.sampled_from([*CONTENTS]), st.integers(0, 2**32), st.integers(0, 3000))
@example("uint8", 2, "counting", 0, 2049)
def test_what_a_file_holds_is_read_where_its_dtype_is_said(path, name, vocab, content, seed, count):
    """Also few tokens, and as `auto` where there are many."""
    if vocab > HOLDS[name]:
        vocab = HOLDS[name]
    tokens = CONTENTS[content](np.random.default_rng(seed), vocab)[: LENGTH - count]
    if len(np.unique(tokens)) < 2:
        return  # a file that was never filled
    tokens.astype(CODES[name]).tofile(path)
    assert np.array_equal(open_tokens(str(path), name, vocab).tokens, tokens)
    if name not in ("uint8", "int16") and np.count_nonzero(tokens) >= 80:
        assert np.array_equal(open_tokens(str(path), "auto", vocab).tokens, tokens)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    st.sampled_from([*CODES.values(), *FOREIGN]),
    st.sampled_from(["auto", *HOLDS]),
    VOCABS,
    st.sampled_from([*CONTENTS]),
    st.integers(0, 2**32),
)
@example(">u2", "auto", 65_536, "bytes", 0)
@example("<f4", "uint16", 50_257, "bytes", 0)
def test_no_wrong_reading_is_taken(path, written, said, vocab, content, seed):
    """Refused in one line, or the tokens. Not to be seen: two bytes in the other order,
    where all that comes out is a token, too."""
    kind = np.dtype(written)
    holds = HOLDS.get(kind.newbyteorder("=").name, 2048 if written == "<f2" else 2**24)
    vocab = min(vocab, holds)
    tokens = CONTENTS[content](np.random.default_rng(seed), vocab)
    unseen = written == ">u2" and content != "bytes" and (vocab == 65_536 or content == "few")
    if len(np.unique(tokens)) < 5 or np.count_nonzero(tokens) < 80 or unseen:
        return
    tokens.astype(kind).tofile(path)
    try:
        found = open_tokens(str(path), said, vocab).tokens
    except ValueError as error:
        assert str(error).startswith(f"data.path = {str(path)!r}: ") and "\n" not in str(error)
        same_width = said != "auto" and np.dtype(said).itemsize == kind.itemsize
        if written in CODES.values() and same_width:
            assert HOLDS[said] < vocab, error  # int16 for uint16, say
        return
    assert np.array_equal(found, tokens), (written, said, vocab, content)


@pytest.mark.parametrize(("code", "name"), FOREIGN.items())
def test_what_numpy_calls_another_dtype_is_named(tmp_path, code, name):
    np.random.default_rng(0).integers(0, 50_257, 5000).astype(code).tofile(tmp_path / "t.bin")
    with pytest.raises(ValueError, match=rf"it looks like {name}: write it again, as with tokens\.astype\('uint16'\)"):
        open_tokens(str(tmp_path / "t.bin"), "auto", 50_257)


@pytest.mark.parametrize(
    ("said", "vocab", "message"),
    [
        ("uint16", 128_256, r"data\.dtype = 'uint16': its tokens end at 65535, data\.vocab = 128256 needs a wider one"),
        ("int16", 50_257, r"data\.dtype = 'int16': its tokens end at 32767"),
        ("uint8", 257, r"data\.dtype = 'uint8': its tokens end at 255"),
    ],
)
def test_a_dtype_that_cannot_hold_the_vocabulary_is_no_study(said, vocab, message):
    with pytest.raises(ValueError, match=message):
        DataSpec("tokens", path="t.bin", dtype=said, vocab=vocab)


def test_a_vocabulary_from_beside_the_file_is_held_against_the_dtype(tmp_path):
    np.arange(4000, dtype="<u2").tofile(tmp_path / "t.bin")
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 128_256}))
    with pytest.raises(ValueError, match=r"data\.dtype = uint16, whose tokens end at 65535; .* 128256 needs uint32"):
        open_source(DataSpec("tokens", path=str(tmp_path / "t.bin"), dtype="uint16"), 8, 0)


def npz() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", b"0" * 100)
    return file.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [256], "data_offsets": [0, 1024]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(1024)


NOISE = np.random.default_rng(0).integers(0, 50_257, 5000).astype("<u2").tobytes()
FILES = [
    ("text", b"the quick brown fox\n" * 30, r"looks like text \('the quick"),
    ("utf-8", ("\u00e4\u4e2d\u6587, \u0440\u0443\u0441 " * 3000).encode(), "looks like text"),
    ("numbers", " ".join(map(str, range(3000))).encode(), "looks like text"),
    ("json lines", b'{"tokens": [1, 2, 3]}\n' * 50, "looks like text"),
    ("gzip", gzip.compress(NOISE), "is gzip"),
    ("npz", npz(), "is a zip archive"),
    ("pickle", pickle.dumps(list(range(1000)), 4), "is a pickle"),
    ("safetensors", safetensors(), "is safetensors"),
    ("parquet", b"PAR1" + NOISE, "is Parquet"),
    ("litgpt", b"LITPKDS\0" + NOISE, "is a LitGPT packed data set"),
    ("never filled", bytes(10_000), "all 5000 tokens looked at are 0"),
    ("one token", b"\x07\x00" * 5000, "all 5000 tokens looked at are 7"),
    ("negative", np.r_[np.arange(500), np.full(500, -100)].astype("<i4").tobytes(), r"negative numbers \(-100\)"),
    (
        "bytes",
        bytes(np.random.default_rng(0).integers(0, 256, 5000).astype("u1")),
        r"if every byte is a token, write data\.dtype = 'uint8'",
    ),
    ("llm.c, another version", struct.pack("<3i", 20240520, 2, 5000) + bytes(1012) + NOISE, "version 2; read are"),
    ("its like", struct.pack("<3i", 777, 1, 5000) + bytes(1012) + NOISE, "256 int32 as llm.c's, of magic 777"),
    (
        "llm.c over int64",
        struct.pack("<3i", 20240520, 1, 4000) + bytes(1012) + np.arange(1000).tobytes(),
        "what follows looks like int64",
    ),
]


@pytest.mark.parametrize(("content", "message"), [each[1:] for each in FILES], ids=[each[0] for each in FILES])
def test_what_is_no_token_file_is_named(tmp_path, content, message):
    (tmp_path / "t.bin").write_bytes(content)
    vocab = 256 if "uint8" in message else 50_257
    with pytest.raises(ValueError, match=message) as caught:
        open_tokens(str(tmp_path / "t.bin"), "auto", vocab)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "vocab", "message"),
    [
        (np.r_[np.arange(250), np.full(500, -100)].astype("<i4"), 256, r"as int32 it holds negative numbers \(-100\)"),
        (np.arange(50_257, dtype="<u2"), 256, r"wrong; if every byte is a token"),
        (
            np.arange(50_257, dtype="<u2")[1:],
            65_537,
            r"as uint16, .* its largest token is 50256: is data\.vocab too large",
        ),
        (np.arange(50_257, dtype="<u2")[1:], 128_256, r"is data\.vocab too large\? .*astype\('uint32'\)"),
        (
            np.arange(128_256, dtype="<u4"),
            100_000,
            r"token 128255 is outside .* this, the file or data\.dtype is wrong$",
        ),
    ],
)
def test_no_reading_is_named_that_any_bytes_would_allow(tmp_path, content, vocab, message):
    """All bytes are below 256, and all 16 bits below 65,537: a vocabulary of these sizes tells nothing of a file."""
    content.tofile(tmp_path / "t.bin")
    with pytest.raises(ValueError, match=message) as caught:
        open_tokens(str(tmp_path / "t.bin"), "auto", vocab)
    assert "looks like" not in str(caught.value)


def test_bytes_of_text_may_be_asked_for(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"the quick brown fox\n" * 30)
    assert bytes(open_tokens(str(tmp_path / "t.txt"), "uint8", 256).tokens)[:9] == b"the quick"


def test_a_large_file_is_looked_at_in_a_spread_of_blocks(tmp_path):
    """Its middle alone says that it is int64: documents before it are long gone from the first block."""
    with open(tmp_path / "t.bin", "wb") as file:
        file.write(np.zeros(1 << 20, "<i8"))
        file.write(np.random.default_rng(0).integers(0, 256, 1 << 20))
    assert open_tokens(str(tmp_path / "t.bin"), "auto", 256).tokens.dtype == np.int64
