"""Token files on disk, memory-mapped and never loaded: nanoGPT's, llm.c's and Megatron's.

- flat `.bin` (nanoGPT): tokens of one dtype, nothing else; which one, its bytes tell (token_witness.py).
- llm.c and modded-nanogpt: 256 int32 of header (magic, version, number of tokens), then the tokens; magic 20240520
  version 1 is uint16, 20240801 version 7 is uint32.
- Megatron's pair: `.idx` holds b"MMIDIDX\\0\\0", version 1 (u64), dtype code (u8), the numbers of sequences and of
  document boundaries (u64 each), then sequence lengths (i32), byte pointers into `.bin` (i64) and document boundaries
  as sequence numbers (i64), perhaps a mode per sequence (i8); `.bin` holds the tokens
  (megatron/core/datasets/indexed_dataset.py). All little-endian.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .token_witness import chosen, looks_like_text, refuse, sample

LLMC_HEADERS = {(20240520, 1): "<u2", (20240801, 7): "<u4"}  # (magic, version): dtype
LLMC_MAGICS = {magic for magic, _ in LLMC_HEADERS}
LLMC_HEADER_BYTES = 1024
MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
MEGATRON_HEADER = struct.Struct("<9sQBQQ")
MEGATRON_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
FOREIGN = {
    b"\x93NUMPY": "a NumPy array (.npy; np.load(path).tofile('tokens.bin') writes it flat)",
    b"PK\x03\x04": "a zip archive (.npz, .pt)",
    b"\x1f\x8b\x08": "gzip",
    b"BZh91AY&SY": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"PAR1": "Parquet",
    b"\x89HDF": "HDF5",
    b"ARROW1": "Arrow",
    b"TNTIDX": "an old fairseq index",
    b"LITPKDS": "a LitGPT packed data set",
    b"GGUF": "GGUF weights",
    b"SQLite format 3": "an SQLite data base",
    b"%PDF-": "PDF",
    b"\x80\x04\x95": "a pickle",
    b"\x80\x05\x95": "a pickle",
}

HASH_WHOLE_BYTES = 64 << 20
HASH_BLOCKS, HASH_BLOCK_BYTES = 256, 64 << 10


@dataclass(frozen=True)
class TokenFile:
    tokens: np.ndarray  # all of them, documents joined; a view of the mapped file
    documents: np.ndarray | None  # token positions where a document starts; None: the file does not say
    files: tuple[Path, ...]  # what it is read from


def open_tokens(path: str, dtype: str = "auto", vocab: int = 0, key: str = "data.path") -> TokenFile:
    """Map the file `path`. `key` is the study's name for it, in messages.

    Raises
    ------
    ValueError: missing, a folder, empty, truncated, of another format, or of another dtype than it is read in
    """
    where = f"{key} = {path!r}"
    expanded = os.path.expanduser(path)
    prefix, suffix = (expanded[:-4], expanded[-4:]) if expanded.endswith((".bin", ".idx")) else (expanded, "")
    if os.path.exists(prefix + ".idx") and (suffix or not os.path.exists(expanded)):
        pair = _megatron(Path(prefix + ".bin"), Path(prefix + ".idx"), where, dtype)
        refuse(sample(pair.tokens.view(np.uint8)), pair.tokens.nbytes, pair.tokens.dtype, vocab, where, own_header=True)
        return pair
    raw = _map(Path(expanded), where)
    _refuse_foreign(raw, where)
    if (with_header := _llmc(raw, where, dtype)) is not None:
        body = with_header.view(np.uint8)
        refuse(sample(body), len(body), with_header.dtype, vocab, where, own_header=True)
        return TokenFile(with_header, None, (Path(expanded),))
    if dtype != "uint8" and (text := looks_like_text(raw)) is not None:
        raise ValueError(
            f"{where}: looks like text ({text!r}), not a token file; tokenize it, or read its bytes with "
            "data.dtype = 'uint8' and data.vocab = 256"
        )
    some = sample(raw)
    kind = np.dtype(chosen(some, len(raw), vocab) if dtype == "auto" else dtype).newbyteorder("<")
    tokens = _view(raw, kind, where)
    refuse(some, len(raw), kind, vocab, where)
    return TokenFile(tokens, None, (Path(expanded),))


def fingerprint(files: tuple[Path, ...]) -> str:
    """SHA-256 over size and content of the files, whatever their names.

    Of a file above 64 MiB it is a fingerprint: 256 blocks of 64 KiB, evenly spread with the first and the last among
    them, stand for the content. A change between the blocks goes unseen.
    """
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(struct.pack("<Q", size))
            if size <= HASH_WHOLE_BYTES:
                while block := file.read(1 << 20):
                    digest.update(block)
                continue
            for i in range(HASH_BLOCKS):
                file.seek((size - HASH_BLOCK_BYTES) * i // (HASH_BLOCKS - 1))
                digest.update(file.read(HASH_BLOCK_BYTES))
    return digest.hexdigest()


def _map(path: Path, where: str) -> np.ndarray:
    """The file's bytes, mapped."""
    try:
        if path.is_dir():
            raise ValueError(f"{where}: is a folder; name the .bin file in it")
        if not path.exists():
            raise ValueError(f"{where}: there is no such file ({path.absolute()})")
        if not path.is_file():
            raise ValueError(f"{where}: is no regular file")
        if not path.stat().st_size:
            raise ValueError(f"{where}: {path.name} is empty")
        return np.asarray(np.memmap(path, np.uint8, mode="r"))
    except OSError as error:
        raise ValueError(f"{where}: cannot be read: {error.strerror}") from error


def _view(raw: np.ndarray, kind: np.dtype, where: str) -> np.ndarray:
    if len(raw) % kind.itemsize:
        raise ValueError(
            f"{where}: {len(raw)} bytes are no whole number of {kind.name} tokens; truncated, or of another dtype"
        )
    return raw.view(kind)


def _refuse_foreign(raw: np.ndarray, where: str) -> None:
    start = raw[:16].tobytes()
    for magic, name in FOREIGN.items():
        if start.startswith(magic):
            raise ValueError(f"{where}: is {name}, not a token file; allowed are flat .bin and Megatron's .bin/.idx")
    if len(raw) > 10 and raw[8:10].tobytes() == b'{"' and 2 <= int(raw[:8].view("<u8")[0]) <= len(raw) - 8:
        raise ValueError(f"{where}: is safetensors, not a token file; allowed are flat .bin and Megatron's .bin/.idx")
    if start[:8] == MEGATRON_MAGIC[:8]:
        raise ValueError(f"{where}: is the index of a Megatron pair; name it <prefix>.idx beside <prefix>.bin")


def _same_dtype(kind: np.dtype, asked: str, where: str) -> None:
    if asked not in ("auto", kind.name):
        raise ValueError(f"{where}: holds {kind.name} by its own header, data.dtype = {asked!r}; leave it at 'auto'")


def _llmc(raw: np.ndarray, where: str, asked: str) -> np.ndarray | None:
    """The tokens behind a header of 256 int32; None: there is no such header."""
    if len(raw) < 12:
        return None
    magic, version, count = raw[:12].view("<i4").tolist()
    body = raw[LLMC_HEADER_BYTES:]
    if (magic, version) not in LLMC_HEADERS:
        empty = len(raw) > LLMC_HEADER_BYTES and not raw[12:LLMC_HEADER_BYTES].any()
        seems_one = empty and count > 0 and len(body) in (count, 2 * count, 4 * count, 8 * count)
        if seems_one or magic in LLMC_MAGICS:
            known = " and ".join(f"{m} version {v}" for m, v in LLMC_HEADERS)
            raise ValueError(
                f"{where}: begins with a header of 256 int32 as llm.c's, of magic {magic} version {version}; read are "
                f"{known}"
            )
        return None
    kind = np.dtype(LLMC_HEADERS[magic, version])
    _same_dtype(kind, asked, where)
    if len(body) != count * kind.itemsize:
        announced = count * kind.itemsize
        raise ValueError(f"{where}: its header tells of {announced} bytes of tokens, {len(body)} follow: truncated")
    return body.view(kind)


def _megatron(data: Path, index: Path, where: str, asked: str) -> TokenFile:
    kind, lengths, pointers, documents = _megatron_index(index, where, asked)
    sequences, boundaries = len(lengths), len(documents)
    tokens = _view(_map(data, where), kind, where)
    ends = np.cumsum(lengths, dtype=np.int64)
    if (lengths < 0).any() or not np.array_equal(pointers, (ends - lengths) * kind.itemsize):
        raise ValueError(f"{where}: the sequences of {index.name} do not lie end to end in {data.name}")
    total = int(ends[-1]) if sequences else 0
    if total != len(tokens):
        raise ValueError(
            f"{where}: {index.name} tells of {total} tokens, {data.name} holds {len(tokens)}: truncated or no pair"
        )
    if boundaries and (documents[0] != 0 or documents[-1] != sequences or (np.diff(documents) < 0).any()):
        raise ValueError(f"{where}: the document boundaries of {index.name} do not ascend from 0 to {sequences}")
    starts = np.append(0, ends)[documents[:-1]] if boundaries else None
    return TokenFile(tokens, starts, (data, index))


def _megatron_index(index: Path, where: str, asked: str) -> tuple[np.dtype, np.ndarray, np.ndarray, np.ndarray]:
    """(dtype of the tokens, tokens of each sequence, where each begins in bytes, first sequence of each document)."""
    raw = _map(index, where)
    if raw[: len(MEGATRON_MAGIC)].tobytes() != MEGATRON_MAGIC:
        raise ValueError(f"{where}: {index.name} beside it is no Megatron index (it does not begin with MMIDIDX)")
    if len(raw) < MEGATRON_HEADER.size:
        raise ValueError(f"{where}: {index.name} is truncated: {len(raw)} bytes")
    _, version, code, sequences, boundaries = MEGATRON_HEADER.unpack(raw[: MEGATRON_HEADER.size].tobytes())
    if version != 1:
        raise ValueError(f"{where}: {index.name} has version {version}; version 1 is read")
    if code not in MEGATRON_DTYPES:
        raise ValueError(f"{where}: {index.name} has dtype code {code}; integers are read: {sorted(MEGATRON_DTYPES)}")
    kind = np.dtype(MEGATRON_DTYPES[code])
    _same_dtype(kind, asked, where)
    body = raw[MEGATRON_HEADER.size :]
    sizes = (4 * sequences, 8 * sequences, 8 * boundaries)
    if len(body) not in (sum(sizes), sum(sizes) + sequences):  # with a mode per sequence, one byte each
        raise ValueError(
            f"{where}: {index.name} tells of {sequences} sequences and {boundaries} document boundaries, which are "
            f"{sum(sizes)} bytes; {len(body)} follow: truncated or foreign"
        )
    lengths = body[: sizes[0]].view("<i4")
    pointers = body[sizes[0] : sizes[0] + sizes[1]].view("<i8")
    documents = body[sizes[0] + sizes[1] : sum(sizes)].view("<i8")
    return kind, lengths, pointers, documents
