"""Where the tables of others' measured runs lie, beside the checkout, and how they are split for the published figures.

Splits are by (model, nodes), by release or by paper, never by random rows. Each is the pair of what `scalade predict`
is given as --calibrate and --judge.
"""

from places import ROOT

SHARED = ROOT.parent / "shared"
MEASURED, PUBLISHED = SHARED / "measured", SHARED / "published"
ABSENT = "the measured tables are not beside the checkout"


def table(name: str) -> str:
    folder = MEASURED if (MEASURED / f"{name}.csv").exists() else PUBLISHED
    return str(folder / f"{name}.csv")


def of_precision(name: str) -> tuple[str, str, str]:
    """dgxc: each model's smallest scale in the first release (9 rows in BF16, 10 in FP8); larger ones and the release
    after it."""
    first = "release == 'v24.11.1' and smallest == true"
    return table("dgxc_history"), f"precision == {name} and {first}", f"precision == {name} and not ({first})"


def bridge() -> tuple[str, str, str]:
    """Dense models: one release, and the next."""
    return table("megatron_bridge_perf"), "container == 25.09 and dense == true", "container == 25.11 and dense == true"


def mlperf() -> tuple[str, str, str]:
    """GPT-3 on H100: fewest, most and the median number of nodes, and the others."""
    some = "benchmark == gpt3 and machine == h100 and round == 'v4.1' and nodes in [32, 384, 1452]"
    return table("mlperf_llm_systems"), some, f"benchmark == gpt3 and machine == h100 and not ({some})"


def table_1() -> tuple[str, str, None]:
    """2104.04473 table 1 by 2205.05198 table 5."""
    return table("megatron_2104_table1"), table("korthikanti_2205_table5"), None


SPLITS = {
    "dgxc-bf16": of_precision("BF16"),
    "dgxc-fp8": of_precision("FP8"),
    "bridge": bridge(),
    "mlperf": mlperf(),
    "table-1": table_1(),
}
