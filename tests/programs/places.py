"""Where things lie, for tests and their helper programs."""

from pathlib import Path

PROGRAMS = Path(__file__).resolve().parent
TESTS = PROGRAMS.parent
ROOT = TESTS.parent  # of the checkout
GOLDEN = TESTS / "golden"
