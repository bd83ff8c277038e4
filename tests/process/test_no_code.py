"""No file that a run reads, and no message between replicas, is code or can become it."""

import ast
from pathlib import Path

import pytest

import scalade

PACKAGE = Path(scalade.__file__).parent
MODULES = {  # that turn bytes or text into running code; pickletools reads a pickle's opcodes and runs none
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "yaml",
    "jsonpickle",
    "torch.distributed.checkpoint",
    "torch.serialization",
    "torch.package",
    "torch.jit",
}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {"load", "save"}  # of these:
OWNERS = {"torch", "dcp", "pickle", "jit", "marshal", "yaml", "joblib", "ckpt"}
READS = {"read_pickle", "to_pickle", "load_state_dict_from_url", "unsafe_load", "full_load", "fromfile_pickle"}


def forbidden(tree: ast.AST) -> list[str]:
    """What of it could run what it reads."""
    found = []
    for node in ast.walk(tree):
        at = f"line {getattr(node, 'lineno', '?')}"
        if isinstance(node, ast.Import):
            found += [f"{at}: import {name.name}" for name in node.names if _is_forbidden(name.name)]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or "", *(f"{node.module}.{name.name}" for name in node.names)]
            found += [f"{at}: from {name}" for name in names if _is_forbidden(name)]
            found += [
                f"{at}: from torch import {name.name}"
                for name in node.names
                if node.module == "torch" and name.name in METHODS
            ]
        elif isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            owner = text.split(".")[-2] if "." in text else ""
            if (owner in OWNERS and node.attr in METHODS) or node.attr in READS or _is_forbidden(text):
                found.append(f"{at}: {text}")
        elif isinstance(node, ast.Call):
            found += _calls(node, at)
    return found


def _is_forbidden(name: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in MODULES)


def _calls(node: ast.Call, at: str) -> list[str]:
    said = [f"{at}: {node.func.id}()"] if isinstance(node.func, ast.Name) and node.func.id in CALLS else []
    loose = [k for k in node.keywords if k.arg in ("allow_pickle", "weights_only")]
    return said + [f"{at}: {k.arg}" for k in loose if not (k.arg == "allow_pickle" and ast.unparse(k.value) == "False")]


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import torch.distributed.checkpoint as dcp",
        "torch.load(x)",
        "from torch import load",
        "torch.save(x, y)",
        "np.load(f, allow_pickle=True)",
        "eval(x)",
        "exec(x)",
        "from torch.distributed import checkpoint",
        "pd.read_pickle(x)",
        "yaml.load(x)",
        "dcp.load(x)",
        "import yaml",
        "torch.distributed.checkpoint.load(x)",
        "from torch.serialization import load",
        "import marshal",
    ],
)
def test_the_search_finds_what_it_looks_for(text):
    assert forbidden(ast.parse(text))


def test_nothing_in_the_package_loads_code():
    files = [path for path in PACKAGE.rglob("*.py") if not {".venv", "tests"} & set(path.relative_to(PACKAGE).parts)]
    assert len(files) > 150
    found = {str(path.relative_to(PACKAGE)): forbidden(ast.parse(path.read_text())) for path in files}
    assert {name: each for name, each in found.items() if each} == {}


def test_no_payload_in_a_results_folder_runs(tmp_path, monkeypatch, recwarn):
    """A pickle in the place of every file of a folder, one after the other and all together: read, and run again."""
    from preempted_study import FAKE, write_study
    from resume_ranks import payloads

    from scalade import read_runs, read_steps
    from scalade.launch.run import run_study

    monkeypatch.setenv("PAYLOAD_RAN", str(tmp_path / "ran"))
    path, results = write_study(tmp_path, steps=2), tmp_path / "r"
    assert run_study(path, results, quiet=True, command=FAKE)[0].exit_code == 0
    files = {file: file.read_bytes() for file in sorted(results.rglob("*")) if file.is_file()}
    assert {"run.json", "steps.arrow", "starts.jsonl"} <= {file.name for file in files}, files.keys()
    for number, planted in enumerate([*([file] for file in files), list(files)]):
        for file in planted:
            file.write_bytes(payloads()[number % 2])
        for read in (read_runs, read_steps):
            try:
                read(results)
            except ValueError as error:  # one line
                assert "\n" not in str(error)
        for file, content in files.items():
            file.write_bytes(content)
    for file in files:
        file.write_bytes(payloads()[0])
    assert run_study(path, results, quiet=True, command=FAKE)[0].exit_code == 0
    assert len(read_runs(results)) == 1 and not (tmp_path / "ran").exists()
