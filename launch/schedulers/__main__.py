"""Writes the capability table into a document: `python -m scalade.launch.schedulers docs/clusters.md`."""

import sys
from pathlib import Path

from . import renewed

path = Path(sys.argv[1])
path.write_text(renewed(path.read_text()))
print(f"wrote {path}")
