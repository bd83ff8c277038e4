"""The report in a real browser: it loads without an error or a request, sorts, filters, and runs no foreign script."""

import base64
import hashlib
import json
import re
import shutil
import subprocess

import pytest
import report_table as simulated

from scalade.results.report import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

WATCH = """
window.told = {errors: [], refused: [], alerts: 0};
window.alert = () => { told.alerts += 1; };
addEventListener("error", (event) => told.errors.push(String(event.message)), true);
document.addEventListener("securitypolicyviolation", (event) => told.refused.push(event.violatedDirective));
"""
USE = """
const table = document.getElementById("table-runs");
const column = (index) => Array.from(table.tBodies[0].rows, (row) => row.cells[index].dataset.v ?? null);
const header = (name) => Array.from(table.tHead.rows[0].cells).findIndex((cell) => cell.textContent === name);
const click = (name) => table.tHead.rows[0].cells[header(name)].querySelector("button").click();
click("tokens/s"); told.up = column(header("tokens/s"));
click("tokens/s"); told.down = column(header("tokens/s"));
told.sorted = table.tHead.rows[0].cells[header("tokens/s")].getAttribute("aria-sort");
click("status"); told.statuses = column(header("status"));
const filter = document.querySelector('input[data-for="table-runs"]');
filter.value = "OOM fsdp8"; filter.dispatchEvent(new Event("input"));
told.shown = Array.from(table.tBodies[0].rows).filter((row) => row.offsetParent !== null).length;
told.said = filter.closest(".filter").querySelector("output").textContent;
filter.value = ""; filter.dispatchEvent(new Event("input"));
told.all = Array.from(table.tBodies[0].rows).filter((row) => row.offsetParent !== null).length;
told.pictures = Array.from(document.images, (image) => image.complete && image.naturalWidth > 100);
told.requests = performance.getEntriesByType("resource").filter((one) => !one.name.startsWith("data:")).length;
told.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.title = JSON.stringify(told);
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: `apt-get install chromium`")
def test_in_chromium(tmp_path):
    rows = simulated.ladders(2) + simulated.outer() + simulated.troubles() + simulated.hostile()
    files = report(simulated.stored(tmp_path / "t", rows), tmp_path / "r.html", formats=())
    html = with_script(files.html.read_text(), f'{WATCH} addEventListener("load", () => {{{USE}}});')
    page = tmp_path / "watched.html"
    page.write_text(html)
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [CHROMIUM, *FLAGS, profile, "--window-size=1200,900", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.S)[1].replace("&amp;", "&").replace("&gt;", ">")
    told = json.loads(title)
    assert (told["errors"], told["refused"], told["alerts"], told["requests"]) == ([], [], 0, 0)
    assert len(told["pictures"]) == len(files.drawn) and all(told["pictures"])
    assert told["wide"] <= 0
    numbers = [float(value) for value in told["up"] if value is not None]
    assert len(numbers) == sum(row["status"] == "ok" for row in rows) and numbers == sorted(numbers)
    assert told["up"][len(numbers) :] == told["down"][len(numbers) :] == [None] * 15  # null is last either way
    assert [float(value) for value in told["down"][: len(numbers)]] == numbers[::-1] and told["sorted"] == "descending"
    assert told["statuses"] == sorted(told["statuses"])
    assert (told["shown"], told["said"], told["all"]) == (3, f"3 of {len(rows)} rows", len(rows))


def with_script(html, script):
    """The page with a script of ours behind its policy, before all else, that the policy allows."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = html.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    policy = re.search(r"<meta http-equiv=[^\n]*\n", html)[0]
    return html.replace(policy, f"{policy}<script>{script}</script>", 1)
