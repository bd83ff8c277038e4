"""Parts of a minimisation: an objective on log residuals, a constraint on parameters, the penalty of a weak prior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .base import Law, unknown


def huber_sum(r: np.ndarray, w: np.ndarray | float, delta: float) -> np.ndarray:
    """Weighted Huber losses of the residuals r (B, n), summed over n."""
    a = np.abs(r)
    q = np.minimum(a, delta)
    return (w * (q * (a - 0.5 * q))).sum(1)


@dataclass(frozen=True)
class Objective:
    """On log residuals r: `huber` (sum of r^2/2 inside delta, delta(|r| - delta/2) outside), `l1` (sum |r|),
    `squares` (sum r^2 / 2). `raw_squares` is the last on y itself, as papers that use curve_fit have it."""

    kind: str = "huber"
    delta: float = 1e-3

    def __post_init__(self):
        if self.kind not in ("huber", "l1", "squares", "raw_squares"):
            raise ValueError(f"unknown objective {self.kind!r}: there is huber, l1, squares, raw_squares")
        if not self.delta > 0:
            raise ValueError(f"delta must be positive, got {self.delta:g}")

    def of(self, log_y: np.ndarray, log_predicted: np.ndarray) -> float:
        """The objective at a prediction, both (n,) in logs."""
        r = np.exp(log_y) - np.exp(log_predicted) if self.kind == "raw_squares" else log_y - log_predicted
        if self.kind == "l1":
            return float(np.abs(r).sum())
        return float(huber_sum(r[None], 1.0, self.delta if self.kind == "huber" else np.inf)[0])

    @property
    def bound(self) -> float:
        """Residuals beyond it pull with a constant force: Huber's delta, none for squares, next to 0 for L1."""
        if self.kind.endswith("squares"):
            return np.inf
        return self.delta if self.kind == "huber" else 1e-6

    def stages(self) -> tuple[tuple[float, float], ...]:
        """(delta, scale) to solve in turn: L1 is the limit of Huber / delta, reached from above."""
        if self.kind.endswith("squares"):
            return ((np.inf, 1.0),)
        if self.kind == "huber":
            return ((self.delta, 1.0),)
        return tuple((d, 1.0 / d) for d in (1e-3, 1e-4, 1e-5, 1e-6))


LOGS = Objective()  # the default: Huber, delta 1e-3, on log residuals


@dataclass(frozen=True)
class Constraint:
    """theta = offset + basis eta: parameters held fixed, or tied to one another.

    basis (p, q); offset (p,) or (B, p); `free` indexes the q coordinates of theta that eta copies.
    """

    basis: np.ndarray
    offset: np.ndarray
    free: np.ndarray


@dataclass(frozen=True)
class Penalty:
    """weight/2 |R theta - target|^2 beside the objective: a weak prior. R (k, p), target (k,), whitened."""

    R: np.ndarray
    target: np.ndarray
    weight: float

    def at(self, theta: np.ndarray) -> np.ndarray:
        """Its value (B,) at theta (B, p)."""
        return 0.5 * self.weight * ((theta @ self.R.T - self.target) ** 2).sum(1)


def constrain(
    law: Law, centre: dict, fix: Mapping[str, float | str], at: Mapping[str, float] | None = None
) -> Constraint:
    """Hold parameters at natural values, or tie one to another by name; `at`: hold at fitted coordinates phi, whose
    natural value may be beyond a float's range. Raises ValueError on unknown names."""
    _check_held(law, fix)
    names, coordinates = law.names, law.coordinates(centre)
    at = at or {}
    equations = {name: _tied(law, coordinates, name, value) for name, value in fix.items()}
    equations |= {name: _held_at(law, coordinates, name, value) for name, value in at.items()}
    rows, targets = map(np.array, zip(*equations.values(), strict=True))
    pivots = [names.index(name) for name in equations]
    free = np.setdiff1d(np.arange(len(names)), pivots)
    basis, offset = np.zeros((len(names), len(free))), np.zeros(len(names))
    basis[free, np.arange(len(free))] = 1.0
    basis[pivots] = -np.linalg.solve(rows[:, pivots], rows[:, free])
    offset[pivots] = np.linalg.solve(rows[:, pivots], targets)
    return Constraint(basis, offset, free)


def _check_held(law: Law, fix: Mapping[str, float | str]) -> None:
    """Raises ValueError where a name is none of the law's parameters, or of one that cannot be held."""
    for name in [*fix, *(value for value in fix.values() if isinstance(value, str))]:
        if name not in law.names:
            raise ValueError(unknown(f"parameter of {law.name}", name, law.names))
        if name in law.bent:
            raise ValueError(f"parameter {name!r} of {law.name} cannot be held: it mixes fitted coordinates")


Coordinates = tuple[np.ndarray, np.ndarray]  # T and shift of `Law.coordinates`


def _held_at(law: Law, coordinates: Coordinates, name: str, phi: float) -> tuple[np.ndarray, float]:
    """(row, target) of row @ theta = target, which holds a parameter at a fitted coordinate."""
    T, shift = coordinates
    j = law.names.index(name)
    return T[j].copy(), -shift[j] + phi


def _tied(law: Law, coordinates: Coordinates, name: str, value: float | str) -> tuple[np.ndarray, float]:
    """(row, target) that holds a parameter at a natural value, or ties it to another by name."""
    if not isinstance(value, str):
        return _held_at(law, coordinates, name, law.parameters[law.names.index(name)].unlink(value))
    T, shift = coordinates
    j, k = law.names.index(name), law.names.index(value)
    return T[j] - T[k], -shift[j] + shift[k]


def penalise(law: Law, centre: dict, terms: dict[str, tuple[float, float]], weight: float) -> Penalty | None:
    """The penalty of a prior: terms name -> (natural centre, scale of its fitted coordinate)."""
    if weight == 0 or not terms:
        return None
    T, shift = law.coordinates(centre)
    at = [law.names.index(n) for n in terms]
    middle = np.array([law.parameters[j].unlink(c) for j, (c, _) in zip(at, terms.values(), strict=True)])
    scale = np.array([s for _, s in terms.values()])
    return Penalty(T[at] / scale[:, None], (middle - shift[at]) / scale, weight)
