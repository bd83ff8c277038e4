"""Tables simulated from laws of known parameters."""

from __future__ import annotations

import numpy as np

from scalade.results.laws import get_law
from scalade.results.laws.table import Rows

TRUTH = {
    "chinchilla": dict(A=480.0, alpha=0.35, B=2100.0, beta=0.37, E=1.8),
    "skaling": dict(A=100.0, alpha=0.39, B=780.0, beta=0.43, E=0.5, k=0.6),
    "kaplan": dict(N_c=8.8e13, alpha_N=0.076, D_c=5.4e13, alpha_D=0.095),
    "farseer": dict(s=-0.021, q=0.169, S=0.091, B=88.01, b=-0.1, Q=-5.287, A=-0.124, a=0.123, E=0.424),
    "overtraining": dict(a=166.0, b=360.0, h=0.14, E=1.8),
    "data_constrained": {"A": 520.0, "alpha": 0.35, "B": 1500.0, "beta": 0.37, "E": 1.87, "R_D*": 15.0, "R_N*": 5.3},
    "diloco": dict(A=18.4, alpha=-0.096),
    "diloco_joint": dict(A=19.2, alpha=-0.0985, beta=0.0116),
    "diloco_joint_constant": dict(A=36.0, alpha=-0.155, beta=0.02, C=1.0),
    "diloco_exponent": dict(A=37.0, alpha=-0.157, beta=0.0003, C=1.0),
    "diloco_additive": dict(A=35.0, alpha=-0.15, B=0.02, beta=0.68, C=0.9),
    "power": dict(a=3.0, c=-0.2),
    "power_constant": dict(a=30.0, c=-0.15, E=1.5),
    "broken_power": dict(a=1.0, b=30.0, c0=0.1, c1=0.3, d=1e8, f=0.3),
    "routed": dict(a=-0.08, b=-0.1, c=0.008, d=1.1),
    "precision": dict(A=480.0, alpha=0.35, B=2100.0, beta=0.37, E=1.8, gamma_w=2.2),
    "precision_full": dict(A=480.0, alpha=0.35, B=2100.0, beta=0.37, E=1.8, gamma_w=2.2, gamma_a=1.8, gamma_kv=0.9),
    "critical_batch": dict(S_min=4000.0, B_crit=2e6),
    "step_law_lr": dict(c=1.79, p=-0.713, q=0.307),
    "step_law_batch": dict(c=0.58, r=0.571),
    "routed_saturating": dict(a=-0.082, b=-0.108, c=0.009, d=1.104, E_start=1.847, E_max=314.478),
    "lr_horizon": dict(c=40.0, beta=0.32),
    "lr_horizon_joint": dict(c=390.0, alpha=0.23, beta=0.32),
    "loss_to_loss": dict(K=1.1, kappa=0.9, E_source=1.7, E=1.4),
    "downstream": dict(epsilon=0.857, k=2.21, gamma=0.715),
    "vocabulary": dict(A1=880.0, alpha1=0.447, A2=2100.0, alpha2=0.671, B=22000.0, beta=0.447, E=5.533),
    "sparsity": {
        "a": 16612.5,
        "alpha": 0.5962,
        "b": 5455.67,
        "beta": 0.3954,
        "c": 0.4598,
        "lambda": -0.1666,
        "d": 17.26,
        "delta": 0.1603,
        "gamma": 0.1595,
        "e": 0.94,
    },
    "device_hours": dict(A=480.0, alpha=0.35, B=1e-3, eta=0.33, beta=0.37, E=1.8),
    "annealing": dict(L0=2.6, A=0.55, alpha=0.5, C=0.7, horizon=600.0),
    "multipower": dict(L0=2.6, A=0.6, alpha=0.45, B=440.0, C=2.1, beta=0.6, gamma=0.65),
}


def simulate(name, rng, noise=0.0, n=60, truth=None) -> Rows:
    law, columns = get_law(name), design(name, rng, n)
    inputs = law.prepare(columns)
    m = law.log_predict(law.theta(truth or TRUTH[name], inputs.centre)[None], inputs, derivatives=False)[0][0]
    y = np.exp(m + noise * rng.standard_normal(len(m)))
    run = columns.get("run")
    cluster = np.arange(len(y)) if run is None else np.unique(run, return_inverse=True)[1]
    return Rows(columns, y, cluster, np.arange(len(y)))


def design(name: str, rng: np.random.Generator, n: int = 60) -> dict[str, np.ndarray]:
    """Columns a law can be fitted on."""
    law = get_law(name)
    if law.needs_run:
        step = np.arange(500, 12_001, 250)
        peak = 3e-4
        rates = {
            "constant": np.full(len(step), peak),
            "cosine": 0.1 * peak + 0.45 * peak * (1 + np.cos(np.pi * step / step[-1])),
            "two": np.where(step < 6000, peak, 0.3 * peak),
            "three": np.where(step < 8000, peak, 0.1 * peak),
        }
        return {
            "run": np.repeat(list(rates), len(step)),
            "step": np.tile(step.astype(float), len(rates)),
            "lr": np.concatenate(list(rates.values())),
        }
    ranges = {
        "params": (1e7, 1e10),
        "tokens": (1e8, 1e12),
        "unique_tokens": (1e8, 1e10),
        "replicas": (1, 8),
        "experts": (1, 512),
        "x": (1e6, 1e10),
        "batch": (1e5, 1e8),
        "weight_bits": (2, 16),
        "activation_bits": (2, 16),
        "kv_bits": (2, 16),
        "params_nonvocab": (3e7, 3e9),
        "params_vocab": (2e6, 4e8),
        "unigram_loss": (7, 9),
        "sparsity": (0.01, 0.98),
        "device_hours": (1, 1e5),
        "source_loss": (1.9, 5),
        "loss": (2.2, 5),
    }
    out = {r: np.exp(rng.uniform(*np.log(ranges[r]), size=n)) for r in law.roles}
    if name == "farseer":  # its range in the paper
        out = {
            "params": np.exp(rng.uniform(*np.log((1e8, 6e9)), n)),
            "tokens": np.exp(rng.uniform(*np.log((1e9, 5e11)), n)),
        }
    if "unique_tokens" in out:
        out["unique_tokens"] = np.minimum(out["unique_tokens"], out["tokens"])
    return out
