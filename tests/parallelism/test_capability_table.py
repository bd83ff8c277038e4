"""docs/engines.md says of each engine what the engine says of itself."""

from places import ROOT

from scalade.parallelism.capability_table import ASKED, ability, renewed

DOCUMENT = ROOT / "docs" / "engines.md"


def test_the_table_of_abilities_is_fresh():
    text = DOCUMENT.read_text()
    assert renewed(text) == text, "stale: run `python -m scalade.parallelism.capability_table docs/engines.md`"


def test_torch_can_all_but_what_is_another_engines():
    found = {name: ability("torch", wanted, ways) for name, wanted, ways in ASKED}
    missing = {name for name, said in found.items() if said == "-"}
    assert missing == {
        "optimizer state sharded",
        "gradients sharded, too",
        "second copy of parameters",
        "optimizer on the host",
        "parameters on the host",
        "both on disks",
    }
    assert all(any(ability(e, wanted, ways) != "-" for e in ("torch", "deepspeed")) for _, wanted, ways in ASKED)
