"""A checkpoint of an engine alone, without the run around it: written, and read by the digests that lie beside it."""

import json
from pathlib import Path

from scalade.bench.checkpoint_files import Outgoing, Saved
from scalade.bench.messages import at_first, everywhere
from scalade.bench.tensor_file import Digest

DIGESTS = "digests.json"


def save(engine, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    out = Outgoing(folder, folder)
    engine.save(out)
    every = at_first(out.digests)
    if every is not None:
        (folder / DIGESTS).write_text(json.dumps({name: told for each in every for name, told in each.items()}))
    everywhere(None)


def load(engine, folder: Path) -> None:
    told = json.loads((folder / DIGESTS).read_text())
    engine.load(Saved(folder, folder, {name: Digest(*digest) for name, digest in told.items()}))
    engine.parameters_written()
