"""Loss in device-hours:  L = E + A / N^alpha + B N^eta / T^beta.

Inbar and Sernau 2024 (arXiv 2406.18922) put tokens = time / (time per token) into a sum of powers of N and D. They
estimate the time per token from memory copies; here it is a power of N, time per token ~ N^(eta/beta), fitted with the
rest from what runs really took: eta/beta is 1 where time follows FLOPs, and less where small models use the device
worse. T: device-hours of the run. At a budget T the least loss is at N* = (alpha A / (eta B))^(1/(alpha+eta))
T^(beta/(alpha+eta)).
"""

from __future__ import annotations

from ..base import Parameter, register
from .powers import SumOfPowers, log_of


@register
class DeviceHours(SumOfPowers):
    name = "device_hours"
    equation = "L = E + A / N^alpha + B N^eta / T^beta"
    source = "Inbar and Sernau 2024, arXiv 2406.18922, with the time per token a power of N"
    roles = ("params", "device_hours")
    parameters = (
        Parameter("A", "scale of the parameter term", log=True),
        Parameter("alpha", "exponent of N", low=0.0, high=4.0, grid=(0.2, 0.35, 0.6)),
        Parameter("B", "scale of the time term", log=True),
        Parameter("eta", "exponent of N in the time term", low=0.0, high=4.0, grid=(0.1, 0.3, 0.6)),
        Parameter("beta", "exponent of T", low=0.0, high=4.0, grid=(0.2, 0.35, 0.6)),
        Parameter("E", "irreducible loss", low=1e-9, log=True),
    )
    terms = (
        {"A": 1.0, "alpha": log_of("params", -1)},
        {"B": 1.0, "eta": log_of("params"), "beta": log_of("device_hours", -1)},
        {"E": 1.0},
    )
