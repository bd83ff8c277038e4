"""From lists to cases: how many, which, in which order, and with which ids."""

import json
import os
import subprocess
import sys
import tomllib
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT
from study_text import BASE, load

from scalade.bench.flops import flops_per_token
from scalade.launch.study.case import LATER, PARTS, Case, content_id
from scalade.launch.study.expand import too_many
from scalade.launch.study.study import load_study


def toml(table: dict) -> str:
    """Scalars, lists and `section.key` names as TOML (JSON's scalars are TOML's)."""
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items()) + "\n"


values = {
    "recipe.lr": st.floats(1e-5, 1, allow_nan=False),
    "recipe.seed": st.integers(0, 10**6),
    "model.layers": st.integers(1, 9),
    "measure.log_every": st.integers(1, 50),
    "layout.dp_replicate": st.sampled_from([1, 2, 4, 8]),
    "layout.tp": st.sampled_from([1, 2, 3, 5]),
}


@st.composite
def grids(draw):
    keys = draw(st.lists(st.sampled_from(sorted(values)), unique=True, min_size=1))
    return {key: draw(st.lists(values[key], unique=True, min_size=1, max_size=4)) for key in keys}


@settings(max_examples=60, deadline=None)
@given(grid=grids())
def test_lists_multiply(tmp_path_factory, grid):
    lists = {key: found[0] if len(found) == 1 else found for key, found in grid.items()}
    text = toml({"name": "t", "model.size": "tiny-100k", "recipe.global_batch": 8, "budget.steps": 3, **lists})
    cases = load(tmp_path_factory.mktemp("grid"), text).all_cases
    expected = set(product(*grid.values()))
    found = {tuple(getattr(getattr(case, part(key)), key.split(".")[1]) for key in grid) for case in cases}
    assert len(cases) == len(expected) and found == expected
    assert len({case.case_id for case in cases}) == len(cases)


def part(key: str) -> str:
    return {"model": "shape"}.get(key.split(".")[0], key.split(".")[0])


@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(values["recipe.lr"], values["recipe.seed"]), unique=True, min_size=1, max_size=6))
def test_zip_pairs(tmp_path_factory, pairs):
    lrs, seeds = map(list, zip(*pairs, strict=True))
    text = BASE + f'[layout]\ntp = [1, 2]\n[zip]\n"recipe.lr" = {lrs}\n"recipe.seed" = {seeds}\n'
    cases = load(tmp_path_factory.mktemp("zip"), text).all_cases
    assert [(c.recipe.lr, c.recipe.seed, c.layout.tp) for c in cases] == [(*p, tp) for p in pairs for tp in (1, 2)]


@settings(max_examples=40, deadline=None)
@given(
    lrs=st.lists(values["recipe.lr"], unique=True, min_size=2, max_size=5),
    tps=st.lists(values["layout.tp"], unique=True, min_size=2, max_size=4),
    data=st.data(),
)
def test_exclude_drops_what_matches_in_all_keys(tmp_path_factory, lrs, tps, data):
    dropped_lrs = data.draw(st.lists(st.sampled_from(lrs), unique=True, min_size=1, max_size=len(lrs) - 1))
    dropped_tp = data.draw(st.sampled_from(tps))
    text = BASE.replace("global_batch = 8", f"global_batch = 8\nlr = {lrs}")
    text += f'[layout]\ntp = {tps}\n[[exclude]]\n"recipe.lr" = {dropped_lrs}\nlayout.tp = {dropped_tp}\n'
    found = {(c.recipe.lr, c.layout.tp) for c in load(tmp_path_factory.mktemp("exclude"), text).all_cases}
    assert found == {(lr, tp) for lr in lrs for tp in tps if not (lr in dropped_lrs and tp == dropped_tp)}


def test_a_name_stands_for_one_shape_whatever_the_data(tmp_path):
    """`diloco-35m` on bytes was a model of 18.9 M."""

    def one(text):
        (case,) = load(tmp_path, text).all_cases
        return case.model_name, case.shape.vocab, case.shape.params_total

    diloco = BASE.replace("tiny-100k", "diloco-35m")
    assert one(diloco) == ("diloco-35m", 32768, 35_659_008)
    zipf = '[data]\nsource = "zipf-markov"\nvocab = 512\n'
    assert one(diloco + zipf) == ("diloco-35m", 32768, 35_659_008)
    assert one(diloco.replace("[model]\n", "[model]\nvocab = 256\n")) == ("diloco-35m,vocab=256", 256, 19_012_864)
    assert one(diloco.replace("[model]\n", "[model]\ntied = false\n"))[0] == "diloco-35m,tied=False"
    assert one(BASE)[:2] == ("tiny-100k", 256) and one(BASE + zipf)[:2] == ("tiny-100k,vocab=512", 512)
    same = "[model]\nkv_heads = 2\nqk_norm = false\nmlp = 'swiglu'\n"  # as the size has them anyway
    assert one(BASE.replace("[model]\n", same))[0] == "tiny-100k"


def test_exclude_sees_defaults_and_the_values_of_a_size(tmp_path):
    text = BASE.replace('"tiny-100k"', '["tiny-100k", "tiny-300k"]') + "[layout]\ndp_replicate = [1, 2]\n"
    by_size = load(tmp_path, text + '[exclude]\n"model.layers" = 2\n').all_cases
    assert {case.model_name for case in by_size} == {"tiny-300k"}
    by_default = load(tmp_path, text + '[exclude]\n"layout.tp" = 1\n"layout.dp_replicate" = 2\n').all_cases
    assert {case.layout.dp_replicate for case in by_default} == {1}


def test_alternative_tables_add_up_and_their_lists_multiply(tmp_path):
    text = BASE + "[[layout]]\n[[layout]]\ndp_shard = [2, 4]\nreshard_after_forward = [true, false]\n"
    text += "[[layout]]\ntp = 2\n"
    assert [c.layout.name() for c in load(tmp_path, text).all_cases] == [
        "single",
        "fsdp2",
        "fsdp2z2",
        "fsdp4",
        "fsdp4z2",
        "tp2",
    ]
    text += '[[outer]]\n[[outer]]\nalgorithm = "diloco"\nreplicas = 2\n'
    assert len(load(tmp_path, text).all_cases) == 12


def test_a_case_that_comes_up_twice_is_one_case(tmp_path):
    text = BASE + '[[layout]]\npp_schedule = ["GPipe", "1F1B"]\nsp = [true, false]\n'
    text += "[[layout]]\ndp_replicate = [1, 2, 2]\n"
    assert [c.layout.name() for c in load(tmp_path, text).all_cases] == ["single", "dp2"]


def test_too_many_cases_are_refused_before_they_are_built(tmp_path):
    text = BASE.replace("global_batch = 8", f"global_batch = 8\nlr = {[x / 1e6 for x in range(1, 60001)]}")
    text += f"[run]\nseeds = {list(range(30000))}\n"
    told = "the lists multiply to 1,800,000,000 cases: recipe.lr 60000 x recipe.seed 30000; the limit is run.max_runs "
    with pytest.raises(ValueError, match=f"{told}= 100000, at most 1000000 can be set$"):
        load(tmp_path, text)
    assert too_many({"a": 100, "b": 100}, 10_000) is None
    assert too_many({"a": 100, "b": 101}, 10_000) == (
        "the lists multiply to 10,100 cases: b 101 x a 100; the limit is run.max_runs = 10000, which may be set to "
        "10100"
    )


def test_seeds_are_cases_and_repeats_are_not(tmp_path):
    study = load(tmp_path, BASE + "[run]\nseeds = [3, 1]\nrepeats = 4\n")
    assert [case.recipe.seed for case in study.all_cases] == [3, 1] and study.run.repeats == 4


def test_learning_rate_is_carried_over_widths(tmp_path):
    sizes = 'size = ["tiny-100k", "tiny-2m"]'
    text = BASE.replace('size = "tiny-100k"', sizes).replace("[budget]", "lr = 8e-3\nlr_width = 48\n[budget]")
    rates = {case.model_name: case.recipe.lr for case in load(tmp_path, text).all_cases}
    assert rates == {"tiny-100k": 8e-3, "tiny-2m": pytest.approx(2e-3)}  # widths 48 and 192
    with pytest.raises(ValueError, match=r"recipe\.lr_width = -1: must be at least 0"):
        load(tmp_path, text.replace("lr_width = 48", "lr_width = -1"))


@pytest.mark.parametrize(
    ("batch", "global_batch"), [("global_batch = 12", 12), ("batch_tokens = 2560", 10), ("batch_per_rank = 3", 12)]
)
def test_batch(tmp_path, batch, global_batch):
    text = BASE.replace("global_batch = 8", batch) + "[layout]\ndp_replicate = 2\ntp = 2\n"
    (case,) = load(tmp_path, text).all_cases
    assert case.recipe.global_batch == global_batch


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(["tokens", "tokens_per_param", "flops"]), steps=st.integers(1, 10**6))
def test_budget_is_rounded_up_to_whole_steps(tmp_path_factory, kind, steps):
    folder = tmp_path_factory.mktemp("budget")
    (case,) = load(folder, BASE).all_cases
    tokens = case.recipe.global_batch * case.shape.seq_len * steps
    exact = {
        "tokens": tokens,
        "tokens_per_param": tokens / case.shape.params_total,
        "flops": tokens * flops_per_token(case.shape)["6n"],
    }[kind]
    for amount, expected in ((exact, steps), (exact * (1 + 1e-8), steps + 1), (exact * (1 - 1e-8), steps)):
        (found,) = load(folder, BASE.replace("steps = 3", f"{kind} = {amount!r}")).all_cases
        assert found.recipe.steps == expected


GOLDEN_ID = "f9347fc2004c5488"
SHUFFLED = """
budget = {steps = 3}   # other order, other spelling, the same study
name = "other"
[recipe]
beta1 = 0.9
lr = 1_000e-6
global_batch = 0x8
[layout]
[model]
seq_len = 256
size = "tiny-100k"
"""


def test_case_id_is_of_the_content_and_the_same_everywhere(tmp_path):
    (case,), (shuffled,) = load(tmp_path, BASE).all_cases, load(tmp_path, SHUFFLED).all_cases
    code = "import sys, scalade.launch.study.study as s; print(s.load_study(sys.argv[1]).all_cases[0].case_id)"
    other = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "t.toml"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    ).stdout.strip()
    assert case.case_id == shuffled.case_id == other
    content = json.loads(case.to_json())
    content.pop("model_name")
    assert case.case_id == Case.from_json(json.dumps(content | {"model_name": "renamed"})).case_id


def test_golden_id():
    """Results on disk are found by it: the way from content to id never changes (what a case holds may grow)."""
    content = {"recipe": {"lr": 0.003, "seed": 0, "clip": None}, "layout": {"tp": 2, "sp": True, "engine": "torch"}}
    assert content_id(content) == content_id(json.loads(json.dumps(content, sort_keys=True))) == GOLDEN_ID
    assert content_id(content | {"measure": {}}) != GOLDEN_ID


def test_every_field_counts_for_the_id_and_the_size_s_name_does_not(tmp_path):
    (case,) = load(tmp_path, BASE).all_cases
    content = json.loads(case.to_json())
    content.pop("model_name")
    later = {(name, key): content[name].pop(key) for name, keys in LATER.items() for key in keys}
    assert later and case.case_id == content_id(content)  # at their defaults
    every = [(part, key) for part in PARTS for key in content[part]]
    for part, key in [*every, *later]:
        assert content_id({**content, part: {**content[part], key: "other"}}) != case.case_id


@settings(max_examples=15, deadline=None)
@given(grid=grids())
def test_json_round_trip(tmp_path_factory, grid):
    text = toml({"name": "t", "model.size": "tiny-100k", "recipe.global_batch": 8, "budget.steps": 3, **grid})
    for case in load(tmp_path_factory.mktemp("json"), text).all_cases:
        assert Case.from_json(case.to_json()) == case
        assert Case.from_json(case.to_json()).case_id == case.case_id


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"shape": 3}'])
def test_what_is_no_case_is_refused(text):
    with pytest.raises(ValueError):
        Case.from_json(text)


def test_a_case_of_an_unknown_or_wrong_field_is_refused(tmp_path):
    (case,) = load(tmp_path, BASE).all_cases
    for change in ({"unknown": 1}, {"layers": "3"}, {"layers": 0}, {"rope_theta": float("inf")}):
        content = json.loads(case.to_json())
        content["shape"] |= change
        with pytest.raises(ValueError):
            Case.from_json(json.dumps(content))


def test_integers_for_numbers_are_the_same_case(tmp_path):
    (one,) = load(tmp_path, BASE + "[run]\n").all_cases
    content = json.loads(one.to_json())
    content["recipe"]["clip_norm"] = 1  # as a caller may write it
    assert Case.from_json(json.dumps(content)).case_id == one.case_id


def test_loading_a_study_imports_nothing_heavy():
    code = "import sys, scalade.launch.study.study as s; s.load_study(sys.argv[1]).cases(); print(*sys.modules)"
    path = ROOT / "studies" / "quickstart.toml"
    found = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert not {"torch", "pandas", "scipy", "pyarrow", "matplotlib"} & set(found.stdout.split())


STUDIES = sorted((ROOT / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_we_ship_load_and_run_something(path):
    study = load_study(path)
    assert study.name == path.stem == tomllib.loads(path.read_text())["name"]
    assert any(planned.skip_reason is None for planned in study.cases())


def test_parity_study_skips_nothing_and_quickstart_fits_two_ranks():
    planned = load_study(STUDIES[0].parent / "parity.toml").cases()
    assert [p.skip_reason for p in planned] == [None] * len(planned)
    quick = load_study(STUDIES[0].parent / "quickstart.toml").cases()
    assert {p.case.ranks for p in quick} == {1, 2} and all(p.skip_reason is None for p in quick)
