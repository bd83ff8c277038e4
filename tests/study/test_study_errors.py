"""Every mistake in a study file costs one clear message: file, key, what was found, what is allowed. Exact texts."""

import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalade.cli import app as cli
from scalade.launch.host import machine
from scalade.launch.study.errors import StudyError
from scalade.launch.study.parse import MAX_BYTES
from scalade.launch.study.schema import KEYS, SECTIONS
from scalade.launch.study.study import load_study

BASE = """
name = "t"
[model]
size = "tiny-100k"
[recipe]
global_batch = 8
[budget]
steps = 3
"""


def recipe(more: str) -> str:
    return BASE.replace("global_batch = 8", "global_batch = 8\n" + more)


def model(more: str) -> str:
    return BASE.replace('"tiny-100k"', '"tiny-100k"\n' + more)


def instead(old: str, new: str) -> str:
    assert old in BASE
    return BASE.replace(old, new)


def message(folder: Path, text: str) -> str:
    """What a user is told, without the folder."""
    path = folder / "t.toml"
    path.write_text(text)
    with pytest.raises(StudyError) as caught:
        load_study(path)
    return str(caught.value).removeprefix(f"{path}:").removeprefix(" ")


MISTAKES = {
    "misspelt key": (BASE + "[layout]\ndp_shrad = 2\n", "layout.dp_shrad: unknown key; did you mean dp_shard?"),
    "misspelt section": (BASE + "[layuot]\ntp = 2\n", "layuot: unknown key; did you mean layout?"),
    "key of another section": (recipe("tp = 2"), "recipe.tp: unknown key; did you mean layout.tp?"),
    "steps": (recipe("steps = 2"), "recipe.steps: unknown key; steps are set in [budget]"),
    "nothing near": (BASE + "zzz = 1\n", "budget.zzz: unknown key; allowed are steps, tokens, tokens_per_param, flops"),
    "string for integer": (BASE + '[[layout]]\n[[layout]]\ntp = "2"\n', 'layout[1].tp = "2": must be an integer'),
    "bool for integer": (BASE + "[layout]\ntp = true\n", "layout.tp = true: must be an integer"),
    "integer for bool": (BASE + "[layout]\nsp = 1\n", "layout.sp = 1: must be true or false"),
    "number for integer": (BASE + "[layout]\ntp = 2.0\n", "layout.tp = 2.0: must be an integer"),
    "integer for string": (BASE + "[layout]\nengine = 2\n", "layout.engine = 2: must be a string"),
    "date": (BASE + "[layout]\ntp = 2024-01-01\n", "layout.tp = 2024-01-01: must be an integer"),
    "nan": (recipe("lr = nan"), "recipe.lr = nan: must be finite"),
    "inf in a list": (recipe("lr = [1e-3, inf]"), "recipe.lr[1] = inf: must be finite"),
    "string in a list": (BASE + '[layout]\ntp = [2, "4"]\n', 'layout.tp[1] = "4": must be an integer'),
    "empty list": (BASE + "[layout]\ntp = []\n", "layout.tp = a list of 0: must not be empty"),
    "list in a list": (BASE + "[layout]\ntp = [[2]]\n", "layout.tp[0] = a list of 1: must be an integer"),
    "table for a value": (BASE + "[layout.tp]\nx = 1\n", "layout.tp = a table: must be an integer"),
    "value for a table": ("layout = 3\n" + BASE, "layout = 3: must be a table or an array of tables"),
    "value in an array of tables": ("layout = [3]\n" + BASE, "layout[0] = 3: must be a table"),
    "value for a section": (BASE.replace('[model]\nsize = "tiny-100k"\n', "model = 3\n"), "model = 3: must be a table"),
    "name": (
        instead('"t"', '"../$(rm -rf)\\n"'),
        'name = "../$(rm -rf)\\n": must be letters, digits and . _ -, at most 64, the first no sign',
    ),
    "name type": (instead('"t"', "3"), "name = 3: must be a string"),
    "huge integer": (
        BASE + "[layout]\ntp = " + "9" * 40 + "\n",
        "layout.tp = an integer of 133 bits: must be less than 2**63",
    ),
    "integer of 5000 digits": (
        BASE + "[layout]\ntp = " + "9" * 5000 + "\n",
        "not valid TOML: Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits",
    ),
    "hexadecimal of 5000 digits": (
        BASE + "[layout]\ntp = 0x" + "f" * 5000 + "\n",
        "layout.tp = an integer of 20000 bits: must be less than 2**63",
    ),
    "syntax": (
        BASE + "[layout\n",
        "not valid TOML: Expected ']' at the end of a table declaration (at line 9, column 8)",
    ),
    "section twice": (BASE + "[model]\n", "not valid TOML: Cannot declare ('model',) twice (at line 9, column 7)"),
    "empty file": (
        "\n",
        (
            "\n"
            "  model: set size to a named size, or say the shape; missing: layers, heads, width, ffn\n"
            "  recipe: give exactly one of global_batch, batch_tokens, batch_per_rank; found none\n"
            "  budget: give exactly one of steps, tokens, tokens_per_param, flops; found none"
        ),
    ),
    "half a shape": (
        instead('size = "tiny-100k"', "layers = 2"),
        "model: set size to a named size, or say the shape; missing: heads, width, ffn",
    ),
    "unknown size": (
        instead("tiny-100k", "tiny-100m"),
        'model.size = "tiny-100m": unknown size; did you mean tiny-100k?',
    ),
    "heads": (model("heads = 5"), "model.width = 48: must be a multiple of model.heads = 5"),
    "heads in some cases": (
        model("heads = [2, 5]"),
        "model.width = 48: must be a multiple of model.heads = 5 (in 1 of 2 cases; drop these with [[exclude]])",
    ),
    "too many layers": (model("layers = 999999999999"), "model.layers = 999999999999: must be between 1 and 999999"),
    "ranges": (
        BASE + "[[layout]]\n[[layout]]\ntp = 0\n[measure]\nlog_every = 0\n",
        ("\n  measure.log_every = 0: must be at least 1\n  layout[1].tp = 0: must be at least 1"),
    ),
    "range of the recipe": (recipe("lr = -1"), "recipe.lr = -1.0: must be between 0 and inf"),
    "recipe and layout at once": (
        recipe("beta1 = 2") + "[layout]\npp = 0\n",
        ("\n  layout.pp = 0: must be at least 1\n  recipe.beta1 = 2.0: must be between 0 and 1"),
    ),
    "choice": (
        BASE + '[layout]\nengine = "torhc"\n',
        "layout.engine = 'torhc': allowed are torch, deepspeed, megatron",
    ),
    "run": (
        BASE + '[run]\nlauncher = "lsf"\ndevice = "gpu"\nrepeats = 0\nresults = "a\\u0000"\n',
        (
            "\n"
            '  run.launcher = "lsf": allowed are local, torchrun, mpirun, srun\n'
            '  run.device = "gpu": allowed are auto, cpu, cuda\n'
            "  run.repeats = 0: must be at least 1\n"
            '  run.results = "a\\u0000": must be a printable path'
        ),
    ),
    "list in run": (BASE + "[run]\nrepeats = [1, 2]\n", "run.repeats = a list of 2: must be an integer"),
    "no budget": (
        instead("steps = 3", ""),
        "budget: give exactly one of steps, tokens, tokens_per_param, flops; found none",
    ),
    "two budgets": (
        instead("steps = 3", "steps = 3\ntokens = 4"),
        "budget: give exactly one of steps, tokens, tokens_per_param, flops; found steps and tokens",
    ),
    "no batch": (
        instead("global_batch = 8", ""),
        "recipe: give exactly one of global_batch, batch_tokens, batch_per_rank; found none",
    ),
    "two batches": (
        recipe("batch_tokens = 256"),
        "recipe: give exactly one of global_batch, batch_tokens, batch_per_rank; found global_batch and batch_tokens",
    ),
    "batch of no tokens": (
        instead("global_batch = 8", "batch_per_rank = 0"),
        "recipe.batch_per_rank = 0: must be at least 1",
    ),
    "tokens of no whole sequences": (
        instead("global_batch = 8", "batch_tokens = 1000"),
        "recipe.batch_tokens = 1000: must be a multiple of model.seq_len = 256, the nearest is 1024",
    ),
    "negative budget": (instead("steps = 3", "flops = -3"), "budget.flops = -3.0: must be more than 0"),
    "endless budget": (instead("steps = 3", "flops = 1e300"), "budget.flops = 1e+300: more than 2**63 tokens"),
    "zip of different lengths": (
        BASE + '[zip]\n"recipe.lr" = [1e-3, 2e-3]\nlayout.tp = [1]\n',
        "zip: lists must be of equal length; recipe.lr has 2, layout.tp has 1",
    ),
    "zip of no list": (BASE + '[zip]\n"recipe.lr" = 1e-3\n', "zip.recipe.lr = 0.001: must be a list"),
    "zip of a key that is set": (
        BASE + '[zip]\n"recipe.global_batch" = [1, 2]\n',
        "recipe.global_batch: set twice, the second time in zip",
    ),
    "zip of unknown keys": (
        BASE + '[zip]\n"recipe.lrr" = [1, 2]\n"run.repeats" = [1, 2]\nlr = [1, 2]\n',
        (
            "\n"
            '  zip."recipe.lrr": unknown key; did you mean recipe.lr?\n'
            "  zip.run.repeats: [run] is one for the whole study\n"
            '  zip.lr: unknown key; keys are dotted, as in "layout.tp"'
        ),
    ),
    "zip types": (
        BASE + '[[zip]]\n"recipe.lr" = [1, "2"]\n[[zip]]\n',
        ('\n  zip[0].recipe.lr[1] = "2": must be a number\n  zip[1]: must not be empty'),
    ),
    "exclude all": (BASE + '[exclude]\n"recipe.lr" = 1e-3\n', "exclude leaves no case"),
    "exclude types and keys": (
        BASE + '[[exclude]]\n"recipe.lr" = "1"\n"layout.tpp" = 2\n',
        (
            "\n"
            '  exclude[0].recipe.lr = "1": must be a number\n'
            '  exclude[0]."layout.tpp": unknown key; did you mean layout.tp?'
        ),
    ),
    "seeds twice": (recipe("seed = 3") + "[run]\nseeds = [1]\n", "run.seeds and recipe.seed: give one of them"),
    "outer": (
        BASE + "[outer]\nreplicas = 2\n",
        "outer.replicas = 2: algorithm 'none' has one replica; allowed algorithms are localsgd, diloco, streaming, delayed, eager",  # noqa: E501
    ),
    "data without a path": (
        BASE + '[data]\nsource = "tokens"\n',
        "data.path is missing: source 'tokens' reads the file it names (.bin, or Megatron's pair)",
    ),
    "odd keys": (
        BASE + '[layout]\n"tp\\u0000\\u202e" = 1\n"dp.shard" = 2\n',
        (
            "\n"
            '  layout."tp\\u0000\\u202e": unknown key; did you mean tp?\n'
            '  layout."dp.shard": unknown key; did you mean dp_shard?'
        ),
    ),
    "more than thirty": (
        BASE + "[run]\n" + "".join(f"repeats{i} = 1\n" for i in range(34)),
        "".join(f"\n  run.repeats{i}: unknown key; did you mean repeats?" for i in range(30)) + "\n  and 4 more",
    ),
    "keys, types, ranges and what hangs on several keys at once": (
        model("heads = 5\nmlp = 'relu'\nlayers = 0")
        + "[layout]\ntpp = 2\ncp = 0\npp = 0\n[run]\nrepeats = 0\ndevice = 3\n[measure]\nlog_every = '1'\n",
        (
            "\n"
            '  measure.log_every = "1": must be an integer\n'
            "  layout.tpp: unknown key; did you mean tp?\n"
            "  run.device = 3: must be a string\n"
            "  run.repeats = 0: must be at least 1\n"
            "  layout.pp = 0: must be at least 1\n"
            "  layout.cp = 0: must be at least 1\n"
            "  model.layers = 0: must be between 1 and 999999\n"
            "  model.width = 48: must be a multiple of model.heads = 5\n"
            "  model.mlp = 'relu': allowed are swiglu, gelu"
        ),
    ),
    "a misspelt key is not missing, too": (
        instead("global_batch = 8", "global_bach = 8\nlr = -1\nbeta1 = 2").replace("steps = 3", "step = 3"),
        (
            "\n"
            "  recipe.global_bach: unknown key; did you mean global_batch?\n"
            "  budget.step: unknown key; did you mean steps?\n"
            "  recipe.lr = -1.0: must be between 0 and inf\n"
            "  recipe.beta1 = 2.0: must be between 0 and 1"
        ),
    ),
    "a misspelt section is not missing, too": (
        instead("[recipe]", "[recpie]") + "[layout]\ntp = 0\n",
        ("\n  recpie: unknown key; did you mean recipe?\n  layout.tp = 0: must be at least 1"),
    ),
    "a key of the wrong type is not missing, too": (
        instead('size = "tiny-100k"', "layers = '2'\nheads = 2\nwidth = 48\nffn = 128") + "[layout]\npp = 0\n",
        ('\n  model.layers = "2": must be an integer\n  layout.pp = 0: must be at least 1'),
    ),
    "zip and the rest": (
        recipe("lr = -1") + '[zip]\n"recipe.beta1" = [1, 2]\n"layout.tp" = [1]\n[run]\nrepeats = 0\n',
        (
            "\n"
            "  run.repeats = 0: must be at least 1\n"
            "  zip: lists must be of equal length; recipe.beta1 has 2, layout.tp has 1\n"
            "  recipe.lr = -1.0: must be between 0 and inf"
        ),
    ),
    "a wrong rule might have excluded it": (
        model("heads = [2, 5]") + '[exclude]\n"model.heds" = 5\n[layout]\npp = 0\n',
        ('\n  exclude."model.heds": unknown key; did you mean model.heads?\n  layout.pp = 0: must be at least 1'),
    ),
    "two of the outer loop": (
        BASE + "[outer]\nalgorithm = 'diloco'\nreplicas = 2\nmomentum = 3\nsync_every = 0\ncompression = 'int3'\n",
        (
            "\n"
            "  outer.compression = 'int3': allowed are none, bf16, int8, int4, fp4, topk\n"
            "  outer.sync_every = 0: must be between 1 and inf\n"
            "  outer.momentum = 3.0: must be between 0 and 1"
        ),
    ),
    "a token file that is not there, and no vocabulary": (
        BASE + "[data]\nsource = 'tokens'\npath = '/no/such.bin'\n[layout]\npp = 0\n",
        (
            "\n"
            "  layout.pp = 0: must be at least 1\n"
            '  data.path = "/no/such.bin": no such file (/no/such.bin); '
            "and data.vocab is not given, so the tokenizer's size is looked for beside it"
        ),
    ),
    "nested lists": (
        BASE + "x = " + "[" * 30_000 + "]" * 30_000,
        "tables or lists nested more than 8 deep: not a study file",
    ),
    "nested tables": (BASE + "[a.b.c.d.e.f.g.h.i]\n", "tables or lists nested more than 8 deep: not a study file"),
    "key of many parts": ("a." * 100_000 + "a = 1\n", "tables or lists nested more than 8 deep: not a study file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_message(tmp_path, mistake):
    text, expected = MISTAKES[mistake]
    assert message(tmp_path, text) == expected


def said_by(command, path, monkeypatch, capsys, *options):
    """(exit status, stderr) of a command on a study."""
    monkeypatch.setattr("sys.argv", ["scalade", command, str(path), *options])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, capsys.readouterr().err


TOKENS = BASE + "[data]\nsource = 'tokens'\npath = ['none.bin', 'some.bin', 'pair', 'gone.idx']\nvocab = 300\n"


@pytest.mark.parametrize("command", ["run", "verify"])
def test_all_that_is_missing_on_this_machine_is_said_before_anything_starts(tmp_path, command, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("some.bin", "pair.bin"):
        Path(name).touch()
    Path("t.toml").write_text(TOKENS + "[run]\ndevice = 'cuda'\n")
    code, err = said_by(command, "t.toml", monkeypatch, capsys)
    assert code == 2 and err == (
        "scalade: t.toml:\n"
        '  run.device = "cuda": this machine shows no NVIDIA GPU with CUDA_VISIBLE_DEVICES=; '
        '"auto" takes the CPU where there is no GPU\n'
        f'  data.path = "none.bin": no such file ({tmp_path}/none.bin)\n'
        f'  data.path = "gone.idx": no such file ({tmp_path}/gone.idx)\n'
    )
    assert not list(tmp_path.rglob("run.json"))


def test_what_another_machine_has_is_not_asked_of_this_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "t.toml").write_text(TOKENS + "[run]\ndevice = 'cuda'\n")
    assert load_study(tmp_path / "t.toml").device == "cuda"
    code, err = said_by("submit", tmp_path / "t.toml", monkeypatch, capsys, "--scheduler", "slurm", "--dry-run")
    assert code == 0 and err.startswith("would submit: 4 runs")


def test_a_torch_without_cuda_is_seen_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise AssertionError\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(machine, "gpus", lambda: 1)
    for line, said in (("cuda: Optional[str] = None", "without CUDA"), ("cuda: Optional[str] = '12.4'", None)):
        (tmp_path / "torch" / "version.py").write_text(f"debug = False\n{line}\nhip: Optional[str] = None\n")
        assert said in machine.no_cuda() if said else machine.no_cuda() is None
    monkeypatch.setattr(machine, "gpus", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.no_cuda() == "this machine shows no NVIDIA GPU"


def test_files_that_are_no_study(tmp_path):
    for content, expected in (
        (b"\xff", "not UTF-8 at byte 0: not a TOML file"),
        (b"#" * (MAX_BYTES + 1), f"larger than {MAX_BYTES} bytes: not a study file"),
        (None, "cannot be read: No such file or directory"),
    ):
        path = tmp_path / "x.toml"
        path.write_bytes(content) if content else path.unlink()
        with pytest.raises(StudyError) as caught:
            load_study(path)
        assert caught.value.problems == (expected,)
    with pytest.raises(StudyError, match="cannot be read: a folder, not a file"):
        load_study(tmp_path)


def test_the_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_text(BASE + "[run]\nrepeats = 0\n")
    with pytest.raises(StudyError) as caught:
        load_study("a.toml")
    assert str(caught.value) == "a.toml: run.repeats = 0: must be at least 1"


@pytest.mark.parametrize("name", ["$(reboot)", "a/b", "..", ".", "a\nb", "a\n", "", " a", "-rf", "ä", "x" * 65])
def test_a_study_name_is_a_safe_folder_name(tmp_path, name):
    path = tmp_path / "file name.toml"  # what an empty name falls back to is no safe name either
    path.write_text(BASE.replace('"t"', '"' + name.replace("\n", "\\n") + '"'))
    with pytest.raises(StudyError, match=r": name (\(taken from the file's\) )?= "):
        load_study(path)


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 400_000,
        "x = " + "{a=" * 200_000,
        "[" + "a." * 400_000 + "a]\n",
        "a.b." * 250_000 + "c = 1",
        "\n".join(f"[layout.x{i}]" for i in range(15_000)),
        "[[layout]]\n" * 60_000,
        "[layout]\ntp = [" + "2, " * 300_000 + "]\n",
    ],
)
def test_hostile_files_are_refused_soon(tmp_path, text):
    started = time.perf_counter()
    message(tmp_path, text)
    assert time.perf_counter() - started < 30


toml_values = st.recursive(
    st.one_of(
        st.integers(),
        st.floats(),
        st.booleans(),
        st.text(max_size=5),
        st.sampled_from(["torch", "1F1B", "adamw", "stdlib", "none"]),
    ),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


def to_toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
    return repr(value)


@settings(max_examples=300, deadline=None)
@given(section=st.sampled_from([*SECTIONS, "zip", "exclude"]), value=toml_values, data=st.data())
def test_any_value_of_any_key_is_a_case_or_a_message(tmp_path_factory, section, value, data):
    known = [key.name if key.section == section else key.dotted for key in KEYS.values()]
    key = data.draw(st.one_of(st.sampled_from(known), st.text(st.characters(codec="utf-8"), max_size=4)))
    text = f"{section}.{to_toml(key)} = {to_toml(value)}\n"
    if section not in ("model", "recipe", "budget"):
        text += BASE
    else:
        others = {"model": 'size = "tiny-100k"', "recipe": "global_batch = 8", "budget": "steps = 3"}
        text += "".join(f"{name}.{rest}\n" for name, rest in others.items() if not rest.startswith(f"{key} "))
        text += 'name = "t"\n'
    path = tmp_path_factory.mktemp("any") / "t.toml"
    path.write_text(text)
    try:
        planned = load_study(path).cases()
    except StudyError as error:
        assert 1 <= len(error.problems) and all(line.isprintable() for line in str(error).splitlines())
    else:
        assert planned
