"""What doctor says of machines that are well and of machines that are not; the collectives are really tried."""

import fcntl
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import PROGRAMS
from rich.console import Console

from scalade.launch.doctor import command as doctor
from scalade.launch.doctor import host_checks as host
from scalade.launch.doctor import trial
from scalade.launch.doctor.command import Finding, Place, Trial, examine, healthy, print_findings, to_dict
from scalade.launch.doctor.trial import try_collectives, try_mpi
from scalade.launch.host.launchers import LAUNCHERS

FAKE = (sys.executable, str(PROGRAMS.joinpath("fake_trial.py")))
WELL = Trial(None, {"torch": "2.13.0+cpu", "latency_s": 1e-4, "bytes_per_s": 2.5e8, "gpus": [], "cuda_built": None})


def found(look, place=None):
    return {finding.name: finding for finding in look(place or Place(Path("."), WELL))}


def printed(findings, width=100):
    text = io.StringIO()
    print_findings(findings, Console(file=text, width=width))
    return text.getvalue()


def test_the_real_thing(tmp_path):
    """Two ranks over gloo, MPI, this machine: one healthy JSON object, and no torch in the parent."""
    program = (
        "import sys\nfrom scalade.cli.app import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, "doctor", "--json", "--results", str(tmp_path / "new" / "results")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    told = json.loads(done.stdout)
    findings = {finding["name"]: finding for finding in told["findings"]}
    assert done.returncode == 0 and told["healthy"] and done.stderr == "False\n", done
    assert "2 ranks all-reduced" in findings["gloo"]["found"]
    assert findings["torch"]["state"] == "ok" and findings["flock"]["state"] == "ok"
    assert {finding["group"] for finding in told["findings"]} == set(doctor.GROUPS)
    assert not list(tmp_path.iterdir()), "it looks and leaves nothing behind"


def test_two_ranks_that_cannot_meet_are_broken(monkeypatch):
    monkeypatch.setenv("FAKE_TRIAL", "fail")
    tried = try_collectives("cpu", 2, 30.0, FAKE)
    assert "gloo [bold]cannot" in tried.reason
    gloo = found(doctor.communication, Place(Path("."), tried))["gloo"]
    assert gloo.state == "broken" and not healthy([gloo])
    text = printed([gloo], width=300)
    assert "[bold]cannot" in text and "\x1b[31m" not in text, "shown as text, not obeyed"
    assert "cannot work here: gloo" in text


def test_what_the_ranks_saw_comes_back(monkeypatch):
    monkeypatch.setenv("FAKE_FACTS", json.dumps({"cuda_built": "13.0"}))
    tried = try_collectives("cpu", 2, 30.0, FAKE)
    assert tried.reason is None and tried.facts["cuda_built"] == "13.0"


def test_a_hanging_trial_ends(tmp_path):
    program = tmp_path / "hang.py"
    program.write_text("import time\ntime.sleep(100)\n")
    tried = try_collectives("cpu", 2, 0.5, (sys.executable, str(program)))
    assert "time limit 0.5 s" in tried.reason


def test_interrupted_it_ends_at_once(tmp_path, monkeypatch):
    program = tmp_path / "interrupt.py"
    program.write_text("import os, signal\nos.kill(os.getppid(), signal.SIGINT)\nsignal.pause()\n")
    with pytest.raises(KeyboardInterrupt):
        try_collectives("cpu", 2, 30.0, (sys.executable, str(program)))


def mpirun(monkeypatch, script, time_limit_s):
    launcher = type("Fake", (), {"command": lambda self, ranks, program: ["sh", "-c", script]})()
    monkeypatch.setitem(LAUNCHERS, "mpirun", launcher)
    return try_mpi(2, time_limit_s)


@pytest.mark.parametrize(
    "script, reason",
    [
        ("echo scalade 2 3 MPICH 5; echo scalade 2 3 MPICH 5", None),
        ("echo scalade 1 1 Open MPI 5; echo scalade 1 1 Open MPI 5", "another MPI"),  # two worlds of one, no error
        ("echo scalade 2 4 MPICH 5; echo scalade 2 4 MPICH 5", "wrong sum"),
        ("echo scalade 2 3 MPICH 5", "wrong sum"),
        ("echo ImportError: libmpi.so; exit 1", "ImportError: libmpi.so"),
        ("exit 3", "status 3"),
        ("true", "status 0: no word"),
        ("sleep 60", "within 1 s"),
    ],
)
def test_mpi_is_believed_only_when_its_ranks_found_each_other(monkeypatch, script, reason):
    monkeypatch.setattr(doctor, "TRIAL_S", 1.0 if "sleep" in script else 20.0)
    tried = mpirun(monkeypatch, script, doctor.TRIAL_S)
    assert tried.reason is None if reason is None else reason in tried.reason
    finding = list(doctor._mpi())[-1]
    assert finding.state == ("ok" if reason is None else "note")
    if tried.facts:
        assert tried.facts["library"] in finding.found


def test_a_machine_without_mpi(monkeypatch):
    monkeypatch.setattr(host, "mpirun", lambda: None)
    (finding,) = doctor._mpi()
    assert finding.state == "missing" and "scalade[mpi]" in finding.advice and healthy([finding])


GPU = WELL.facts | {"gpus": ["NVIDIA H100", "NVIDIA H100"], "cuda_built": "13.0"}


@pytest.mark.parametrize(
    "gpus, driver, facts, name, state, said",
    [
        (0, None, WELL.facts, "NVIDIA driver", "missing", "CPU"),
        (0, None, WELL.facts | {"cuda_built": "13.0"}, "torch", "note", "CUDA 13.0"),
        (2, "575.1", GPU, "GPUs", "ok", "2 x NVIDIA H100"),
        (2, "575.1", WELL.facts, "GPUs", "broken", "torch is a CPU build"),
        (2, "390.1", WELL.facts | {"cuda_built": "13.0"}, "GPUs", "broken", "torch (CUDA 13.0) cannot use them"),
    ],
)
def test_driver_and_torch_have_to_fit(monkeypatch, gpus, driver, facts, name, state, said):
    monkeypatch.setattr(doctor.machine, "gpus", lambda: gpus)
    monkeypatch.setattr(host, "nvidia_driver", lambda: driver)
    finding = found(doctor.devices, Place(Path("."), Trial(None, facts)))[name]
    assert finding.state == state and said in finding.found
    assert (finding.advice != "") == (state in ("note", "broken"))


def test_nccl_is_tried_where_there_are_gpus(monkeypatch):
    asked = []

    def tried(device, ranks, time_limit_s):
        asked.append((device, ranks))
        return Trial("rank 1: NCCL said no", GPU)

    monkeypatch.setattr(doctor, "try_collectives", tried)
    finding = found(doctor.communication, Place(Path("."), Trial(None, GPU)))["NCCL"]
    assert asked == [("cuda", 2)] and finding.state == "broken" and "NCCL said no" in finding.found


def test_libraries_are_those_of_the_package(monkeypatch):
    wanted = ["torch>=99.1", "numpy>=1.26", "no-such-library>=1", 'mpi4py>=99; extra == "mpi"']
    wanted += ['pytest>=8; extra == "test"', 'scalade[mpi]; extra == "all"', 'no-such-engine>=1; extra == "deepspeed"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: wanted)
    findings = found(doctor.libraries)
    states = {name: finding.state for name, finding in findings.items() if name != "triton"}
    assert states == {
        "torch": "broken",
        "numpy": "ok",
        "no-such-library": "broken",
        "mpi4py": "missing",
        "no-such-engine": "missing",
    }
    assert findings["torch"].advice == "`pip install -U 'torch>=99.1'`"
    assert findings["no-such-engine"].advice == "`pip install -U 'scalade[deepspeed]'`"


def test_every_requirement_of_the_package_is_looked_at():
    names = set(found(doctor.libraries))
    assert {"torch", "pyarrow", "pydantic", "deepspeed", "megatron-core", "mpi4py", "triton"} <= names


@pytest.mark.parametrize("text, version", [("2.13.0+cpu", (2, 13, 0)), ("3.12", (3, 12)), ("5.0.0rc1", (5, 0, 0))])
def test_versions_are_compared_as_numbers(text, version):
    assert doctor._version(text) == version


def test_a_folder_is_tried_and_left_as_it_was(tmp_path):
    tried = host.try_folder(tmp_path)
    assert tried.error is None and tried.locks and 0 < tried.fsync_s < 10 and not list(tmp_path.iterdir())
    assert host.existing(tmp_path / "a" / "b") == tmp_path
    findings = found(doctor.results_folder, Place(tmp_path / "a" / "b", WELL))
    assert healthy(list(findings.values())) and str(tmp_path) in findings["folder"].found


def test_a_folder_that_takes_nothing_is_broken():
    findings = found(doctor.results_folder, Place(Path("/proc/scalade-results"), WELL))
    assert findings["writing"].state == "broken" and "/proc" in findings["writing"].found
    assert findings["folder"].found.endswith("proc")


def test_a_file_system_whose_locks_do_nothing_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert found(doctor.results_folder, Place(tmp_path, WELL))["flock"].state == "broken"


def test_limits_of_a_container(monkeypatch):
    files = {"/proc/self/cgroup": "0::/job/7\n", "/sys/fs/cgroup/job/7/memory.max": "1073741824"}
    monkeypatch.setattr(host, "read", lambda path: files.get(str(path)))
    assert host.cgroup_memory_bytes() == 2**30
    none = str(2**63 - 4096)
    files = {"/proc/self/cgroup": "4:memory:/x\n0::/x", "/sys/fs/cgroup/memory/x/memory.limit_in_bytes": none}
    monkeypatch.setattr(host, "read", lambda path: files.get(str(path)))
    assert host.cgroup_memory_bytes() is None, "a v1 group's way to say that there is none"


@pytest.mark.parametrize("governor, state", [("powersave", "note"), ("performance", "ok"), (None, "ok")])
def test_a_governor_that_saves_power_is_noted(monkeypatch, governor, state):
    monkeypatch.setattr(host, "cpu_frequency", lambda: (governor, "2.60 GHz now"))
    assert {f.name: f for f in doctor._clock()}["frequency"].state == state


def test_the_clock_is_measured():
    resolution, tick, _ = host.clock()
    assert 0 < resolution <= 1e-6 and 0 < tick < 1e-3


@pytest.mark.parametrize("state, healthy_too", [("ok", True), ("note", True), ("missing", True), ("broken", False)])
def test_only_what_is_broken_is_a_verdict_against(state, healthy_too):
    findings = [Finding("a", "x", "ok", group="g"), Finding("b", "y", state, "do this", group="g")]
    assert healthy(findings) is healthy_too and to_dict(findings)["healthy"] is healthy_too
    text = printed(findings)
    assert ("can work here" in text) is healthy_too and "-> do this" in text and doctor.WORDS[state] in text


def test_examine_runs_every_group_in_order(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "try_collectives", lambda *_: WELL)
    monkeypatch.setattr(doctor, "try_mpi", lambda *_: Trial(None, {"library": "MPICH"}))
    findings = examine(tmp_path)
    assert list(dict.fromkeys(finding.group for finding in findings)) == list(doctor.GROUPS)
    assert all(finding.found and os.linesep not in finding.found for finding in findings)
    assert trial.COMMAND[-1] == "scalade.launch.doctor.trial"
