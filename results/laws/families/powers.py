"""Sums of power laws, with analytic derivatives: log y = logsumexp_t (z_t), every z_t linear in theta.

Chinchilla, the over-training law, the DiLoCo forms, plain power laws and the step law are all of
this shape. dlog y / dtheta_j = sum_t p_t f_tj with p the softmax of z. For given exponents the law
is linear in its amplitudes, so a start needs a grid over exponents only and takes the amplitudes
from a small linear fit on relative residuals (variable projection, Golub and Pereyra 1973).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..base import Columns, Inputs, Law, grid

Feature = Callable[[Columns], np.ndarray]


def log_of(role: str, sign: float = 1.0) -> Feature:
    """The feature sign * log(column)."""
    return lambda c: sign * np.log(c[role])


class SumOfPowers(Law):
    """`terms`: one dict per term from parameter name to its feature; 1.0 marks an amplitude.

    The key None holds an offset without a parameter.
    """

    terms: tuple[dict[str | None, Feature | float], ...] = ()

    def _amplitude(self, t: int) -> str | None:
        """The term's own amplitude: it absorbs the means of the term's features."""
        for name, f in self.terms[t].items():
            if not callable(f) and sum(name in other for other in self.terms) == 1:
                return name
        return None

    def prepare(self, columns: Columns, centre: dict | None = None) -> Inputs:
        raw = {
            (t, n): np.asarray(f(columns), float)
            for t, term in enumerate(self.terms)
            for n, f in term.items()
            if callable(f)
        }
        if centre is None:
            centre = {k: float(v.mean()) if self._amplitude(k[0]) and k[1] is not None else 0.0 for k, v in raw.items()}
        some = np.asarray(columns[self.roles[0]])
        return Inputs(len(some), {k: v - centre[k] for k, v in raw.items()}, centre)

    def coordinates(self, centre: dict) -> tuple[np.ndarray, np.ndarray]:
        p, at = len(self.parameters), {n: j for j, n in enumerate(self.names)}
        T = np.eye(p)
        for (t, name), mean in centre.items():
            own = self._amplitude(t)
            if own is not None and name is not None and mean:
                T[at[own], at[name]] -= mean / self.terms[t][own]
        return T, np.zeros(p)

    def log_predict(self, theta, inputs, derivatives=True):
        z = [self._exponent(t, theta, inputs) for t in range(len(self.terms))]
        if len(z) == 1:
            m, share = z[0] + np.zeros((len(theta), inputs.n)), [np.ones((1, 1))]
        else:
            m, share = _log_sum(z)
        if not derivatives:
            return m, None
        at = self._positions()
        J = np.empty((len(theta), len(at), inputs.n))
        written = set()
        for t, name, feature in self._features(inputs):
            d = share[t] * feature
            if name in written:
                J[:, at[name]] += d
            else:
                J[:, at[name]] = d
                written.add(name)
        return m, J

    def _positions(self) -> dict[str, int]:
        return {name: j for j, name in enumerate(self.names)}

    def _exponent(self, t: int, theta: np.ndarray, inputs: Inputs) -> np.ndarray | float:
        """The log of term t (B, n)."""
        at = self._positions()
        z: np.ndarray | float = 0.0
        for name, f in self.terms[t].items():
            feature = inputs.x[t, name] if callable(f) else f
            z = z + (feature if name is None else theta[:, at[name], None] * feature)
        return z

    def _features(self, inputs: Inputs) -> Iterator[tuple[int, str, np.ndarray | float]]:
        """(term, parameter, feature) of every parameter in every term."""
        for t, term in enumerate(self.terms):
            for name, f in term.items():
                if name is not None:
                    yield t, name, inputs.x[t, name] if callable(f) else f

    def starts(self, inputs: Inputs, log_y: np.ndarray) -> np.ndarray:
        at = self._positions()
        if len(self.terms) == 1:  # linear in theta: least squares is the start
            _, J = self.log_predict(np.zeros((1, len(at))), inputs)
            offset = inputs.x.get((0, None), 0.0)
            return np.linalg.lstsq(J[0].T, log_y - offset, rcond=None)[0][None]
        own = [self._amplitude(t) for t in range(len(self.terms))]
        free = [p for p in self.parameters if p.name not in own]
        points = grid(*(p.grid for p in free)) if free else np.zeros((1, 0))
        theta = np.zeros((len(points), len(at)))
        for k, p in enumerate(free):
            theta[:, at[p.name]] = [p.unlink(v) for v in points[:, k]]
        shape = self._shapes(theta, inputs, log_y)
        gram = shape @ shape.transpose(0, 2, 1)
        gram += 1e-9 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(len(self.terms))
        amplitude = np.linalg.solve(gram, shape.sum(2)[:, :, None])[:, :, 0]
        floor = 0.02 / shape.mean(2)  # no term starts below 2% of the response
        for t, name in enumerate(own):
            assert name is not None, "a law whose terms share an amplitude has starts of its own"
            theta[:, at[name]] = np.log(np.maximum(amplitude[:, t], floor[:, t])) / self.terms[t][name]
        return theta

    def _shapes(self, theta: np.ndarray, inputs: Inputs, log_y: np.ndarray) -> np.ndarray:
        """The terms at unit amplitude, relative to y: (S, terms, n)."""
        at = self._positions()
        shape = np.empty((len(theta), len(self.terms), inputs.n))
        for t, term in enumerate(self.terms):
            named = [n for n, f in term.items() if callable(f) and n is not None]
            zt: np.ndarray | float = 0.0
            for n in named:
                zt = zt + theta[:, at[n], None] * inputs.x[t, n]
            shape[:, t] = np.exp(np.clip(zt + inputs.x.get((t, None), 0.0) - log_y, -50, 50))
        return shape


def _log_sum(z: list) -> tuple[np.ndarray, list[np.ndarray]]:
    """log sum exp of the terms (B, n), and each term's share of the sum."""
    top = z[0]
    for zt in z[1:]:
        top = np.maximum(top, zt)
    e = [np.exp(zt - top) for zt in z]
    total = sum(e)
    return top + np.log(total), [et / total for et in e]
