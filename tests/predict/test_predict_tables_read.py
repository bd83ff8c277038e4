"""Maps and the rows they read: derived settings, refusals by reason, and one line for each mistake."""

import dataclasses
import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
from measured_tables import ABSENT, SHARED, table

from scalade.parallelism.predict.configs import Configs, code
from scalade.parallelism.predict.machine import load_machine
from scalade.parallelism.predict.stack import named_stack
from scalade.parallelism.predict.tables.field import read_field
from scalade.parallelism.predict.tables.layout_of import Unusable, settings
from scalade.parallelism.predict.tables.models import find_model, shipped_models
from scalade.parallelism.predict.tables.runs import as_configs, read_runs
from scalade.parallelism.predict.tables.table_map import CONFIG_FIELDS, find_map, read_map, shipped_files

MAP = """
name = "tiny"
compete = ["name"]
[fields]
model = "name"
gpus = "devices"
global_batch = "batch"
seq_len = { value = 4096 }
micro_batch = ["mbs", { value = 1, assumed = "not printed" }]
tp = "tp"
machine = { column = "card", words = { H100 = "h100" } }
precision = { column = "kind", words = { FP8 = "fp8", BF16 = "bf16" } }
step_time_s = { column = "ms", factor = 1e-3 }
memory_bytes = { column = "gib", factor = 1073741824 }
status = { column = "end", words = { ok = "ok", OOM = "oom" } }
[[refuse]]
column = "name"
words = ["LoRA"]
reason = "adapters only"
"""
ROWS = """name,devices,batch,mbs,tp,card,kind,ms,gib,end
Llama 3.1 8B,16,64,2,4,H100-80GB,fp8 mixed,1500,40,ok
LLAMA3_8B,16,64,,1,H100-80GB,BF16,2000,,ok
Llama 3.1 8B,16,64,2,4,H100-80GB,BF16,,,OOM
Llama 3.1 8B LoRA,16,64,2,4,H100-80GB,BF16,100,,ok
Llama 3.1 8B,12,64,2,8,H100-80GB,BF16,100,,ok
Llama 3.1 8B,16,65,2,4,H100-80GB,BF16,100,,ok
Llama 3.1 8B,16,64,2,4,TPU,BF16,100,,ok
DeepSeek V3,16,64,2,4,H100-80GB,BF16,100,,ok
unheard of,16,64,2,4,H100-80GB,BF16,100,,ok
Llama 3.1 8B,16,64,2,4,H100-80GB,BF16,,,ok
"""


@pytest.fixture
def tiny(tmp_path: Path):
    (tmp_path / "map.toml").write_text(MAP)
    (tmp_path / "runs.csv").write_text(ROWS)
    return tmp_path


def test_rows_become_configurations(tiny):
    runs = read_runs(tiny / "runs.csv", tiny / "map.toml")
    assert [run.row for run in runs.runs] == [0, 1, 2]
    first, second, third = runs.runs
    assert first.settings["layers"] == 32 and first.settings["kv_heads"] == 8  # from the model's name
    assert (first.settings["dp_replicate"], first.settings["microbatches"]) == (4, 8)
    assert first.step_time_s == 1.5 and first.memory_bytes == 40 * 2**30
    assert first.settings["precision"] == code("precision", "fp8")
    assert second.settings["microbatches"] == 4 and second.assumed == ("micro_batch = 1: not printed",)
    assert third.status == "oom" and math.isnan(third.step_time_s)
    configs = as_configs(runs.runs)
    assert np.array_equal(configs.ranks, [16, 16, 16])
    assert runs.frame["nodes"][0] == 2 and runs.frame["machine"][0] == "h100"


def test_each_row_left_out_has_its_reason(tiny):
    reasons = read_runs(tiny / "runs.csv", tiny / "map.toml").refused
    assert reasons[3] == "adapters only"
    assert reasons[4] == "tp x pp x cp does not divide the devices"
    assert reasons[5] == "dp x micro_batch does not divide the batch"
    assert reasons[6] == "no machine profile for 'TPU'"
    assert reasons[7].startswith("deepseek-v3: ")
    assert reasons[8] == "model 'unheard of': no shape known"
    assert reasons[9] == "nothing measured"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("gpus =", "gpuz ="), "no such field: did you mean 'gpus'"),
        (("factor =", "fctor ="), "no key 'fctor': did you mean 'factor'"),
        (("compete =", "competes ="), "no key 'competes'"),
        (("{ value = 4096 }", "7"), "must be a column's name"),
        (('reason = "adapters only"', ""), "refuse.0 lacks reason"),
        (('"devices"', '"gadgets"'), "no column gadgets: the table has name"),
    ],
)
def test_a_mistake_in_a_map_is_one_line(tiny, change, line):
    (tiny / "map.toml").write_text(MAP.replace(*change))
    with pytest.raises(ValueError) as error:
        read_runs(tiny / "runs.csv", tiny / "map.toml")
    assert line in str(error.value) and "\n" not in str(error.value)


def test_the_nearest_map_says_what_is_missing():
    columns = [each for each in find_map_columns("dgxc_history") if each not in ("gpus", "sec_per_iter")]
    with pytest.raises(ValueError, match="the nearest, dgxc_history, needs gpus, sec_per_iter too"):
        find_map(columns)


def find_map_columns(name: str) -> list[str]:
    return next(read_map(file) for file in shipped_files() if file.stem == name).columns


@pytest.mark.parametrize("file", shipped_files(), ids=lambda file: file.stem)
def test_shipped_maps_name_machines_and_stacks_that_exist(file):
    found = read_map(file)
    assert find_map(found.columns).name == found.name  # its own columns choose it
    for name, known in (("machine", load_machine), ("stack", named_stack)):
        for way in found.fields.get(name, ()):
            for value in (way.value, way.other, *way.words.values()):
                if value is not None:
                    known(str(value))


def test_names_of_models():
    def name(text: str) -> str:
        model = find_model(text)
        return model.name if model else ""

    assert name("Llama 3.1 405b 24.09 BF16 (TP=8, PP=9)") == "llama3-405b"
    assert name("llama31_8b") == "llama3-8b" and name("LLAMA3_70B") == "llama3-70b"
    assert name("Maxtext LLama2 70b FP8") == "llama2-70b"
    assert name("NeMo Megatron 24.11") == "gpt3-175b" and name("Paxml GPT5B") == "gpt-5b"
    assert name("Nemotron4 340b") == "nemotron4-340b"
    assert all(model.source for model in shipped_models())
    sizes = {"gpt3-175b": 175e9, "llama3-8b": 8.03e9, "llama3-405b": 405.9e9, "nemotron4-15b": 15.6e9}
    for model in shipped_models():
        if model.name in sizes:
            fields = {"kv_heads": model.fields["heads"]} | dict(model.fields)
            configs = dataclasses.replace(Configs(1, 1, 1, 1, 1, 1, 1, 1), **fields)
            assert float(np.asarray(configs.params_total)) == pytest.approx(sizes[model.name], rel=0.01)


def test_microbatches_that_an_interleaved_schedule_does_not_take_are_refused():
    shape = {"layers": 8, "heads": 8, "width": 512, "ffn": 2048, "vocab": 1000, "seq_len": 128}
    run = shape | {"gpus": 4, "pp": 4, "virtual_stages": 2, "micro_batch": 1}
    assert settings(run | {"global_batch": 8}, CONFIG_FIELDS)["pp_schedule"] == code("pp_schedule", "Interleaved1F1B")
    with pytest.raises(Unusable, match="multiples of pp"):
        settings(run | {"global_batch": 6}, CONFIG_FIELDS)


def test_a_field_takes_the_first_way_that_gives_a_value():
    ways = read_field("x", ["a", {"column": "b", "words": {"yes": 2}, "other": 3}])
    assert [way.of({"a": float("nan"), "b": "oh yes"}) for way in ways] == [None, 2]
    assert ways[1].of({"b": "no"}) == 3
    with pytest.raises(ValueError, match="either a column or a value"):
        read_field("x", {"factor": 2})


@pytest.mark.skipif(not SHARED.is_dir(), reason=ABSENT)
@pytest.mark.parametrize(
    ("name", "usable"),
    [
        ("ultrascale_playbook_runs", 1632),
        ("dgxc_history", 202),
        ("megatron_bridge_perf", 28),
        ("mlperf_llm_systems", 9),
        ("mlperf_llm_results", 15),
        ("megatron_golden_values", 354),
        ("small_published", 32),
        ("megatron_2104_table1", 10),
        ("megatron_2104_table2_zero3_vs_ptd", 12),
        ("korthikanti_2205_table5", 9),
        ("korthikanti_2205_memory", 12),
        ("llama3_405b_table4", 3),
        ("misc_published", 7),
    ],
)
def test_every_table_of_runs_has_a_map(name, usable):
    runs = read_runs(Path(table(name)))
    assert name in read_tables(runs.map.path)
    assert len(runs) == usable and len(runs) + len(runs.refused) == len(runs.frame)


def read_tables(path: Path) -> list[str]:
    return tomllib.loads(path.read_text("utf-8"))["tables"]


@pytest.mark.skipif(not SHARED.is_dir(), reason=ABSENT)
def test_step_time_of_a_throughput():
    runs = read_runs(Path(table("megatron_bridge_perf")))
    printed = [float(runs.frame["sec_per_iter"][run.row]) for run in runs.runs]
    assert [run.step_time_s for run in runs.runs] == pytest.approx(printed, rel=0.01)


def test_a_rank_s_batch_is_split_into_the_microbatches_of_its_column(tiny):
    """As torchtitan's tables say it: 8 sequences a rank, of as many microbatches as stages."""
    text = MAP.replace(
        'micro_batch = ["mbs", { value = 1, assumed = "not printed" }]', 'local_batch = "mbs"\npp = "stages"'
    )
    (tiny / "map.toml").write_text(text.replace('global_batch = "batch"', 'grad_accum = "stages"'))
    (tiny / "runs.csv").write_text(
        "name,devices,stages,mbs,tp,card,kind,ms,gib,end\n"
        "Llama 3.1 8B,16,4,8,2,H100-80GB,BF16,100,,ok\n"
        "Llama 3.1 8B,16,1,8,2,H100-80GB,BF16,100,,ok\n"
    )
    configs = as_configs(read_runs(tiny / "runs.csv", tiny / "map.toml").runs)
    assert list(configs.microbatches) == [4, 1] and list(configs.sequences) == [2, 8]
    assert list(configs.global_batch) == [2 * 8, 8 * 8]  # data-parallel ranks x 8


def test_a_device_that_the_map_does_not_know_is_not_the_machine_that_was_named(tiny):
    runs = read_runs(tiny / "runs.csv", tiny / "map.toml", "h200")
    assert "TPU" in runs.refused[6] and {run.machine for run in runs.runs} == {"h100"}
    (tiny / "map.toml").write_text(MAP.replace('machine = { column = "card", words = { H100 = "h100" } }', ""))
    assert {run.machine for run in read_runs(tiny / "runs.csv", tiny / "map.toml", "h200").runs} == {"h200"}
