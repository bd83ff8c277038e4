"""All mistakes in the settings of one part of a study, each with the keys that it depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """One mistake. The line begins with the first key, where it is about one that is given."""

    keys: tuple[str, ...]  # dotted
    line: str


class Mistakes(ValueError):
    """Its text is the lines of all."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.found = tuple(mistakes)
        super().__init__("\n".join(mistake.line for mistake in mistakes))


class Finder:
    """Collects the mistakes of one section of a study."""

    def __init__(self, section: str) -> None:
        self.section, self.found = section, list[Mistake]()

    def add(self, names: str, line: str) -> None:
        """names: keys of the section, with spaces; line: without the section's name"""
        self.found.append(Mistake(tuple(f"{self.section}.{name}" for name in names.split()), f"{self.section}.{line}"))

    def wrong(self, name: str) -> bool:
        """Whether a mistake hangs on that key."""
        return any(f"{self.section}.{name}" in mistake.keys for mistake in self.found)

    def done(self) -> None:
        """Raises Mistakes where there are any."""
        if self.found:
            raise Mistakes(self.found)
