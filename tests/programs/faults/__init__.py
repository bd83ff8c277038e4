"""The kinds of faults that the injector draws from: each starts a study in a Lab, hurts it, and comes back when what it
started has ended. What has to hold afterwards is fault_lab's.

A kind is a function of a Lab. It takes every choice from `lab.rng`, so that a seed says all of them; what the machine's
load decides (at which microsecond a signal arrives) it cannot say.
"""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Kind:
    name: str
    area: str
    inject: Callable
    options: dict = field(default_factory=dict)  # of the Lab
    root: bool = False  # needs it
    slow: bool = False  # real ranks, or a fault that only a time limit ends: not in the short run


KINDS: dict[str, Kind] = {}


def kind(area, root=False, slow=False, **options):
    """Enter a function under its own name, with dashes."""

    def enter(inject):
        name = inject.__name__.replace("_", "-")
        KINDS[name] = Kind(name, area, inject, options, root, slow)
        return inject

    return enter


def load():
    """{name: Kind} of all."""
    from . import files, neighbours, processes, real  # noqa: F401  each enters its own

    return KINDS
