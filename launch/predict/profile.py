"""The machine profile in use: the one that is named, or `this`, which `scalade calibrate` wrote on this machine.

`this` lies in $SCALADE_MACHINE where that is set, else in $XDG_CONFIG_HOME/scalade/machines/this.toml
(~/.config/scalade/machines/this.toml).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...parallelism.predict.machine import Machine


THIS = "this"
VARIABLE = "SCALADE_MACHINE"


def own_profile(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the profile of this machine lies, or would."""
    if named := environ.get(VARIABLE):
        return Path(named)
    home = environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return Path(home) / "scalade" / "machines" / f"{THIS}.toml"


def find_machine(name: str | None) -> Machine:
    """The profile that is asked for: a shipped one's name, a file, or `this`; None: `this`.

    Raises
    ------
    ValueError: there is none; says how to get one
    """
    from ...parallelism.predict.machine import load_machine, shipped  # numpy: not for a study without a profile

    if name not in (None, THIS):
        return load_machine(str(name))
    path = own_profile()
    if path.is_file():
        return load_machine(path)
    known = ", ".join(shipped())
    raise ValueError(f"no profile of this machine ({path}): run `scalade calibrate`, or name a --machine: {known}")
