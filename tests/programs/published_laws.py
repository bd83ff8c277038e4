"""Published sweeps and the parameters that their authors found."""

from __future__ import annotations

import numpy as np
import pandas as pd
from places import ROOT

from scalade.results.laws import rows

DATA = ROOT.parent / "shared" / "data"
FITTED = ("cosine_24000", "constant_24000", "wsdcon_9")
AUTHORS = {
    25: [3.04045406, 0.52468604, 0.50786857, 363.78751622, 2.06560812, 0.58279013, 0.64142257],
    100: [2.6514477, 0.60115152, 0.45295811, 437.9464276, 2.13245612, 0.59785199, 0.65523644],
    400: [2.37474466, 0.65421216, 0.42878731, 523.42464371, 2.02462735, 0.59350493, 0.63472457],
}


def curves(size, names):
    return pd.concat(
        [pd.read_csv(DATA / f"multipowerlaw/csv_{size}/{n}.csv").assign(run=n) for n in names], ignore_index=True
    )


def curve_rows(law, frame):
    return rows(law, frame, {}, "loss", run="run")


def mean_r2(f, theta, size) -> float:
    out = []
    for name in PREDICTED:
        test = curve_rows(f.law, curves(size, [name]))
        y = np.exp(f.log_predict(test.columns, theta[None])[0])
        out.append(1 - ((test.y - y) ** 2).sum() / ((test.y - test.y.mean()) ** 2).sum())
    return float(np.mean(out))


PUBLISHED_R2 = {25: 0.9988, 100: 0.9983, 400: 0.9978}


PREDICTED = ("constant_72000", "cosine_72000", "wsd_20000_24000", "wsdld_20000_24000", "wsdcon_3", "wsdcon_18")
