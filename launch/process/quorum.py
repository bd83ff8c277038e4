"""With `outer.quorum`: whether a run goes on without the replicas that it has lost; its supervisors decide by this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..study.case import Case
from ..study.comm_case import CommCase


@dataclass(frozen=True)
class Quorum:
    """Replica m has the ranks m n to m n + n - 1. Replica 0 cannot be missing."""

    needed: int
    replicas: int
    ranks: int  # n

    @classmethod
    def of(cls, case: Case | CommCase) -> Quorum | None:
        """None: every replica has to stay."""
        if isinstance(case, CommCase) or not case.outer.quorum:
            return None
        return cls(case.outer.quorum, case.outer.replicas, case.layout.ranks)

    def replica(self, rank: int) -> int:
        return rank // self.ranks

    def lost(self, codes: Mapping[int, int | None]) -> set[int]:
        """Replicas of which a rank failed. codes: exit statuses by rank, None: it runs."""
        return {self.replica(rank) for rank, code in codes.items() if code}

    def stands(self, lost: set[int]) -> bool:
        return 0 not in lost and self.replicas - len(lost) >= self.needed

    def first_is_done(self, codes: Mapping[int, int | None]) -> bool:
        """Whether all of replica 0's ranks exited with 0: the run is done, whatever the others did."""
        return all(codes.get(rank, -1) == 0 for rank in range(self.ranks))

    def too_few(self, lost: set[int]) -> str:
        """What to add to the reason; nothing where it is replica 0 that failed."""
        left = self.replicas - len(lost)
        return "" if 0 in lost else f"{left} of {self.replicas} replicas left, the quorum is {self.needed}"
