"""CSV that spreadsheets and people write: read right, or one line that names column and row and says what to write."""

import numpy as np
import pandas as pd
import pytest

from scalade.results.laws import fit_file, get_law, read_table, rows

FRAME = pd.DataFrame(
    {
        "run": [f"r{i}" for i in range(6)],
        "n_params": [44_000_000, 90_000_000] * 3,
        "n_tokens": [1e9, 2e9, 4e9] * 2,
        "loss": [3.797664, 3.5, 3.25, 3.625, 2.75, 2.1],
    }
)
NAMES = {"params": "n_params", "tokens": "n_tokens"}


def numbers(path):
    found = rows(get_law("chinchilla"), read_table(path), NAMES, "loss", "run")
    return np.column_stack([found.columns["params"], found.columns["tokens"], found.y])


def written(path, text, encoding="utf-8", bom=b""):
    path.write_bytes(bom + text.encode(encoding))
    return path


SEMICOLONS = FRAME.to_csv(index=False, sep=";", decimal=",")


@pytest.mark.parametrize(
    "text, encoding, bom",
    [
        (FRAME.to_csv(index=False), "utf-8", b"\xef\xbb\xbf"),
        (FRAME.to_csv(index=False), "utf-16", b""),
        (FRAME.to_csv(index=False), "utf-16-le", b""),
        (FRAME.to_csv(index=False).replace("r0", "é"), "cp1252", b""),
        (SEMICOLONS, "utf-8", b""),
        (SEMICOLONS, "utf-16", b""),
        ("sep=;\n" + SEMICOLONS, "utf-8", b""),
        (FRAME.to_csv(index=False, sep=";"), "utf-8", b""),
        (FRAME.to_csv(index=False, sep="\t", decimal=","), "utf-8", b""),
        (FRAME.to_csv(index=False, sep="|"), "utf-8", b""),
        (FRAME.to_csv(index=False, sep=" "), "utf-8", b""),
        (FRAME.to_csv(index=False).replace(",", ", "), "utf-8", b""),
        (FRAME.to_csv(index=False).replace("n_params", " n_params ", 1), "utf-8", b"\xef\xbb\xbf"),
        ("\n" + FRAME.to_csv(index=False).replace("\n", ",\n"), "utf-8", b""),
    ],
)
def test_it_is_read_as_what_it_says(tmp_path, text, encoding, bom):
    wanted = FRAME[["n_params", "n_tokens", "loss"]].to_numpy(float)
    assert np.array_equal(numbers(written(tmp_path / "t.csv", text, encoding, bom)), wanted)


def test_a_comma_that_only_fractions_have_is_a_decimal_sign(tmp_path):
    short = FRAME.assign(loss=FRAME.loss.round(3), n_tokens=FRAME.n_tokens.astype(int))
    path = written(tmp_path / "t.csv", short.to_csv(index=False, sep=";", decimal=",", float_format="%.3f"))
    assert numbers(path)[:, 2].tolist() == short.loss.tolist()


def cells(**changed):
    return FRAME.astype(object).assign(**changed)


@pytest.mark.parametrize(
    "text, said",
    [
        (
            cells(loss=[f"{x:.6f}".replace(".", ",") for x in FRAME.loss]).to_csv(index=False),
            r"column 'loss' holds '3,797664' in row 0, .*decimal comma\? write 3.797664",
        ),
        (
            cells(n_params=[f"{x:,}" for x in FRAME.n_params]).to_csv(index=False),
            r"column 'n_params' holds '44,000,000' in row 0, .*thousands separators\? write 44000000",
        ),
        (
            cells(n_params=[f"{x:,}".replace(",", ".") for x in FRAME.n_params]).to_csv(
                index=False, sep=";", decimal=","
            ),
            r"'n_params' holds '44.000.000' in row 0, .*thousands separators\? write 44000000",
        ),
        (
            cells(n_params=["44.000", "90.000"] * 3, n_tokens=1, loss="1,8").to_csv(index=False, sep=";"),  # never 44
            r"'n_params' holds '44.000' in row 0, .*thousands separators\? write 44000",
        ),
        (
            cells(n_params=["44,000", "90,000"] * 3, n_tokens=1, loss=2).to_csv(index=False, sep=";"),
            r"'n_params' holds '44,000' in row 0, .*write 44000, or 44.000 where the comma is the decimal sign",
        ),
        (
            cells(n_params=[f"{x / 1e6:g}M" for x in FRAME.n_params]).to_csv(index=False),
            r"'n_params' holds '44M' in row 0, .*a unit in the cell\? write 44e6",
        ),
        (
            cells(n_tokens=["1e9", "2 B", "4e9"] * 2).to_csv(index=False),
            r"'n_tokens' holds '2 B' in row 1, .*write 2e9",
        ),
        (FRAME.to_csv(index=False) * 2, r"'n_params' holds 'n_params' in row 6, .*the header again"),
        (
            FRAME.to_csv(index=False).replace("44000000", "44,000,000", 1),
            r"line 2 has 6 fields, the header 4 \(a comma in",
        ),
        (
            cells(loss=["1,8", "2,1", "2.2", "1,9", "1,7", "1,6"], n_tokens=1000).to_csv(index=False, sep=";"),
            r"column 'loss' holds '2.2' in row 2, .*decimal comma: write 2,2",
        ),
        ("\n \n", r"t.csv: cannot be read \(it is empty\)"),
        (
            cells(loss=[3, 3, 3, 3, "diverged", 3]).to_csv(index=False),
            r"column 'loss' holds 'diverged' in row 4, not a n",
        ),
    ],
)
def test_what_is_ambiguous_costs_one_line(tmp_path, text, said):
    path = written(tmp_path / "t.csv", text)
    with pytest.raises(ValueError, match=said) as error:
        numbers(path)
    assert "\n" not in str(error.value)


def test_blanks_in_a_name_are_said_where_they_stay(tmp_path):
    frame = FRAME.rename(columns={"loss": "loss "})
    with pytest.raises(ValueError, match=r"no column 'loss', but 'loss ': mind the blanks"):
        fit_file(frame, **NAMES, loss="loss")
