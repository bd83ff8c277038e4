"""Which layout is the fastest: a winner where runs show one, and the layouts that tie where they do not."""

import numpy as np
import pytest
from efficiency_table import repeats

from scalade.results.efficiency import efficiency
from scalade.results.efficiency.fastest import fastest
from scalade.results.efficiency.grouping import groups
from scalade.results.report import report
from scalade.results.store.store import RunStore


def of(rows):
    (found,) = fastest(groups(rows)[0], 0.95)
    return found


def layouts(**times):
    """Rows of layouts on two ranks: the step times of each one's runs."""
    return [
        row
        for name, some in times.items()
        for i, seconds in enumerate(some)
        for row in [repeats(2, seconds, 1, layout=name, case_id=name)[0] | {"repeat": i, "run_id": f"{name}-r{i}"}]
    ]


def named(some):
    return [group.label for group, *_ in some]


APART, NEAR, FAR = np.linspace(0.100, 0.104, 6), np.linspace(0.103, 0.107, 6), np.linspace(0.2, 0.21, 6)


def test_a_difference_that_runs_show_names_one():
    found = of(layouts(a=APART, b=NEAR + 0.01, c=FAR))
    assert found.best.label == "a" and not found.ties and not found.unproven and found.needed is None
    assert found.line(lambda group: "w", 0.95) == "w: a on 2 ranks, 80,315 tokens/s [78,769, 81,920], 6 runs"


def test_ranges_that_overlap_name_no_winner_but_those_that_tie():
    found = of(layouts(a=APART, b=APART[::-1] + 0.001, c=FAR))
    assert found.best.label == "a" and named(found.ties) == ["b"] and not found.unproven and found.needed is None
    line = found.line(lambda group: "w", 0.95)
    assert "no single fastest: a on 2 ranks, 80" in line and "not told apart from b on 2 ranks (79," in line
    assert "c on" not in line


def test_two_runs_tell_nothing_and_are_said_to():
    found = of(layouts(a=(0.100, 0.104), b=(0.103, 0.105), c=(0.2, 0.21)))
    assert named(found.ties) == ["b"] and [group.label for group in found.unproven] == ["c"] and found.needed == 5
    assert found.line(lambda group: "w", 0.95).endswith("b on 2 ranks (78,777) (5 runs each could tell, at 95%)")
    ahead = of(layouts(a=(0.100, 0.104), c=(0.2, 0.21)))
    assert ahead.line(lambda group: "w", 0.95).endswith(
        "2 runs; ahead in every run, which is too few to be sure (4 runs each could tell, at 95%)"
    )


def test_the_more_layouts_the_more_it_takes():
    """Six against six reach p = 0.002: enough among five layouts, and not where chance has forty tries."""
    sure = of(layouts(a=APART, **{f"b{i}": FAR for i in range(4)}))
    assert not sure.unproven
    many = of(layouts(a=APART, **{f"b{i}": FAR for i in range(40)}))
    assert len(many.unproven) == 40 and many.needed == 7


def test_layouts_of_one_name_are_told_by_what_differs():
    rows = [*repeats(2, 0.1, 2, case_id="x", compile=True), *repeats(2, 0.1, 2, case_id="y", compile=False)]
    found = of(rows)
    assert set(found.names.values()) == {"dp2 on 2 ranks, compile True", "dp2 on 2 ranks, compile False"}


@pytest.fixture
def folder(tmp_path):
    store = RunStore(tmp_path / "results")
    for row in layouts(a=(0.100, 0.104), b=(0.103, 0.105)):
        store.write_run(row)
    return tmp_path / "results"


def test_efficiency_and_the_report_say_so(folder):
    said = "no single fastest: a on 2 ranks, 80,"
    found = efficiency(folder, draws=0)
    assert said in found.to_text() and found.to_dict()["fastest"][0]["not_told_apart"][0]["layout"] == "b"
    written = report(folder, formats=())
    assert said in written.to_text() and said in written.html.read_text() and said in written.to_dict()["fastest"][0]
