"""A random order that needs no memory: keyed permutations of range(n) for any n, and the hash they are made of.

The permutation is a generalised Feistel network (Black & Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): with
a * b >= n, a number x = left * b + right is mixed by alternating
    left  = (left  + F(right)) mod a,    right = (right + F(left)) mod b,
each of which can be undone; results outside range(n) are sent through again until they fall inside (cycle walking).
F is the finaliser of splitmix64 (Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import numpy as np

GAMMA = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's odd increment, 2^64 over the golden ratio
ROUNDS = 6


def key(*parts: object) -> int:
    """A 64-bit key of the parts' text (so that 3 and numpy's 3 agree); different parts give unrelated keys."""
    return int.from_bytes(hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest(), "little")


def mix64(x: np.ndarray) -> np.ndarray:
    """A uint64 array hashed element by element (a bijection of 64 bits)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(index: np.ndarray, n: int, order: int) -> np.ndarray:
    """Where each of `index` (integers in range(n)) goes in the permutation of range(n) with key `order`. int64."""
    if not len(index):
        return np.empty(0, np.int64)
    network = _network(n, order)
    place = _rounds(np.asarray(index, np.uint64), *network)
    while (outside := np.flatnonzero(place >= n)).size:
        place[outside] = _rounds(place[outside], *network)
    return place.astype(np.int64)


@lru_cache(maxsize=16)
def _network(n: int, order: int) -> tuple[np.uint64, np.uint64, list[np.uint64]]:
    a = math.isqrt(n - 1) + 1  # ceil(sqrt(n)), so that a * b - n < a: almost no index walks
    return np.uint64(a), np.uint64(-(-n // a)), [np.uint64(key(order, i)) for i in range(ROUNDS)]


def _rounds(x: np.ndarray, a: np.uint64, b: np.uint64, keys: list[np.uint64]) -> np.ndarray:
    left: np.ndarray = x // b
    right: np.ndarray = x % b
    for i, k in enumerate(keys):
        if i % 2 == 0:
            left = (left + mix64(right ^ k) % a) % a
        else:
            right = (right + mix64(left ^ k) % b) % b
    return left * b + right
