"""Scaling laws: fit them to any table, with proof of convergence, honest intervals and refusals.

Stands alone: numpy, scipy and pandas, nothing else of Scalade. `fit_file` is what the command line calls.
"""

from . import families  # noqa: F401  registers every law
from .base import Law, Parameter, get_law, law_names
from .command import fit_file
from .families.batch import NoiseScale, noise_scale
from .fit import Fit, fit, with_profiles
from .forecast import Forecast, forecast
from .isoflop import Frontier, envelope, isoflop
from .next_run import NextRun, candidate_grid, next_runs
from .optimum import Optimum, optimum
from .predictions import Prediction
from .prior import choose_strength, fit_with_prior
from .report import FitReport
from .sensitivity import with_sensitivity
from .solver import Objective
from .table import Rows, read_table, rows

__all__ = [
    "Fit",
    "FitReport",
    "Forecast",
    "Frontier",
    "Law",
    "NextRun",
    "NoiseScale",
    "Objective",
    "Optimum",
    "Parameter",
    "Prediction",
    "Rows",
    "candidate_grid",
    "choose_strength",
    "envelope",
    "fit",
    "fit_file",
    "fit_with_prior",
    "forecast",
    "get_law",
    "isoflop",
    "law_names",
    "next_runs",
    "noise_scale",
    "optimum",
    "read_table",
    "rows",
    "with_profiles",
    "with_sensitivity",
]
