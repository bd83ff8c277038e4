"""Batch scripts: those a user will submit are in tests/golden/schedulers to read; and nothing in a name is executed.

GOLDEN_WRITE=1 writes them anew.
"""

import json
import os
import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import GOLDEN, ROOT
from scheduler_jobs import CLOUD, PARTS, SITE, make_job, table

from scalade.cli.app import app
from scalade.launch.schedulers import SCHEDULERS, capability_table, job_columns, renewed
from scalade.launch.schedulers.base import TAKEN
from scalade.launch.schedulers.job import Part
from scalade.launch.schedulers.shell import quote
from scalade.launch.schedulers.site import Kubernetes, Site

DOCS = ROOT / "docs"


CASES = [
    (name, launcher, mode)
    for name, scheduler in SCHEDULERS.items()
    for mode in ("array", *(["packed"] if scheduler.capabilities.packed else []))
    for launcher in scheduler.capabilities.launchers
    if mode == "array" or launcher == scheduler.capabilities.launchers[0]
] + [("kubernetes", "torchrun", "jobset"), ("slurm", "openmpi", "array")]


def rendered(name, launcher, mode):
    if mode == "jobset":
        site = replace(CLOUD, kubernetes=replace(CLOUD.kubernetes, jobset=True))
        return SCHEDULERS[name].render(replace(make_job(name, launcher, "array"), site=site))
    if launcher == "openmpi":
        return SCHEDULERS[name].render(make_job(name, "mpirun", mode, replace(SITE, mpi="openmpi")))
    return SCHEDULERS[name].render(make_job(name, launcher, mode))


@pytest.mark.parametrize("name, launcher, mode", CASES)
def test_the_script_is_the_one_in_the_repository(name, launcher, mode, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # Open MPI wants an option more of root
    golden = GOLDEN / "schedulers" / f"{name}-{launcher}-{mode}{SCHEDULERS[name].suffix}"
    text = rendered(name, launcher, mode)
    if os.environ.get("GOLDEN_WRITE"):
        golden.write_text(text)
    assert text == golden.read_text()


def scripts():
    return sorted((GOLDEN / "schedulers").glob("*.sh"))


def test_every_golden_script_is_rendered_by_a_test():
    told = {f"{name}-{launcher}-{mode}{SCHEDULERS[name].suffix}" for name, launcher, mode in CASES}
    assert {path.name for path in (GOLDEN / "schedulers").iterdir()} == told


def test_bash_reads_every_script():
    for script in scripts():
        done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck here (apt-get install shellcheck)")
def test_shellcheck_has_nothing_to_say():
    # SC1090, SC1091: it cannot follow the site's own `source`
    done = subprocess.run(
        ["shellcheck", "--shell=bash", "--exclude=SC1090,SC1091", *map(str, scripts())], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def manifests():
    paths = sorted((GOLDEN / "schedulers").glob("*.manifest.json"))
    lists = [json.loads(path.read_text()) for path in paths]
    assert [(each["apiVersion"], each["kind"]) for each in lists] == [("v1", "List")] * len(paths)
    return [each for one in lists for each in one["items"]]


def test_manifests_are_what_kubernetes_has_published():
    """The schema was made from the published ones: see its first line. It refuses keys that it does not know."""
    import jsonschema

    schema = json.loads((GOLDEN / "kubernetes-schema.json").read_text())
    kinds = {"Job": "V1Job", "Service": "V1Service", "JobSet": "JobSet"}
    judges = {
        kind: jsonschema.Draft7Validator(schema | {"$ref": f"#/definitions/{name}"}) for kind, name in kinds.items()
    }
    found = manifests()
    assert {manifest["kind"] for manifest in found} == set(kinds)
    for manifest in found:
        judges[manifest["kind"]].validate(manifest)
        assert not judges[manifest["kind"]].is_valid(manifest | {"specs": {}})


def test_the_help_names_every_scheduler():
    submit = typer.main.get_command(app).commands["submit"]
    (option,) = [each for each in submit.params if each.name == "scheduler"]
    assert [name for name in SCHEDULERS if name not in option.help] == []


def test_the_docs_show_the_table_of_today():
    page = (DOCS / "clusters.md").read_text()
    assert capability_table() in page
    assert renewed(page) == page, "run: python -m scalade.launch.schedulers docs/clusters.md"


SIGNS = " '\"\n\t\r$(){}`\\;&|<>*?[]!#~=%-é\u202e\u2028ab"
NASTY = st.text(st.sampled_from(list(SIGNS)) | st.characters(codec="utf-8"), max_size=12).map(
    lambda text: text.replace("\0", "")
)
TRAPS = st.sampled_from(
    ["$(touch canary)", "`touch canary`", "'; touch canary; '", "\n#SBATCH --evil\ntouch canary\n", "\\", "-n", "$HOME"]
)
WORDS = st.lists(NASTY | TRAPS, max_size=3).map("".join)
NAMES = WORDS.map(lambda text: text.replace("/", "_")[:40]).filter(lambda text: text not in ("", ".", ".."))
STUB = """#!/bin/bash
printf '%s\\0' "${0##*/}" "$@" >> "$RECORD.argv"
env -0 > "$RECORD.env"
pwd > "$RECORD.pwd"
"""


def canaries(*folders):
    """Files that a trap made: in folders with all below them, and where the tests run."""
    return [file for folder in folders for file in folder.rglob("canary")] + list(Path.cwd().glob("canary"))


@pytest.fixture(autouse=True)
def no_canary():
    assert not canaries(), "left by an earlier run: remove it"
    yield
    assert not canaries(), "something executed a name"


def test_a_trap_that_springs_where_the_tests_run_is_seen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["bash", "-c", 'printf "$(touch canary)"'], check=True)
    assert canaries() == [tmp_path / "canary"]
    monkeypatch.undo()
    assert canaries(tmp_path) == [tmp_path / "canary"]


@settings(max_examples=40, deadline=None)
@given(WORDS)
def test_a_quoted_word_is_one_line_and_one_word(text):
    assert "\n" not in quote(text)
    told = subprocess.run(["bash", "-c", f"printf '%s\\0' {quote(text)}"], capture_output=True, check=True).stdout
    assert told == text.encode() + b"\0"
    assert not canaries()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.tuples(NAMES, NAMES, NAMES),
    value=WORDS,
    module=WORDS,
    option=WORDS,
    label=WORDS,
    title=WORDS,
    which=st.sampled_from(
        [
            ("slurm", "srun", "array"),
            ("slurm", "mpirun", "array"),
            ("slurm", "srun", "packed"),
            ("pbs", "mpirun", "array"),
            ("lsf", "torchrun", "array"),
            ("flux", "torchrun", "array"),
        ]
    ),
)
def test_nothing_in_a_name_is_executed_and_nothing_breaks(tmp_path, names, value, module, option, label, title, which):
    """The rendered script is run by bash; what it starts is a stub that records what it was given."""
    scheduler, launcher, mode = which
    ground = tmp_path / os.urandom(4).hex()
    stubs, workdir, folder = ground / "bin", ground / names[0], ground / ("f" + names[1])
    for each in (stubs, workdir, folder):
        each.mkdir(parents=True, exist_ok=True)
    for name in ("srun", "mpirun", "module", "flux", "scontrol", "python"):
        (stubs / name).write_text(STUB)
        (stubs / name).chmod(0o755)
    (ground / "nodes").write_text("n1\n")
    site = Site(
        modules=(module,),
        launcher_options=(option,),
        container=("box", value),
        python=str(stubs / "python"),
        mpirun="mpirun",
        mpi="mpich",
        environment=table(VALUE=value),
        signal_s=0,
    )
    job = make_job(
        scheduler,
        launcher,
        mode,
        site,
        workdir=workdir,
        folder=folder,
        study=folder / names[2],
        results=folder,
        parts=(Part("0123456789abcdef", label),),
        title=title,
        scalade=str(stubs / "python"),
        nodes=1,
    )
    script = SCHEDULERS[scheduler].render(job)
    inside = {
        "PATH": f"{stubs}:/usr/bin:/bin",
        "RECORD": str(ground / "record"),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n1",
        "PBS_NODEFILE": str(ground / "nodes"),
        "PBS_JOBID": "7.server",
        "LSB_JOBID": "7",
        "LSB_MCPU_HOSTS": "n1 4",
        "HOME": str(ground),
    }
    done = subprocess.run(["bash", "-c", script], env=inside, cwd=ground, capture_output=True, timeout=20)
    assert done.returncode == 0, (done.stderr.decode(), script)
    given_words = (ground / "record.argv").read_bytes().decode().split("\0")
    assert given_words[:3] == ["module", "load", module]
    if mode == "packed":
        assert given_words[-5:-1] == ["-m", "scalade", "pack", str(folder / f"{job.name}.json")]
    else:
        at = given_words.index("box", 3)
        assert given_words[at + 1 : at + 3] == [value, str(stubs / "python")]
        assert option in given_words or scheduler == "flux"
        at = given_words.index("worker")
        files = [str(folder / names[2]), "--results", str(folder)]
        assert given_words[at + 1 : at + 6] == [*files, "--case", PARTS[0].case_id]
    environment = (ground / "record.env").read_bytes().decode().split("\0")
    assert f"VALUE={value}" in environment
    assert (ground / "record.pwd").read_bytes().decode() == f"{workdir}\n"
    assert not canaries(tmp_path)
    directives = [line for line in script.splitlines() if line.startswith(SCHEDULERS[scheduler].directive)]
    assert not any("evil" in line for line in directives)


@settings(max_examples=30, deadline=None)
@given(value=WORDS, name=NAMES)
def test_a_manifest_keeps_every_word(value, name):
    site = replace(CLOUD, environment=table(VALUE=value), python=f"/data/{name}")
    job = replace(make_job("kubernetes", "torchrun", "array", title=value), site=site, study=Path("/data") / name)
    text = SCHEDULERS["kubernetes"].render(job)
    job = [each for each in json.loads(text)["items"] if each["kind"] == "Job"][0]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    # Kubernetes reads $$(NAME) as $(NAME), and $(NAME) as a variable's value
    variables = {each["name"]: each["value"].replace("$$(", "$(") for each in container["env"]}
    words = [word.replace("$$(", "$(") for word in container["command"]]
    assert variables["VALUE"] == value and words[0] == f"/data/{name}" and str(Path("/data") / name) in words


@pytest.mark.parametrize(
    "name, more, says",
    [
        ("slurm", {"launcher": "local"}, "slurm starts ranks by srun or torchrun or mpirun, not by local"),
        ("pbs", {"launcher": "srun"}, "pbs starts ranks by mpirun or torchrun, not by srun"),
        ("pbs", {"site": replace(SITE, qos="high")}, "qos = high: pbs has none; use `options`"),
        ("kubernetes", {"mode": "packed"}, "kubernetes has no packed jobs here: --mode array"),
        ("kubernetes", {"study": Path("/home/me/s.toml")}, "/home/me/s.toml does not lie on the volume"),
        ("kubernetes", {"site": replace(CLOUD, kubernetes=Kubernetes())}, "needs a profile with an image"),
    ],
)
def test_what_a_scheduler_cannot_do_is_refused(name, more, says):
    job = make_job(name, SCHEDULERS[name].capabilities.launchers[0], "array")
    with pytest.raises(ValueError, match=says):
        SCHEDULERS[name].render(replace(job, **more))


@pytest.mark.parametrize(
    "env, found",
    [
        ({}, {}),
        ({"SLURM_JOB_ID": "8"}, {"scheduler": "slurm", "job_id": "8"}),
        (
            {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"},
            {"scheduler": "slurm", "job_id": "7_2"},
        ),
        ({"PBS_JOBID": "12[3].server"}, {"scheduler": "pbs", "job_id": "12[3].server"}),
        ({"LSB_JOBID": "5", "LSB_JOBINDEX": "0"}, {"scheduler": "lsf", "job_id": "5"}),
        ({"LSB_JOBID": "5", "LSB_JOBINDEX": "4"}, {"scheduler": "lsf", "job_id": "5[4]"}),
        ({"FLUX_ENCLOSING_ID": "f2", "FLUX_JOB_ID": "f9", "SLURM_JOB_ID": "8"}, {"scheduler": "flux", "job_id": "f2"}),
        ({"SCALADE_JOB": "scalade-six-0-1"}, {"scheduler": "kubernetes", "job_id": "scalade-six-0-1"}),
    ],
)
def test_a_run_knows_whose_job_it_is_part_of(env, found):
    assert job_columns(env) == found


def test_a_port_on_which_somebody_listens_is_not_taken():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        script = f'set -euo pipefail; head=localhost; port={port}\n{TAKEN}\necho "$port"'
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert 10_000 <= int(done.stdout) < 30_000 and int(done.stdout) != port and not done.stderr
