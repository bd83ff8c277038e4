"""The command line as a person and a program meet it: help, mistakes, exit statuses, what goes to which stream."""

import json
import os
import re
import resource
import subprocess
import sys

import pytest
from places import ROOT

from scalade import read_runs, read_steps
from scalade.cli import app as cli
from scalade.results.store.store import RunStore

COMMANDS = (
    "init run worker verify doctor comm lab show export efficiency ops check fit compare report history "
    "compact submit status cancel logs predict plan calibrate"
).split()
HOSTILE = "dp2[red]\x1b[31m"  # markup and an escape sequence
STUDY = """
name = "second"
[model]
size = "tiny-100k"
[recipe]
global_batch = 8
[budget]
steps = 5
"""


def write_runs(folder, count=2, **more):
    store = RunStore(folder)
    for n in range(count):
        identity = {"run_id": f"{n:016x}-r0", "case_id": f"{n:016x}", "repeat": 0, "started_at": f"2026-01-0{n + 1}"}
        row = {"status": "ok", "model": "tiny-100k", "layout": f"dp{n + 1}", "loss": 3.0 + n, "dp_replicate": n + 1}
        store.write_run(identity | row | more, {"step": [0, 1], "loss": [4.0, 3.0]})
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with two studies' results, `second` written to last."""
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("second", "first")):
        runs = write_runs(tmp_path / "scalade-results" / name, count=2 - age) / "runs"
        for run in runs.iterdir():
            os.utime(run, (1e9 - age, 1e9 - age))
    return tmp_path


@pytest.fixture
def scalade(monkeypatch, capsys):
    """Runs the command line in this process: (exit status, stdout, stderr)."""
    monkeypatch.delenv("SCALADE_TRACE", raising=False)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["scalade", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    return call


@pytest.mark.parametrize("command", [*(c for c in COMMANDS if c != "lab"), "lab up", "lab status", "lab down"])
def test_every_command_has_help_with_an_example(scalade, command):
    code, out, err = scalade(*command.split(), "--help")
    assert code == 0 and not err
    assert f"Usage: scalade {command} " in out and "--json" in out
    assert out.count("Example: ") == 1 and command in out.split("Example: ")[1]


def test_help_lists_every_command(scalade):
    code, out, _ = scalade("--help")
    assert code == 0
    assert [line.split()[0] for line in out.split("Commands:")[1].splitlines() if line.strip()] == COMMANDS


def test_the_table_of_exit_statuses_has_every_command():
    page = (ROOT / "docs" / "exit-status.md").read_text()
    assert sorted(re.findall(r"^\| `([a-z]+)` \|", page, re.M)) == sorted(COMMANDS)


def test_help_is_fast():
    """Processor time, which other work on the machine does not lengthen."""
    used = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "scalade", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(used) < 0.3


def test_version(scalade):
    import scalade as package

    assert scalade("--version") == (0, f"scalade {package.__version__}\n", "")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["shwo"], "Did you mean 'show'"),
        (["show", "--bogus"], "--bogus"),
        (["run"], "STUDY"),
        (["export"], "RESULTS"),
        (["show", "--columns"], "--columns"),
        (["show", "nowhere"], "nowhere"),
        (["show", "--columns", "layot"], "layout"),
        (["show", "--filter", "tp >> 2"], "tp >> 2"),
        (["show", "--sort", "los"], "'loss'"),
        (["show", f"no{HOSTILE}"], "[red]"),
        (["export", "second", "out.xls"], "csv, parquet"),
        (["export", "second", "no/folder/out.csv"], "no/folder/out.csv"),
        (["export", "second", "out.csv", "--table", "step"], "runs, steps, evals"),
        (["verify", "none.toml"], "none.toml"),
        (["verify", "study.toml", "--tolerance", "nine"], "--tolerance"),
        (["verify", "study.toml", "--tolerance", "nan"], "--tolerance"),
        (["verify", "study.toml", "--results", "scalade-results/first"], "holds runs already"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(here, scalade, arguments, said):
    (here / "study.toml").write_text(STUDY)
    code, out, err = scalade(*arguments)
    assert code == 2 and not out
    (line,) = [line for line in err.splitlines() if not line.startswith("reading ")]
    assert line.startswith("scalade: ") and said in line and "\x1b" not in err


def test_show_takes_the_newest_and_says_so(here, scalade):
    code, out, err = scalade("show")
    assert code == 0 and err == "reading scalade-results/second\n"
    assert [line.split()[1] for line in out.splitlines()[2:]] == ["dp1", "dp2"]
    write_runs(here / "scalade-results" / "third", count=1)
    assert scalade("show")[2] == "reading scalade-results/third\n"


@pytest.mark.parametrize("given", ["second", "scalade-results/second", "study.toml"])
def test_show_finds_the_results_by_name_by_path_and_by_study(here, scalade, given):
    (here / "study.toml").write_text(STUDY)
    code, out, _ = scalade("show", given, "--json", "--columns", "layout,loss", "--sort", "-loss")
    assert code == 0 and json.loads(out) == [{"layout": "dp2", "loss": 4.0}, {"layout": "dp1", "loss": 3.0}]
    assert json.loads(scalade("show", given, "--json", "--filter", "loss > 3.5", "--columns", "layout")[1]) == [
        {"layout": "dp2"}
    ]


def test_show_all_has_the_earlier_attempts(here, scalade):
    write_runs(here / "scalade-results" / "second", count=1)
    assert len(json.loads(scalade("show", "second", "--json")[1])) == 2
    assert len(json.loads(scalade("show", "second", "--json", "--all")[1])) == 3


def test_without_results_show_says_where_they_come_from(tmp_path, monkeypatch, scalade):
    monkeypatch.chdir(tmp_path)
    code, out, err = scalade("show")
    assert code == 2 and not out and "scalade run STUDY.toml" in err


def test_names_are_shown_and_not_obeyed(here, scalade):
    write_runs(here / HOSTILE, layout=HOSTILE, status="failed", reason=HOSTILE)
    code, out, err = scalade("show", HOSTILE)
    assert code == 0 and "dp2[red]\\x1b[31m" in out and "\x1b" not in out + err
    assert "\x1b" not in scalade("export", HOSTILE, here / f"{HOSTILE}.csv")[1]


def test_export_writes_what_is_read_back(here, scalade):
    code, out, err = scalade("export", "second", "out.parquet")
    assert (code, out, err) == (0, "2 rows of runs: out.parquet\n", "")
    assert list(read_runs(here / "out.parquet")["layout"]) == ["dp1", "dp2"]
    code, out, _ = scalade("export", "second", "steps", "--format", "parquet", "--table", "steps", "--json")
    assert json.loads(out) == {"rows": 4, "table": "steps", "file": "steps"}
    assert list(read_steps(here / "steps")["loss"]) == [4.0, 3.0, 4.0, 3.0]
    assert scalade("export", "second", "out.csv", "--filter", "loss > 3.5")[1] == "1 row of runs: out.csv\n"
    assert len((here / "out.csv").read_text().splitlines()) == 2


def test_a_reader_that_leaves_early_is_no_error(here):
    write_runs(here / "many", count=9)
    show = f"{sys.executable} -m scalade show many --json --columns all"
    done = subprocess.run(["bash", "-c", f"{show} | head -1; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "[" and done.stderr == ""


def test_showing_imports_no_torch(here):
    program = (
        "import sys\nfrom scalade.cli.app import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, "show", "second"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.splitlines()[-1] == "False"


def test_a_verdict_against_is_status_1(here, scalade):
    (here / "study.toml").write_text(STUDY + "[layout]\ndp_replicate = 3\n")
    code, out, err = scalade("verify", "study.toml", "--json")
    told = json.loads(out)
    assert code == 1 and not err and not told["passed"] and told["counts"]["skipped"] == 1
    code, out, _ = scalade("verify", "study.toml")
    assert code == 1 and "skipped: tiny-100k dp3: global_batch 8 is not a multiple" in out


@pytest.mark.parametrize("error", [TypeError("x\x1b[31m is\nno y"), KeyError("loss"), AttributeError()])
def test_a_mistake_of_our_own_is_one_line_with_a_way_to_its_trace(scalade, here, monkeypatch, error):
    from scalade.results.table import show

    def broken(*_, **__):
        raise error

    monkeypatch.setattr(show, "export", broken)
    code, out, err = scalade("export", "scalade-results/second", "x.csv")
    assert (code, out) == (70, "") and err.count("\n") == 1 and "\x1b" not in err
    assert err.startswith(f"scalade: internal error: {type(error).__name__}")
    assert err.endswith("; this is a bug: SCALADE_TRACE=1 shows the trace to report\n")
    monkeypatch.setenv("SCALADE_TRACE", "1")
    monkeypatch.setattr(sys, "argv", ["scalade", "export", "scalade-results/second", "x.csv"])
    with pytest.raises(type(error)):
        cli.main()


def test_no_memory_is_no_bug(scalade, here, monkeypatch):
    from scalade.results.table import show

    def broken(*_, **__):
        raise MemoryError

    monkeypatch.setattr(show, "export", broken)
    assert scalade("export", "scalade-results/second", "x.csv") == (2, "", "scalade: out of memory\n")
