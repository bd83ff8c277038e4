"""The interface of a scaling law: its parameters, columns, log prediction and starting points.

A law is fitted in coordinates `theta` chosen for conditioning, and reported in natural ones. Between
the two lies an affine map and an elementwise link:  phi = T theta + shift,  natural = sign exp(phi)
for a positive parameter and phi itself otherwise. T undoes the centring of logs: with
log A - alpha log N = a - alpha (log N - mean log N), log A = a + alpha mean log N. On the Chinchilla
table this lowers the condition number of the normal equations from 2e13 to 4e3.

The centre is taken from the rows that are fitted and travels with the fit, so a held-out row
cannot move it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, overload

import numpy as np

from ..wording import did_you_mean
from .dual import Dual

Columns = Mapping[str, np.ndarray]
Value = TypeVar("Value", float, np.ndarray)
AMPLITUDE = (-80.0, 120.0)


@dataclass(frozen=True)
class Parameter:
    """One parameter: its name, bounds in natural units, and the values the starts take.

    `log`: fitted as log |value|; `sign` is then the sign of the value. `grid`: starting values
    (natural). A parameter with an empty grid is solved for (an amplitude) or set by its law.
    """

    name: str
    meaning: str = ""
    low: float = -math.inf
    high: float = math.inf
    log: bool = False
    sign: int = 1
    grid: tuple[float, ...] = ()

    def link(self, phi: Value) -> Value:
        with np.errstate(over="ignore"):  # an amplitude beyond 1e308 is reported as inf
            return self.sign * np.exp(phi) if self.log else phi

    def unlink(self, value: float) -> float:
        if not self.log:
            return float(value)
        if value * self.sign <= 0:
            raise ValueError(
                f"parameter {self.name!r} must be {'positive' if self.sign > 0 else 'negative'}, got {value:g}"
            )
        return math.log(abs(value))

    @property
    def vanishes(self) -> bool:
        """A positive term whose low bound stands for 0, an irreducible loss: the law is linear in its value there."""
        return self.log and 0 < self.low <= 1e-6

    def phi_bounds(self) -> tuple[float, float]:
        """Bounds in the fitted coordinate; a log parameter's bounds are on its magnitude."""
        if not self.log:
            return self.low, self.high
        return (
            math.log(self.low) if 0 < self.low < math.inf else -math.inf,
            math.log(self.high) if 0 < self.high < math.inf else math.inf,
        )


@dataclass(frozen=True)
class Inputs:
    """The input of a law: n rows of features, under keys of the law's own, and the centre they are taken around.

    Features are arrays (n,); a law of whole curves keeps a schedule among them.
    """

    n: int
    x: dict[Any, Any]
    centre: dict = field(default_factory=dict)


class Law:
    """A law family. Subclasses give `name`, `equation`, `source`, `roles`, `parameters` and a formula.

    roles: the columns it reads; response: the column it predicts (in logs).
    """

    name: str
    equation: str
    source: str
    roles: tuple[str, ...] = ("params", "tokens")
    response: str = "loss"
    parameters: tuple[Parameter, ...] = ()
    zero_ok: tuple[str, ...] = ()  # roles that may hold 0 (every other column must be positive)
    bent: tuple[str, ...] = ()  # parameters that are no affine function of theta: they cannot be held or profiled
    falls: tuple[str, ...] = ()  # roles with which the response falls, so that a table where it rises is another's
    prior_reason: str = ""  # why `prior` says what it does, for the report
    needs_run: bool = False  # reads a curve per run, so a run column must be given

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.parameters)

    @property
    def vanishing(self) -> np.ndarray:
        """(p,) which parameters may vanish."""
        return np.array([p.vanishes for p in self.parameters])

    def prepare(self, columns: Columns, centre: dict | None = None) -> Inputs:
        """Centred logs of the role columns, each (n,); `centre` from a fit when predicting new rows."""
        logs = {r: np.log(np.asarray(columns[r], float)) for r in self.roles}
        if centre is None:
            centre = {r: float(v.mean()) for r, v in logs.items()}
        return Inputs(len(logs[self.roles[0]]), {r: v - centre[r] for r, v in logs.items()}, centre)

    def coordinates(self, centre: dict) -> tuple[np.ndarray, np.ndarray]:
        """T (p, p) and shift (p,) of phi = T theta + shift; the identity unless the law centres."""
        p = len(self.parameters)
        return np.eye(p), np.zeros(p)

    def natural(self, theta: np.ndarray, centre: dict) -> np.ndarray:
        """theta (B, p) -> natural parameters (B, p)."""
        T, shift = self.coordinates(centre)
        phi = theta @ T.T + shift
        return np.stack([p.link(phi[:, j]) for j, p in enumerate(self.parameters)], 1)

    def theta(self, natural: Mapping[str, float], centre: dict) -> np.ndarray:
        """Natural parameters by name -> theta (p,)."""
        T, shift = self.coordinates(centre)
        phi = np.array([p.unlink(natural[p.name]) for p in self.parameters])
        return np.linalg.solve(T, phi - shift)

    def box(self, centre: dict) -> tuple[np.ndarray, np.ndarray]:
        """Bounds on theta (p,), (p,): those of a parameter whose coordinate the centring leaves alone. The log of an
        amplitude at the centre stays within `AMPLITUDE`, where a term is nothing beside the rest or all of it."""
        T, shift = self.coordinates(centre)
        alone = np.abs(T - np.eye(len(T))).sum(1) == 0
        bounds = np.array([p.phi_bounds() for p in self.parameters])
        log = np.array([p.log for p in self.parameters])
        ends = np.where(log[:, None], AMPLITUDE, (-np.inf, np.inf))
        return (np.where(alone, bounds[:, 0] - shift, ends[:, 0]), np.where(alone, bounds[:, 1] - shift, ends[:, 1]))

    @overload
    def log_predict(
        self, theta: np.ndarray, inputs: Inputs, derivatives: Literal[True] = True
    ) -> tuple[np.ndarray, np.ndarray]: ...

    @overload
    def log_predict(
        self, theta: np.ndarray, inputs: Inputs, derivatives: Literal[False]
    ) -> tuple[np.ndarray, None]: ...

    def log_predict(
        self, theta: np.ndarray, inputs: Inputs, derivatives: bool = True
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Log of the prediction (B, n), and its derivatives by theta (B, p, n) or None."""
        if not derivatives:
            values = {n: theta[:, j : j + 1] for j, n in enumerate(self.names)}
            m = self.formula({n: Dual(v, {}) for n, v in values.items()}, inputs.x, inputs.centre)
            return np.broadcast_to(m.v, (len(theta), inputs.n)), None
        duals = {n: Dual(theta[:, j : j + 1], {j: np.ones((1, 1))}) for j, n in enumerate(self.names)}
        m = self.formula(duals, inputs.x, inputs.centre)
        J = np.zeros((len(theta), len(self.names), inputs.n))
        for j, g in m.g.items():
            J[:, j] = g
        return np.broadcast_to(m.v, (len(theta), inputs.n)), J

    def formula(self, p: dict[str, Dual], x: dict[Any, Any], centre: dict) -> Dual:
        """The log of the law, written once on dual numbers over theta and the prepared features."""
        raise NotImplementedError

    def extent(self, columns: Columns) -> np.ndarray:
        """The size of each run (n,), for cuts and distances: device-hours, N D, N, D, the inverse of a loss, or x."""
        has = set(self.roles)
        for roles in (("device_hours",), ("params", "tokens"), ("params_nonvocab", "tokens"), ("params",), ("tokens",)):
            if has.issuperset(roles):
                return np.prod([np.asarray(columns[r], float) for r in roles], 0)
        first = np.asarray(columns[self.roles[0]], float)
        return 1.0 / first if self.roles[0].endswith("loss") else first

    def starts(self, inputs: Inputs, log_y: np.ndarray) -> np.ndarray:
        """Starting points (S, p) in theta."""
        raise NotImplementedError

    def prior(self, inputs: Inputs, log_y: np.ndarray) -> dict[str, tuple[float, float]]:
        """The weak prior of parameters: name -> (natural centre, scale of the log or of itself)."""
        return {}

    def optimum(self, natural: np.ndarray, flops: float, flops_per_nd: float) -> tuple[np.ndarray, np.ndarray] | None:
        """Closed form of the compute optimum: natural (B, p), C -> N* (B,), D* (B,); None where unknown."""
        return None


def grid(*axes: Iterable[float]) -> np.ndarray:
    """Cartesian product of the axes, one start per row."""
    return np.stack([a.ravel() for a in np.meshgrid(*map(np.asarray, axes), indexing="ij")], 1).astype(float)


_REGISTRY: dict[str, Callable[[], Law]] = {}


def register(law: type[Law]) -> type[Law]:
    """Class decorator: makes the law known under its name."""
    _REGISTRY[law.name] = law
    return law


def law_names() -> tuple[str, ...]:
    return tuple(sorted(_REGISTRY))


def get_law(name: str | Law) -> Law:
    """The law of that name. Raises ValueError with the near misses."""
    if isinstance(name, Law):
        return name
    if name not in _REGISTRY:
        raise ValueError(unknown("law", name, law_names()))
    return _REGISTRY[name]()


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The one-line error for a name that is not known, with what was probably meant."""
    return f"unknown {what} {name!r}: {did_you_mean(str(name), known)}"
