"""The report's page: self-contained, names are text and never markup, tables that say what the table holds."""

import base64
import hashlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import report_table as simulated

from scalade.results.efficiency import efficiency
from scalade.results.efficiency.series import MODES
from scalade.results.report import report
from scalade.results.report.checklist import MISSING, PARTLY, REPORTED, checklist
from scalade.results.report.source import read_source
from scalade.results.table.show import export


class Page(HTMLParser):
    """Elements of the page: (tag, attributes), text by table cell, scripts."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.scripts, self.cells, self.inside = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "input", "link", "br"):
            self.inside.append(tag)
        if tag == "td":
            self.cells.append("")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if self.inside and self.inside[-1] == "script":
            self.scripts[-1] += data
        elif "td" in self.inside:
            self.cells[-1] += data


def source_of(folder):
    return read_source(folder, None, MODES, None, (), "mfu_palm", 0.95)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """(files, html) of a report on a table with ladders, DiLoCo, failures and hostile names."""
    folder = tmp_path_factory.mktemp("everything")
    rows = simulated.ladders(6) + simulated.outer() + simulated.troubles() + simulated.hostile()
    rows += simulated.on_a100()
    files = report(simulated.stored(folder / "t", rows), folder / "r.html", formats=("svg",))
    return files, files.html.read_text()


def test_the_page_asks_for_nothing_from_outside(everything):
    _, html = everything
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "form", "base")
        assert attributes.get("src", "data:image/svg+xml;base64,").startswith("data:image/svg+xml;base64,")
        assert attributes.get("href", "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    assert "@import" not in html and not re.search(r"url\(", html)


def test_only_our_script_may_run(everything):
    _, html = everything
    page = Page(html)
    assert len(page.scripts) == 1
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")


def test_names_are_text(everything):
    files, html = everything
    page = Page(html)
    shown = "<script>alert('x')</script>\"&$(rm -rf ~)$\\n\\x1b[31m_"
    assert shown in page.cells and "_" + shown in page.cells and f"rank 0: {shown}" in page.cells
    assert html.count("<script") == 1 and "\x1b" not in html
    for image in (a["src"] for t, a in page.elements if t == "img"):
        svg = base64.b64decode(image.partition(",")[2])
        assert b"\x1b" not in svg
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()}
        assert tags.isdisjoint({"script", "foreignObject", "image", "a"})
    for file in files.figures:
        assert re.fullmatch(r"[a-z0-9-]+\.svg", file.name)


def test_every_figure_says_runs_interval_and_convention(everything):
    files, html = everything
    figures = re.findall(r"<figure id=\"figure-(.*?)\">(.*?)</figure>", html, re.S)
    assert [name for name, _ in figures] == list(files.drawn)
    for _, body in figures:
        facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", body, re.S))
        assert set(facts) == {"Runs", "Interval", "Convention"} and int(facts["Runs"]) > 0
        assert len(facts["Interval"]) > 3 and len(facts["Convention"]) > 20
        assert re.search(r'alt="[^"]{30,}"', body)


def test_every_failure_stands_there_with_its_reason(everything):
    files, html = everything
    section = html.partition('<section id="failures">')[2].partition("</section>")[0]
    page = Page(section)
    for reason in ("rank 1 on host a: out of memory: needed 4.2 GiB", "no step within 120 s", "loss is NaN at step 17"):
        assert page.cells.count(reason) == 3
    assert f"of {files.runs} runs." in section and "3 oom" in section


def test_the_ratios_are_those_of_scalade_efficiency(everything):
    files, html = everything
    cells = Page(html).cells
    for mode in MODES:
        for series in efficiency(files.html.parent / "t", mode=mode, where="case_id != h1", draws=0).series:
            for point in series.points[1:]:
                assert any(
                    cell.startswith(f"{point.efficiency.value:.3f} [") or cell == f"{point.efficiency.value:.3f}"
                    for cell in cells
                )


def test_what_the_table_has_no_data_for_is_said_and_not_drawn(tmp_path):
    rows = [
        simulated.row(
            1,
            0.1,
            i,
            peak_flops=None,
            comm_bytes_per_step=None,
            predicted_step_time_s=None,
            predicted_memory_bytes=None,
        )
        for i in range(2)
    ]
    files = report(simulated.stored(tmp_path / "t", rows), tmp_path / "r.html")
    assert set(files.drawn) == {"time-breakdown", "memory", "loss-curves"}
    assert {p.name for p in files.html.parent.glob("r-figures/*")} == {
        f"{name}.{kind}" for name in files.drawn for kind in ("svg", "png")
    }
    html = files.html.read_text()
    assert [one.title for one in files.undrawn] == [
        "Strong scaling",
        "Weak scaling",
        "MFU by layout",
        "Beside published figures",
        "Final loss against compute",
        "IsoFLOP curves",
        "DiLoCo against data parallel",
        "DiLoCo: loss against model size and replicas",
        "Predicted against measured",
    ]
    for one in files.undrawn:
        assert f"<strong>{one.title}</strong> needs " in html and len(one.needs) > 20
    assert all(one.needs.splitlines() == [one.needs] for one in files.undrawn)


def test_a_column_that_alone_is_in_the_way_is_named(tmp_path):
    rows = simulated.several(1, 0.4, 1, threads_per_rank=2) + simulated.several(2, 0.2, 1)
    folder = simulated.stored(tmp_path / "t", rows)
    files = report(folder, tmp_path / "r.html", formats=())
    assert "differ in threads_per_rank" in files.undrawn[0].needs
    files = report(folder, tmp_path / "r.html", formats=(), allow=["threads_per_rank"])
    assert "scaling-strong" in files.drawn


def test_a_baseline_brings_the_verdict_of_the_gate(tmp_path):
    base, head = (
        simulated.stored(tmp_path / name, simulated.several(1, time, 8, noise=0.005))
        for name, time in (("base", 0.4), ("head", 0.5))
    )
    files = report(head, tmp_path / "r.html", formats=(), baseline=base)
    html = files.html.read_text()
    assert files.gate.startswith("gate failed: 1 slower") and files.gate in files.to_text() and "gate" in files.drawn
    assert '<span class="mark fail">failed</span> Against the baseline' in html
    assert "s m single, step_time_s: slower, 1.25" in html and '<section id="gate">' in html
    assert "slower" in Page(html).cells
    assert "Against the baseline" not in report(head, tmp_path / "r.html", formats=()).html.read_text()
    with pytest.raises(ValueError, match="no results at"):
        report(head, tmp_path / "r.html", formats=(), baseline=tmp_path / "nothing")


def test_an_exported_file_has_no_curves_and_says_so(tmp_path):
    folder = simulated.stored(tmp_path / "t", simulated.several(1, 0.4, 2) + simulated.several(2, 0.2, 2))
    export(folder, tmp_path / "runs.parquet")
    files = report(tmp_path / "runs.parquet", formats=())
    assert files.html == tmp_path / "report.html" and files.figures == ()
    assert "scaling-strong" in files.drawn and "loss-curves" not in files.drawn
    assert "read from an exported file of runs" in files.html.read_text()


def test_nothing_but_failures_is_still_a_report(tmp_path):
    files = report(simulated.stored(tmp_path / "t", simulated.troubles()), tmp_path / "r.html")
    assert files.drawn == () and "loss is NaN at step 17" in files.html.read_text()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"convention": "mfu"}, "convention 'mfu': allowed are mfu_6n, mfu_palm, mfu_causal"),
        ({"formats": ["pdf"]}, "format 'pdf': allowed are svg, png"),
        ({"mode": "both"}, "mode 'both': allowed are strong, weak"),
        ({"level": 95}, "level must lie between 0 and 1"),
        ({"where": "layout == nothing"}, "no runs at .* match"),
        ({"base": "layout == nothing"}, "base 'layout == nothing': matches no run"),
        ({"allow": ["thread_per_rank"]}, "did you mean 'threads_per_rank'"),
        ({"out": "/"}, "is a folder"),
        ({"out": "/dev/null/r.html"}, "cannot write /dev/null/r"),
    ],
)
def test_mistakes_are_one_line(tmp_path, wrong, said):
    folder = simulated.stored(tmp_path / "t", simulated.several(1, 0.4, 1), losses=False)
    with pytest.raises(ValueError, match=said) as error:
        report(folder, **{"out": tmp_path / "r.html", "formats": ()} | wrong)
    assert "\n" not in str(error.value)


def test_checklist_marks_what_is_missing(tmp_path):
    whole = simulated.several(2, 0.2, 6, energy_j=1.0, energy_source="nvml")
    items = {one.what: one for one in checklist(source_of(simulated.stored(tmp_path / "whole", whole)))}
    assert items["energy"].verdict == items["memory"].verdict == REPORTED
    assert items["at least 6 runs of each case, for an interval"].verdict == REPORTED
    some = [
        row | {"energy_j": None, "git_dirty": i == 0} | ({"peak_memory_bytes": None} if i else {})
        for i, row in enumerate(whole)
    ]
    items = {one.what: one for one in checklist(source_of(simulated.stored(tmp_path / "some", some)))}
    assert items["memory"].verdict == PARTLY and "whole in 1 of 6 runs" in items["memory"].detail
    assert items["energy"].verdict == PARTLY and "energy_j" in items["energy"].detail
    none = [row | {"energy_j": None, "energy_source": None} for row in whole[:1]]
    items = {one.what: one for one in checklist(source_of(simulated.stored(tmp_path / "none", none)))}
    assert items["energy"].verdict == MISSING and "NVML" in items["energy"].detail
    assert items["several seeds, for the spread of the loss"].verdict == MISSING


def test_checklist_sees_layouts_that_compute_something_else(tmp_path):
    parity = "layouts compute the same training"
    for loss, verdict in ((3.1 * (1 + 5e-5), REPORTED), (3.2, PARTLY)):
        rows = simulated.several(1, 0.4, 1) + simulated.several(2, 0.2, 1, loss=loss)
        found = checklist(source_of(simulated.stored(tmp_path / verdict, rows)))
        assert next(one.verdict for one in found if one.what == parity) == verdict


def test_importing_it_imports_no_matplotlib():
    code = "import sys, scalade.results.report; print({'matplotlib', 'jinja2', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
