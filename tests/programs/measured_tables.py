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
