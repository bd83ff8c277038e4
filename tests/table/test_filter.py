"""Filters: one grammar over a user's frame and over our tables; and nothing but a filter can be said in it."""

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalade.results.schema.schema import arrow_schema
from scalade.results.table.filter import mask, where

FRAME = pd.DataFrame(
    {
        "loss": [3.0, 2.5, None, 2.0],
        "n_params": [1e7, 1e8, 1e9, 1e10],
        "replicas": [1, 2, 4, 8],
        "optimizer": ["adamw", "muon", None, "adamw"],
        "outlier": [True, False, False, False],
        "loss (bits)": [1.0, 2.0, 3.0, 4.0],
        "flag": [True, None, False, True],
    }
)


@pytest.mark.parametrize(
    "expression, rows",
    [
        ("outlier == False", [1, 2, 3]),
        ("not outlier", [1, 2, 3]),
        ("flag", [0, 3]),
        ("flag == False", [2]),
        ("~outlier & (loss < 2.4)", [3]),
        ("loss < 3 and n_params > 1e7", [1, 3]),
        ("loss == loss", [0, 1, 3]),
        ("loss != loss", []),
        ("loss == null", [2]),
        ("loss != null and not optimizer == null", [0, 1, 3]),
        ("loss != 2.5", [0, 3]),
        ("not loss == 2.5", [0, 3]),
        ("not (loss < 2.4 or outlier)", [1]),
        ("loss > 2.9 or replicas == 4", [0, 2]),
        ("not (loss > 0 and replicas == 8)", [0, 1, 2]),
        ("optimizer == adamw", [0, 3]),
        ("optimizer == outlier", []),
        ("optimizer != `optimizer`", []),
        ("optimizer in [adamw, 'lion']", [0, 3]),
        ("optimizer >= b and (replicas == 2)", [1]),
        ("flag == true", [0, 3]),
        ("replicas >= 2 & replicas <= 4 | outlier", [0, 1, 2]),
        ("not " * 400 + "outlier", [0]),
        ("outlier != flag", [3]),
        ("1 < replicas <= 4", [1, 2]),
        ("optimizer in ['adamw', 'lion']", [0, 3]),
        ("optimizer not in ('adamw',)", [1]),
        ("optimizer == 'muon' or replicas == 8", [1, 3]),
        ("n_params * replicas / 2 >= 1e8", [1, 2, 3]),
        ("replicas % 4 == 0", [2, 3]),
        ("-loss > -2.6", [1, 3]),
        ("`loss (bits)` >= 3", [2, 3]),
        ("True", [0, 1, 2, 3]),
        ("replicas == 1000000000000000000000000000", []),
    ],
)
def test_meaning(expression, rows):
    mask = where(FRAME, expression)
    assert mask.dtype == bool and list(FRAME.index[mask]) == rows


@pytest.mark.parametrize(
    "expression",
    [
        "@secret",
        "__import__('os').system('true')",
        "loss.__class__",
        "loss.mean() < 3",
        "exec('1')",
        "open('x')",
        "(lambda: 1)()",
        "[x for x in loss]",
        "{1: 2}",
        "loss[0] < 1",
        "f'{loss}'",
        "(loss := 3)",
        "loss if outlier else 1",
        "2 ** 100000000 > loss",
        "'a' * 1000000000 == optimizer",
        "1 << 100000000 > loss",
        "loss is None",
        "loss < None",
        "loss < b'x'",
        "loss < 1j",
        "*loss",
        "await loss",
        "yield",
        "import os",
        "loss; loss",
        "loss = 3",
        "",
        " ",
        "loss <",
        "loss",
        "3",
        "loss + 1",
        "3 > optimizer",
        "outlier == 0",
        "outlier < flag",
        "optimizer in [null]",
        "optimizer in [adamw",
        "optimizer not [adamw]",
        "optimizer == 'adamw",
        "loss < null",
        "replicas == two",
        "loss == 'x'",
        "loss and 1",
        "outlier and loss",
        "not loss",
        "-optimizer == 1",
        "optimizer + 'x' == 'y'",
        "optimizer < -'y'",
        "loss in replicas",
        "3 in [1, 2]",
        "loss in [replicas]",
        "loss in 'abc'",
        "los < 3",
        "__builtins__",
        "print",
        "`nope` < 3",
        "outlier + 1 == 2",
        "1 / 0 == loss",
        "(" * 150 + "loss" + ")" * 150 + " <",
        " and ".join(["loss < 3"] * 200),
        "x" * 3000,
        "(not " * 60 + "outlier" + ")" * 60,
        "loss\x00 < 3",
    ],
)
def test_everything_else_is_refused_in_one_line(expression):
    with pytest.raises(ValueError) as error:
        where(FRAME, expression)
    assert "\n" not in str(error.value) and str(error.value).startswith("filter ")


def test_unknown_columns_get_near_misses():
    with pytest.raises(ValueError, match="did you mean 'n_params'"):
        where(FRAME, "n_param > 3")


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_filter_or_a_value_error(text):
    try:
        mask = where(FRAME, text)
    except ValueError:
        return
    assert mask.dtype == bool and len(mask) == len(FRAME)


WORDS = ["loss", "replicas", "optimizer", "outlier", "flag", "`loss (bits)`", "adamw", "'muon'", "1", "2.5", "-", "+",
         "*", "/", "%", "==", "!=", "<", ">=", "and", "or", "not", "in", "[1, 2]", "[adamw]", "(", ")", "null",
         "true"]  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12))
def test_any_words_of_the_grammar_are_a_filter_or_a_value_error(words):
    try:
        mask = where(FRAME, " ".join(words))
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert mask.dtype == bool and len(mask) == len(FRAME)


@settings(deadline=None)
@given(st.floats(0, 5), st.floats(0, 5), st.sampled_from(["<", "<=", ">", ">=", "==", "!="]))
def test_comparisons_are_those_of_pandas_where_nothing_is_missing(a, b, op):
    text = f"loss {op} {a!r} or replicas {op} {b!r}"
    there = FRAME.dropna(subset="loss")
    assert where(there, text).tolist() == there.eval(text, engine="python").tolist()


def kleene(text, values):
    """Three-valued logic by Python, None as unknown: a second reading of the same filter."""

    def of(word):
        return values[word]

    if text[0] == "not":
        one = kleene(text[1], values)
        return None if one is None else not one
    if text[0] in ("and", "or"):
        one, other = (kleene(part, values) for part in text[1:])
        decides = text[0] == "or"
        if one is decides or other is decides:
            return decides
        return None if one is None or other is None else not decides
    return of(text[0])


LOGIC = st.recursive(
    st.sampled_from([("a",), ("b",), ("c",)]),
    lambda part: st.one_of(st.tuples(st.just("not"), part), st.tuples(st.sampled_from(["and", "or"]), part, part)),
    max_leaves=8,
)


def said(tree):
    if len(tree) == 1:
        return tree[0]
    return f"(not {said(tree[1])})" if tree[0] == "not" else f"({said(tree[1])} {tree[0]} {said(tree[2])})"


@settings(deadline=None)
@given(LOGIC, st.lists(st.tuples(*[st.sampled_from([True, False, None])] * 3), min_size=1, max_size=8))
def test_what_is_not_known_is_as_in_sql(tree, rows):
    frame = pd.DataFrame(rows, columns=["a", "b", "c"], dtype="boolean")
    wanted = [kleene(tree, dict(zip("abc", row, strict=True))) is True for row in rows]
    assert where(frame, said(tree)).tolist() == wanted


RUNS = pa.Table.from_pylist(
    [
        {"run_id": "c0-r0", "layout": "fsdp2.tp2", "tp": 2, "loss": 3.0, "git_dirty": True, "step_rows": 2**53 + 1},
        {"run_id": "c1-r0", "layout": "single", "tp": 1, "loss": None, "git_dirty": None, "step_rows": 2**53},
        {"run_id": "c2-r0", "layout": None, "tp": None, "loss": 2.0, "git_dirty": False, "step_rows": 0},
    ],
    arrow_schema("runs"),
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("layout == fsdp2.tp2 or loss < 2.5", [0, 2]),
        ("layout in [single, 'fsdp2.tp2'] and tp >= 2", [0]),
        ("not git_dirty", [2]),
        ("tp == null or loss == null", [1, 2]),
        ("tp * 2 == 2", [1]),
        ("step_rows == 9007199254740993", [0]),
        ("run_id == 'c0-r0' or (tp < 2 and layout != x)", [0, 1]),
    ],
)
def test_the_same_grammar_over_our_tables(text, rows):
    assert [i for i, kept in enumerate(mask(RUNS, "runs", text).to_pylist()) if kept] == rows
    assert [i for i, kept in enumerate(where(RUNS.to_pandas(), text)) if kept] == rows


def test_the_columns_of_our_tables_are_those_of_the_schema():
    with pytest.raises(ValueError, match=r"filter 'loss == 1 and lay_out == x': runs has no column 'lay_out': did you"):
        mask(RUNS, "runs", "loss == 1 and lay_out == x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("replicas == two", "filter 'replicas == two': replicas is compared with a number, found two; no column 'two'"),
        ("outlier == 0", "filter 'outlier == 0': outlier is compared with true or false, found a number"),
        ("loss", "filter 'loss': loss is a number, not a condition: compare it, as in loss < 3"),
        (
            "loss < 3 and",
            "filter 'loss < 3 and': ends where a value belongs: write `column == value`, joined by and, or",
        ),
        ("loss = 3", "filter 'loss = 3': cannot read '= 3': write"),
        ("flag < true", "filter 'flag < true': true or false goes with == and != only"),
    ],
)
def test_messages(text, said):
    with pytest.raises(ValueError) as error:
        where(FRAME, text)
    assert str(error.value).startswith(said)
