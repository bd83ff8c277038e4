"""A wall clock that somebody sets: FAKE_CLOCK=WHEN:BY, in seconds, of the monotonic clock and of the wall clock."""

import time


def set_clock(text):
    """time.time and time.time_ns go by BY seconds more (or less) from WHEN on; monotonic clocks know nothing of it."""
    when, by_s = map(float, text.split(":"))
    real_s, real_ns = time.time, time.time_ns
    time.time = lambda: real_s() + (by_s if time.monotonic() >= when else 0.0)
    time.time_ns = lambda: real_ns() + (int(by_s * 1e9) if time.monotonic() >= when else 0)
