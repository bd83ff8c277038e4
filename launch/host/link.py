"""The shape of a lab's links: `100mbit,20ms` is 100 Mbit/s each way and a round trip of 20 ms."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

RATES = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)")
MIN_RATE, MAX_RATE = 1e6, 1e11
MAX_RTT = 2.0


@dataclass(frozen=True)
class Link:
    """Of each node: what it sends and what it receives are limited alike. None: as the kernel gives it."""

    rate_bits_per_s: float | None = None
    rtt_s: float | None = None

    def text(self) -> str:
        parts = []
        if self.rate_bits_per_s:
            unit, factor = max(((u, f) for u, f in RATES.items() if f <= self.rate_bits_per_s), key=lambda x: x[1])
            parts.append(f"{self.rate_bits_per_s / factor:g}{unit}")
        if self.rtt_s:
            parts.append(f"{self.rtt_s * 1e3:g}ms")
        return ",".join(parts) or "unshaped"


def parse_link(text: str) -> Link:
    """Of `1gbit`, `100mbit,20ms`, `20ms`, `unshaped`.

    Raises
    ------
    ValueError: not that, or out of range
    """
    option = f"--link {text!r}"
    rate, rtt = (None, None) if text == "unshaped" else _rate_and_rtt(text, option)
    if rate is not None and not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(f"{option}: the rate must be from 1mbit to 100gbit")
    if rtt is not None and not 0 <= rtt <= MAX_RTT:
        raise ValueError(f"{option}: the round trip must be at most 2s")
    return Link(rate, rtt or None)


def _rate_and_rtt(text: str, option: str) -> tuple[float | None, float | None]:
    """Bits/s and seconds; None: not in the text."""
    rate = rtt = None
    for part in text.lower().split(","):
        match = PART.fullmatch(part.strip())
        value, unit = (float(match[1]), match[2]) if match else (0.0, "")
        if unit in RATES and rate is None:
            rate = value * RATES[unit]
        elif unit in TIMES and rtt is None:
            rtt = value * TIMES[unit]
        else:
            raise ValueError(f"{option}: write a rate, a round trip or both, as 1gbit or 100mbit,20ms, or `unshaped`")
    return rate, rtt


LINK = "SCALADE_LINK"  # in a lab: the columns of the group "Link", as JSON


def link_columns(env: Mapping[str, str] = os.environ) -> dict[str, object]:
    """Of the shaped links between a lab's nodes; empty outside of a lab."""
    return json.loads(env[LINK]) if env.get(LINK) else {}
