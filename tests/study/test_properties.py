"""Whatever is in a study file, a row or a table's file: it is read, or refused with a line; nothing crashes.

Short and the same each time here; `make faults` runs it with random seeds and ten times the examples.
"""

import json
import math
import os
import tempfile
import time
import warnings
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import ROOT

from scalade import read_runs, read_steps
from scalade.launch.study.errors import StudyError
from scalade.launch.study.schema import KEYS, SECTIONS
from scalade.launch.study.study import load_study
from scalade.results import files
from scalade.results.schema.columns import STATUSES
from scalade.results.schema.schema import SchemaError, checked, columns
from scalade.results.store.store import RunStore
from scalade.results.table.show import export

LONG = "HYPOTHESIS_LONG" in os.environ  # random seeds, and more of them
STUDIES = sorted((ROOT / "studies").glob("*.toml"))


def examples(count):
    return settings(
        max_examples=10 * count if LONG else count,
        deadline=None,
        derandomize=not LONG,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """What a disk does with it is not what is tried here."""
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: None)


WORDS = ["torch", "megatron", "deepspeed", "adamw", "sgd", "muon", "stdlib", "tokens", "zipf-markov", "none", "diloco",
         "streaming", "delayed", "int4", "topk", "bf16", "GPipe", "ZBVZeroBubble", "gelu", "tiny-100k", "llama3-8b",
         "local", "torchrun", "pool", "cuda", "USR1,TERM"]  # fmt: skip
NASTY = ["", "/dev/zero", "../..", "~", "=1+1", "a\nb", "\u202e", "\0", "x" * 3000, "-r0", "%s{0}"]
INTEGERS = st.one_of(st.integers(0, 9), st.sampled_from([-1, 64, 2**31, 2**53, 2**63 - 1, 2**63, 10**40, 10**4000]))
FLOATS = st.one_of(
    st.floats(0, 1), st.sampled_from([0.0, -0.0, 5e-324, 1e-3, 1e300, 1e308, math.inf, -math.inf, math.nan])
)
ODD = st.one_of(
    INTEGERS, FLOATS, st.booleans(), st.sampled_from(WORDS + NASTY), st.text(st.characters(codec="utf-8"), max_size=6)
)


def likely(key):
    """Mostly of the key's type."""
    kind = {
        int: INTEGERS,
        float: FLOATS,
        bool: st.booleans(),
        str: st.sampled_from(WORDS + ([key.default] if isinstance(key.default, str) else [])),
    }[key.kind]
    value = st.one_of(kind, kind, kind, ODD)
    return st.one_of(value, value, st.lists(value, min_size=0, max_size=3))


def toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
    if isinstance(value, int):
        return hex(value) if value > 2**64 else str(value)  # Python prints no integer of 4,300 digits
    return repr(value)


@st.composite
def studies(draw):
    """A file of a few sections, likely and unlikely keys and values, arrays of tables, zips and excludes."""
    base = {"model": {"size": "tiny-100k"}, "recipe": {"global_batch": 8}, "budget": {"steps": 3}}
    lines = draw(st.sampled_from(["", "\ufeff", "name = 'a'\n", "name = 3\n", "zzz = 1979-05-27\n"])).splitlines()
    for section in SECTIONS:
        tables = draw(st.integers(1, 2)) if section in ("layout", "outer") else 1
        for _ in range(tables):
            keys = [key for key in KEYS.values() if key.section == section]
            chosen = draw(st.lists(st.sampled_from(keys), max_size=3, unique_by=lambda key: key.name))
            table = dict(base.get(section, {})) | {key.name: draw(likely(key)) for key in chosen}
            if draw(st.integers(0, 9)) == 0:
                table[draw(st.text(st.characters(codec="ascii"), max_size=5))] = draw(ODD)
            lines.append(f"[[{section}]]" if tables > 1 else f"[{section}]")
            lines += [f"{toml(name)} = {toml(value)}" for name, value in table.items()]
    for section in draw(st.lists(st.sampled_from(["zip", "exclude"]), max_size=2)):
        chosen = draw(st.lists(st.sampled_from(sorted(KEYS)), max_size=2, unique=True))
        lines.append(f"[[{section}]]")
        lines += [f'"{name}" = {toml(draw(st.lists(likely(KEYS[name]), max_size=3)))}' for name in chosen]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def planned_or_told(path):
    begun = time.process_time()
    try:
        study = load_study(path)
        found = [*study.cases(), *study.cases_elsewhere()]
        assert all(one.skip_reason is None or one.skip_reason.strip() for one in found) and study.warnings() is not None
        assert len({one.case.case_id for one in found}) == len(study.all_cases) > 0
    except StudyError as error:
        lines = str(error).splitlines()
        assert all(line.isprintable() for line in lines) and len(lines) <= 40 and max(map(len, lines)) < 1200
    assert time.process_time() - begun < 20


@examples(100)
@given(content=studies())
def test_a_study_file_makes_cases_or_is_told_what_is_wrong(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("study") / "t.toml"
    path.write_bytes(content)
    planned_or_told(path)


@st.composite
def hurt(draw, content):
    """Bytes with some of them changed, cut out, put in twice, or all after some point gone."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at, size = draw(st.integers(0, max(0, len(content) - 1))), draw(st.sampled_from([1, 1, 2, 8, 100]))
        way = draw(st.sampled_from(["flip", "flip", "cut", "end", "twice", "noise", "zero"]))
        piece = content[at : at + size]
        if way == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif way == "end":
            del content[at:]
        elif way != "flip":
            new = {"cut": b"", "twice": piece * 2, "noise": draw(st.binary(max_size=size)), "zero": bytes(len(piece))}
            content[at : at + size] = new[way]
    return bytes(content)


@examples(60)
@given(data=st.data())
def test_a_study_file_that_was_damaged(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("study") / "t.toml"
    path.write_bytes(data.draw(hurt(data.draw(st.sampled_from(STUDIES)).read_bytes())))
    planned_or_told(path)


TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(NASTY + ["\ud800", "=cmd", "NaN", "null"]))
VALUES = {
    "string": TEXTS,
    "bool": st.booleans(),
    "int64": st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, -1, 2**53 + 1])),
    "float64": st.one_of(st.floats(), st.integers(-9, 9)),
}
OURS = {"run_id", "attempt", "schema_version", "status", "reason"} | {
    name for name in columns("runs") if name.endswith("_rows") or "sha256" in name
}


def value_of(column):
    return st.sampled_from(column.values) if column.values else VALUES[column.type]


@st.composite
def rows(draw, table):
    names = draw(st.lists(st.sampled_from(sorted(set(columns(table)) - OURS)), max_size=12, unique=True))
    return {name: draw(st.one_of(st.none(), value_of(columns(table)[name]))) for name in names}


def required(row):
    """A row with what every row has to have."""
    filled = {
        column.name: {"string": "x", "int64": 0, "float64": 0.5, "bool": False}[column.type]
        for column in columns("runs").values()
        if column.required and column.name not in OURS and row.get(column.name) is None
    }
    return row | {
        name: columns("runs")[name].values[0] if columns("runs")[name].values else value
        for name, value in filled.items()
    }


def same(found, meant):
    return (meant is None and pd.isna(found)) or found == meant or (pd.isna(found) and isinstance(meant, float))


@examples(30)
@given(row=rows("runs"), status=st.sampled_from(STATUSES), count=st.integers(0, 3), data=st.data())
def test_a_row_is_read_as_it_was_written(tmp_path_factory, row, status, count, data):
    store = RunStore(tmp_path_factory.mktemp("rows"))
    row = required(row) | {"run_id": "r-r0", "status": status, "reason": None if status == "ok" else "why"}
    known = sorted(set(columns("steps")) - OURS - {"kind"})
    names = data.draw(st.lists(st.sampled_from(known), max_size=4, unique=True))
    steps = {name: [data.draw(value_of(columns("steps")[name])) for _ in range(count)] for name in names if count}
    try:
        store.write_run(row, steps)
    except SchemaError as error:
        assert str(error) and (status == "ok" or steps)  # an ok run's loss has to be finite; a step has its number
        return
    (found,) = read_runs(store.folder).to_dict("records")
    for name, value in row.items():
        assert same(found[name], checked(columns("runs")[name], value)), name
    assert store.finished("r-r0") == status
    read = read_steps(store.folder)
    assert len(read) == (count if steps else 0)
    for name, values in steps.items():
        for at, value in enumerate(values):
            assert same(read[name].iloc[at], checked(columns("steps")[name], value)), name


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=5,
)


def a_run(folder, count=5):
    """(store, folder of the attempt) of one finished run with steps."""
    store = RunStore(folder)
    row = required({}) | {"run_id": "r-r0", "status": "ok", "reason": None, "loss": 1.5}
    store.write_run(row, {"step": list(range(count)), "loss": [1.5] * count, "warmup": [False] * count})
    return store, store.run_folder("r-r0") / "a1"


def all_read(store):
    """Each reader gives a table, with a warning for what it leaves out."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        runs, steps = read_runs(store.folder), read_steps(store.folder)
    assert store.finished("r-r0") in (None, *STATUSES)
    assert len(runs) or said, "a run is left out, and nobody says so"
    return runs, steps, said


@examples(40)
@given(data=st.data())
def test_a_row_that_is_none_is_left_out_and_said(tmp_path_factory, data):
    store, attempt = a_run(tmp_path_factory.mktemp("junk"))
    file = attempt / "run.json"
    row = json.loads(file.read_bytes())
    way = data.draw(st.sampled_from(["bytes", "json", "field", "less", "hurt"]))
    name = data.draw(st.sampled_from(sorted(row)))
    if way == "bytes":
        file.write_bytes(data.draw(st.binary(max_size=60)))
    elif way == "json":
        file.write_text(json.dumps(data.draw(JSON)), encoding="utf-8", errors="surrogatepass")
    elif way == "field":
        file.write_text(json.dumps(row | {name: data.draw(JSON)}), encoding="utf-8", errors="surrogatepass")
    elif way == "less":
        file.write_text(json.dumps({key: value for key, value in row.items() if key != name}))
    else:
        file.write_bytes(data.draw(hurt(file.read_bytes())))
    all_read(store)


@examples(30)
@given(data=st.data(), old=st.booleans())
def test_steps_that_were_damaged_are_left_out_or_read(tmp_path_factory, data, old):
    """old: of a row that does not know its files' digests, so that what reads them meets every byte."""
    store, attempt = a_run(tmp_path_factory.mktemp("arrow"), 40)
    if old:
        row = json.loads((attempt / "run.json").read_bytes())
        (attempt / "run.json").write_text(json.dumps({k: v for k, v in row.items() if "sha256" not in k}))
    file = attempt / "steps.arrow"
    whole = file.read_bytes()
    file.write_bytes(data.draw(st.one_of(hurt(whole), hurt(whole), hurt(whole), st.binary(max_size=200))))
    _, steps, said = all_read(store)
    assert len(steps) in (0, 40) and (len(steps) or said)


@cache
def exported():
    with tempfile.TemporaryDirectory() as folder:
        store, _ = a_run(Path(folder) / "r")
        export(store.folder, Path(folder) / "runs.parquet", "parquet", "runs")
        return (Path(folder) / "runs.parquet").read_bytes()


@examples(40)
@given(data=st.data())
def test_a_parquet_file_that_was_damaged_costs_a_line(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("parquet") / "runs.parquet"
    file.write_bytes(data.draw(st.one_of(hurt(exported()), hurt(exported()), st.binary(max_size=200))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read_runs(file)
        except ValueError as error:
            assert str(file) in str(error) and len(str(error)) < 2000
