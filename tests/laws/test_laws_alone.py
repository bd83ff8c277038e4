"""The laws stand alone: no torch; of ours filters, columns, one rule of hold-outs, and how a user's file is opened."""

import subprocess
import sys

from places import ROOT

CODE = """
import sys
import scalade.results.laws
OURS = ("files", "opened", "table", "table.filter", "table.held_out", "terminal", "trees", "wording")
ours = sorted(m for m in sys.modules if m.startswith("scalade.") and not m.startswith("scalade.results.laws"))
assert ours == ["scalade.results", *("scalade.results." + n for n in OURS)], ours
assert "torch" not in sys.modules
"""


def test_importing_the_laws_imports_neither_torch_nor_the_rest():
    subprocess.run([sys.executable, "-c", CODE], check=True)


def test_no_name_of_ours_is_imported_from_outside_but_these():
    folder = ROOT / "results" / "laws"
    for path in folder.glob("*.py"):
        text = path.read_text()
        for name in ("table.filter", "terminal", "table.held_out", "store.parquet_file", "wording"):
            text = text.replace(f"from ..{name} import", "")
        text = text.replace("from .. import files", "")
        assert "from .." not in text and "import scalade" not in text, path.name
    for path in (folder / "families").glob("*.py"):
        text = path.read_text()
        assert "from ..." not in text and "import scalade" not in text, path.name
