"""`scalade init`: what it writes runs as it stands, and it replaces nothing unless told to."""

import json
import tomllib

import pytest
from places import ROOT

from scalade.cli import app as cli
from scalade.launch.study.study import load_study

SHIPPED = sorted(path.name for path in (ROOT / "studies").glob("*.toml"))


@pytest.fixture
def init(tmp_path, monkeypatch, capsys):
    """Runs `scalade init` in an empty folder: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["scalade", "init", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    return call


def test_the_first_study_and_all_that_ship_are_written_as_they_ship(init, tmp_path):
    code, out, err = init()
    assert code == 0 and not err
    examples = sorted(path.name for path in (tmp_path / "studies").iterdir())
    assert sorted([*examples, "first.toml"]) == SHIPPED
    for name in examples:
        assert (tmp_path / "studies" / name).read_bytes() == (ROOT / "studies" / name).read_bytes()
    assert out.splitlines()[0] == "wrote first.toml" and out.splitlines()[-1] == "next: scalade run first.toml"
    planned = load_study(tmp_path / "first.toml").cases()
    assert {each.case.ranks for each in planned} == {1, 2} and all(each.skip_reason is None for each in planned)


def test_lines_that_are_commented_out_are_keys_that_exist(init, tmp_path):
    """A reader takes a `#` away and has a study that loads."""
    init()
    text = (tmp_path / "first.toml").read_text()
    other_source = {'# source = "tokens"', '# path = "train.bin"'}
    lines = []
    for line in text.splitlines():
        is_key = line.startswith("# ") and (" = " in line or line.startswith("# ["))
        lines.append(line.removeprefix("# ") if is_key and not any(map(line.startswith, other_source)) else line)
    (tmp_path / "all.toml").write_text("\n".join(lines).replace('device = "cuda"', 'device = "cpu"'))
    assert lines != text.splitlines() and load_study(tmp_path / "all.toml").all_cases
    tomllib.loads("[data]\n" + "\n".join(line.removeprefix("# ") for line in other_source))


def test_another_folder_is_made_and_named_in_the_next_command(init, tmp_path):
    code, out, _ = init("my studies/a", "--json")
    found = json.loads(out)
    assert code == 0 and found["next"] == ["scalade", "run", "my studies/a/first.toml"]
    assert len(found["written"]) == len(SHIPPED) and found["unchanged"] == []
    assert all((tmp_path / name).is_file() for name in found["written"])
    assert "next: scalade run 'my studies/a/first.toml'" in init("my studies/a")[1]


def test_what_is_there_is_replaced_by_force_alone(init, tmp_path):
    init()
    assert init()[1].splitlines() == [f"{len(SHIPPED)} files already there, unchanged", "next: scalade run first.toml"]
    (tmp_path / "first.toml").write_text("mine")
    (tmp_path / "studies" / "parity.toml").write_text("mine")
    (tmp_path / "studies" / "ladder.toml").unlink()
    code, out, err = init()
    assert code == 2 and not out and len(err.splitlines()) == 1
    assert "first.toml and 1 other file would be replaced" in err and "--force" in err
    assert not (tmp_path / "studies" / "ladder.toml").exists(), "nothing was written"
    assert (tmp_path / "first.toml").read_text() == "mine"
    code, out, _ = init("--force")
    assert code == 0 and out.splitlines()[:-2] == [f"wrote {n}" for n in ("first.toml", "studies/ladder.toml",
                                                                        "studies/parity.toml")]  # fmt: skip
    assert (tmp_path / "first.toml").read_bytes() == (ROOT / "studies" / "first.toml").read_bytes()


def test_the_docs_have_a_row_for_every_study():
    page = (ROOT / "docs" / "studies.md").read_text()
    assert [name for name in SHIPPED if f"| `{name}` |" not in page] == []


def test_the_list_has_every_study_with_its_question(init, tmp_path):
    code, out, _ = init("--list")
    assert code == 0 and not list(tmp_path.iterdir())
    names = [line.split()[0] for line in out.splitlines()]
    assert names[0] == "first" and sorted(f"{name}.toml" for name in names) == SHIPPED
    found = json.loads(init("--list", "--json")[1])["studies"]
    assert [each["name"] for each in found] == names and all(each["question"][-1] in ".?" for each in found)


@pytest.mark.parametrize(
    "make, arguments, said",
    [
        (lambda here: (here / "file").write_text(""), ["file"], "file is a file: a folder is needed there"),
        (lambda here: (here / "file").write_text(""), ["file/deeper"], "file is a file: a folder is needed there"),
        (lambda here: (here / "studies").write_text(""), [], "studies is a file: a folder is needed there"),
        (lambda here: (here / "first.toml").mkdir(), [], "a folder, not a file: first.toml"),
        (lambda here: (here / "first.toml").symlink_to("nowhere"), [], "first.toml would be replaced"),
        (lambda here: None, ["--list", "here"], "--list writes nothing"),
        (lambda here: None, ["--list", "--force"], "--list writes nothing"),
        (lambda here: None, ["/proc/nowhere"], "/proc/nowhere"),
        (lambda here: None, ["--forse"], "--forse"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(init, tmp_path, make, arguments, said):
    make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = init(*arguments)
    assert code == 2 and not out and said in err and len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
