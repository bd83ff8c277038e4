"""Rows over columns read as the dicts did that they took the place of."""

import pyarrow as pa
import pytest

from scalade.results.schema.rows import rows_of
from scalade.results.schema.schema import arrow_schema


@pytest.fixture
def table():
    given = [
        {"run_id": "a-r0", "repeat": 2**53 + 1, "loss": 1.5, "git_dirty": True, "model": "tiny"},
        {"run_id": "b-r0", "repeat": None, "loss": None, "git_dirty": None, "model": None},
        {"run_id": "c-r0", "repeat": 0, "loss": 0.0, "git_dirty": False, "model": "tiny"},
    ]
    parts = [pa.Table.from_pylist(some, arrow_schema("runs")) for some in (given[:1], given[1:])]
    return pa.concat_tables(parts)


def test_rows_read_as_dicts_do(table):
    rows, wanted = rows_of(table), table.to_pylist()
    assert [dict(row) for row in rows] == wanted
    assert [[type(value) for value in row.values()] for row in rows] == [
        [type(value) for value in row.values()] for row in wanted
    ]
    assert rows[0].get("nothing") is None and rows[0].get("nothing", 3) == 3 and "nothing" not in rows[0]
    assert rows[0].get("model") is rows[2].get("model")
    with pytest.raises(KeyError, match="nothing"):
        rows[0]["nothing"]
    assert len({*rows, *rows}) == 3 and rows[0] == rows[0] and rows[0] != rows_of(table)[0]


def test_only_the_columns_that_are_asked_for_are_made(table):
    rows = rows_of(table)
    assert [row["loss"] for row in rows] == [1.5, None, 0.0]
    assert list(rows[0]._columns) == ["loss"]
