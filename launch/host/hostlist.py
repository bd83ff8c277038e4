"""The short forms in which schedulers write lists: `n[1-3,07],gpu-a` for hosts, `2(x3),1` for counts."""

from __future__ import annotations

import re

MOST = 1_000_000  # hosts or tasks: no machine has more


def expand_hosts(text: str) -> list[str]:
    """Every host of a Slurm or Flux host list, in its order.

    Raises
    ------
    ValueError: brackets do not match, a range is none or runs backwards, a name holds a space, or MOST are exceeded
    """
    hosts: list[str] = []
    for part in _split(text):
        opened = part.find("[")
        if opened < 0:
            hosts.append(part)
            continue
        closed = part.find("]", opened)
        tails = expand_hosts(part[closed + 1 :]) or [""]
        numbers = _numbers(part[opened + 1 : closed], text)
        if len(numbers) * len(tails) + len(hosts) > MOST:
            raise ValueError(f"not a host list: {text!r}: it is more than {MOST:,} hosts")
        hosts += [part[:opened] + number + tail for number in numbers for tail in tails]
    return hosts


def _split(text: str) -> list[str]:
    """At the commas outside of brackets."""
    if not re.fullmatch(r"[^\[\]]*(\[[^\[\]]*\][^\[\]]*)*", text):
        raise ValueError(f"not a host list: {text!r}")
    parts = [part.strip() for part in re.split(r",(?![^\[]*\])", text)]
    if any(re.search(r"\s", re.sub(r"\[.*?\]", "", part)) for part in parts):
        raise ValueError(f"not a host list: {text!r}: a name holds no space")
    return [part for part in parts if part]


def _numbers(ranges: str, text: str) -> list[str]:
    numbers = []
    for piece in ranges.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", piece.strip())
        if match is None:
            raise ValueError(f"not a host list: {text!r}")
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first):
            raise ValueError(f"not a host list: {text!r}: {piece.strip()} runs backwards")
        if int(last) - int(first) >= MOST:
            raise ValueError(f"not a host list: {text!r}: {piece.strip()} is more than {MOST:,} hosts")
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers


def expand_counts(text: str) -> list[int]:
    """`2(x3),1` as [2, 2, 2, 1]: how many tasks each node of a Slurm step has.

    Raises
    ------
    ValueError: it is not of that form
    """
    counts: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", piece.strip())
        if match is None:
            raise ValueError(f"not counts per node: {text!r}")
        if len(counts) + int(match[2] or 1) > MOST:
            raise ValueError(f"not counts per node: {text!r}: it is more than {MOST:,} nodes")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
