"""How often `fit` ends at the best minimum that anybody finds, on simulated tables with one parameter at an extreme.

`python tests/benchmarks/simulated_minima.py [--tables 12] [LAW ...]`; docs/laws.md quotes it. The best known is the
least of many starts, of continuation from squares, and of scipy's L-BFGS-B. A miss that the fit itself calls not
converged is loud, any other silent.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
from scipy.optimize import minimize as scipy_minimize

sys.path.insert(0, str(Path(__file__).parents[1] / "programs"))
from simulated_laws import TRUTH, simulate

from scalade.results.laws import Objective, fit, get_law, law_names  # noqa: E402
from scalade.results.laws.solver import minimise  # noqa: E402

SAME = 1e-6
EXTREMES = (0.02, 0.3, 20.0)  # times the usual value; a term that may vanish also vanishes


def extreme_truth(name: str, rng: np.random.Generator) -> dict[str, float]:
    """The law's usual parameters with one of them far off."""
    law, truth = get_law(name), dict(TRUTH[name])
    chosen = rng.choice([p for p in law.parameters if p.name not in law.bent])
    factor = rng.choice((0.0, *EXTREMES[:2]) if chosen.vanishes else EXTREMES)
    low = max(chosen.low, 1e-9) if chosen.log else chosen.low
    truth[chosen.name] = float(np.clip(truth[chosen.name] * factor, low, chosen.high))
    return truth


def scipy_value(law, inputs, log_y, objective, start, box) -> float:
    """The objective where L-BFGS-B ends from one start."""
    scale = 1e4 if objective.kind == "huber" else 1.0

    def value(theta):
        m, J = law.log_predict(theta[None], inputs)
        r = log_y - m[0]
        psi = np.clip(r, -objective.delta, objective.delta) if objective.kind == "huber" else r
        total = (np.abs(psi) * (np.abs(r) - 0.5 * np.abs(psi))).sum()
        return (scale * total, -scale * (J[0] @ psi)) if np.isfinite(total) else (1e30, np.zeros(len(theta)))

    bounds = [(None if np.isinf(a) else a, None if np.isinf(b) else b) for a, b in zip(*box, strict=True)]
    options = dict(maxiter=3000, ftol=1e-15, gtol=1e-12)
    return scipy_minimize(value, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).fun / scale


def best_known(f, rng: np.random.Generator) -> float:
    """The least objective of many starts and of L-BFGS-B."""
    law, box = f.law, f.law.box(f.inputs.centre)
    own = law.starts(f.inputs, f.log_y)
    p = len(f.theta)
    near = [f.theta + spread * rng.standard_normal((12, p)) for spread in (0.1, 0.5, 1.5)]
    jittered = own[rng.integers(len(own), size=16)] + 0.7 * rng.standard_normal((16, p))
    starts = np.clip(np.concatenate([own, *near, jittered]), *box)
    squares = minimise(law, f.inputs, f.log_y, starts, objective=Objective("squares"), iterations=100).theta
    both = np.concatenate([squares, starts])
    found = minimise(law, f.inputs, f.log_y, both, objective=f.objective, iterations=200)
    some = [f.theta, found.theta[found.best], *starts[rng.integers(len(starts), size=3)]]
    others = [scipy_value(law, f.inputs, f.log_y, f.objective, start, box) for start in some]
    return min(float(found.objective[found.best]), *others)


def misses(name: str, tables: int) -> tuple[int, int, int]:
    """(tables fitted, loud misses, silent misses) of one law."""
    fitted = loud = silent = 0
    for table in range(tables):
        rng = np.random.default_rng([table, 7])
        rows = simulate(
            name, rng, (0.002, 0.004, 0.02)[table % 3], int(rng.choice([24, 42, 80, 200])), extreme_truth(name, rng)
        )
        if not np.isfinite(rows.y).all():
            continue
        try:
            f = fit(name, rows, objective=Objective("huber" if table % 4 else "squares"))
        except ValueError:
            continue
        fitted += 1
        if f.value > best_known(f, rng) * (1 + SAME):
            loud, silent = (loud, silent + 1) if f.convergence.converged else (loud + 1, silent)
    return fitted, loud, silent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("laws", nargs="*", metavar="LAW")
    parser.add_argument("--tables", type=int, default=12)
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    total = np.zeros(3, int)
    for name in asked.laws or [name for name in law_names() if not get_law(name).needs_run]:
        counts = misses(name, asked.tables)
        total += counts
        print(f"{name}: {counts[0]} tables, {counts[1]} loud and {counts[2]} silent misses", flush=True)
    fitted, loud, silent = total
    print(f"{fitted - loud - silent} of {fitted} at the best known; misses: {loud} loud, {silent} silent")


if __name__ == "__main__":
    main()
