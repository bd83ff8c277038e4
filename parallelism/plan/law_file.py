"""A fitted law as `scalade fit ... --json` writes it, ready to predict the loss of runs that are planned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...results.laws.base import Law

MOST_BYTES = 2**26
NATS, BITS = "nats/token", "bits/byte"
NEED = ("law", "parameters", "response", "columns", "ranges", "resamples")


@dataclass(frozen=True)
class FittedLaw:
    """natural: (p,) parameters; resamples: (B, p), B may be 0; ranges: role -> least and greatest value fitted."""

    path: Path
    law: Law
    natural: np.ndarray
    resamples: np.ndarray
    response: str
    columns: dict[str, str]
    ranges: dict[str, tuple[float, float]]

    @property
    def unit(self) -> str:
        """Of the loss, as the name of its column says."""
        return BITS if any(word in self.response.lower() for word in ("bits", "bpb")) else NATS

    def predict(self, roles: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Loss (m,), and that of every resample (B, m), of runs by role -> (m,)."""
        inputs = self.law.prepare({role: np.asarray(roles[role], float) for role in self.law.roles})
        rows = np.vstack([self.natural[None], self.resamples])
        thetas = [self.law.theta(dict(zip(self.law.names, row, strict=True)), inputs.centre) for row in rows]
        loss = np.exp(self.law.log_predict(np.array(thetas), inputs, derivatives=False)[0])
        return loss[0], loss[1:]

    def beyond(self, role: str, value: float) -> float:
        """How many times outside of the fitted range; 1 inside."""
        low, high = self.ranges[role]
        return max(value / high, low / value, 1.0)


def read_law(path: Path, option: str = "--law") -> FittedLaw:
    """
    Raises
    ------
    ValueError: the file is no fit, did not converge, or its law predicts no loss
    """
    from ...results.laws import get_law

    report = _report(path, option)
    law = get_law(str(report["law"]))
    if law.response != "loss" or law.needs_run:
        raise ValueError(f"{option} {path}: law {law.name} does not predict the loss of a run from its size")
    values = {each["name"]: each["at_optimum"] for each in report["parameters"]}
    if set(values) != set(law.names) or None in values.values():
        raise ValueError(f"{option} {path}: its parameters are not those of law {law.name}: fit it again")
    if not report["convergence"]["converged"]:
        raise ValueError(f"{option} {path}: the fit did not converge: its numbers are of no minimum")
    return FittedLaw(
        path=path,
        law=law,
        natural=np.array([values[name] for name in law.names], float),
        resamples=np.array(report["resamples"], float).reshape(-1, len(law.names)),
        response=str(report["response"]),
        columns={str(role): str(column) for role, column in report["columns"].items()},
        ranges={str(role): (float(low), float(high)) for role, (low, high) in report["ranges"].items()},
    )


def _report(path: Path, option: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES)
        report = json.loads(content)
    except OSError as error:
        raise ValueError(f"{option} {path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{option} {path}: no JSON: write it with `scalade fit TABLE ... --json > {path}`") from None
    missing = [key for key in NEED if not isinstance(report, dict) or key not in report]
    if missing:
        raise ValueError(
            f"{option} {path}: not a fit: lacks {missing[0]}; write it with `scalade fit TABLE ... --json`"
        )
    return report


def need_roles(fitted: FittedLaw, roles: tuple[str, ...], option: str) -> None:
    """Raises ValueError where the law reads other roles than these, or lacks one."""
    names = {"params": "N", "tokens": "D", "replicas": "M"}
    own = fitted.law.roles
    for role in roles:
        if role not in own:
            what = f"law {fitted.law.name} has no {role} ({names[role]})"
            raise ValueError(f"{option} {fitted.path}: {what}: it reads {', '.join(own)}")
    other = [role for role in own if role not in roles]
    if other:
        raise ValueError(
            f"{option} {fitted.path}: law {fitted.law.name} also reads {', '.join(other)}: no plan knows it"
        )
