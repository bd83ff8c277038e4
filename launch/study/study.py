"""The study file: read, validated, expanded into cases, and pruned of what cannot run here, with the reason."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ...bench.data.spec import DataSpec
from ...bench.recipe import Recipe
from ...parallelism.engines import patches, unavailable
from ...parallelism.layout import Layout
from ...parallelism.predict.memory import GIB, memory_of_cases
from ...results.wording import count_of
from ..host import machine
from .case import Case
from .combine import combine, given
from .errors import StudyError, shown
from .parse import read
from .schema import Run

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # it names a folder
MOST_WARNINGS = 20  # that are printed
PROCESS_BYTES = 300 * 2**20  # resident set of a rank before it holds a model (CPython, torch, gloo; measured)


# Of a recipe, what decides neither whether a case can run nor what it needs.
UNSEEN = ("lr", "seed")
SEEN = operator.attrgetter(*(field.name for field in fields(Recipe) if field.name not in UNSEEN))


@dataclass(frozen=True, slots=True)
class PlannedCase:
    case: Case
    skip_reason: str | None  # None: it can run
    predicted_memory_bytes: int | None  # of the rank that needs most, without PROCESS_BYTES; None: no such layout


class RankLimit(NamedTuple):
    ranks: int | None  # a case may have; None: as many as it likes
    why: str


class Feasibility(NamedTuple):
    """Whether a case can run."""

    skip_reason: str | None  # None: it can
    predicted_memory_bytes: int | None


@dataclass(frozen=True)
class Study:
    """A valid study file. `all_cases`: each once, in the order of the file's sections."""

    name: str
    path: Path
    run: Run
    all_cases: tuple[Case, ...]

    @property
    def results(self) -> Path:
        """Folder of the table."""
        return Path(self.run.results or Path("scalade-results") / self.name)

    @cached_property
    def device(self) -> str:
        """cpu or cuda; `auto` as this machine has it."""
        return self.run.device if self.run.device != "auto" else "cuda" if machine.gpus() else "cpu"

    def threads_per_rank(self, one_host: bool = True) -> int:
        """CPU threads of each rank: the same in all cases, whose speeds could not be compared otherwise.

        one_host: all ranks of every case are started on this machine. Where they are not, 0 is given unless the study
        says more: each host shares its cores among its ranks.
        """
        if self.run.threads_per_rank or not one_host:
            return self.run.threads_per_rank
        most = machine.gpus() if self.device == "cuda" else self._most_ranks
        return max(1, machine.cores() // max(1, most))

    @cached_property
    def _most_ranks(self) -> int:
        """Of a case that this machine could run, whatever memory and packages there are today."""
        limit = self._rank_limit(None).ranks
        ranked = sorted((case for case, _ in self.alike), key=lambda case: -case.ranks)
        able = (case.ranks for case in ranked if (limit is None or case.ranks <= limit) and case.refusal() is None)
        return next(able, 1)

    @cached_property
    def alike(self) -> list[tuple[Case, list[int]]]:
        """One case for all that differ in nothing that is looked at before they run, with the places of all these."""
        places: dict[tuple, list[int]] = {}
        for place, case in enumerate(self.all_cases):
            parts = case.shape, case.data, case.layout, case.outer, case.measure  # which cases share
            places.setdefault((*map(id, parts), SEEN(case.recipe)), []).append(place)
        return [(self.all_cases[found[0]], found) for found in places.values()]

    def cases(self, world_size: int | None = None) -> list[PlannedCase]:
        """Every case, and for those that cannot run here the reason.

        world_size: ranks that are there (under torchrun or mpirun); None: what run.max_ranks and the machine offer.
        """
        limit, memory_bytes = self._rank_limit(world_size), self._memory_bytes()
        return self._planned(lambda case: self._feasibility(case, limit, memory_bytes(case.ranks)))

    def cases_elsewhere(self) -> list[PlannedCase]:
        """Every case, and for those that can run nowhere the reason: of this machine nothing is asked."""
        limit = RankLimit(self.run.max_ranks or None, f"run.max_ranks is {self.run.max_ranks}")
        return self._planned(lambda case: self._feasibility(case, limit, None, here=False))

    def _planned(self, feasibility_of: Callable[[Case], Feasibility]) -> list[PlannedCase]:
        found = [Feasibility(None, None)] * len(self.all_cases)
        for case, places in self.alike:
            feasibility = feasibility_of(case)
            for place in places:
                found[place] = feasibility
        return [PlannedCase(case, *feasibility) for case, feasibility in zip(self.all_cases, found, strict=True)]

    def warnings(self) -> list[str]:
        """What runs of this study will lack, one line for each kind with the number of its cases."""
        counts: Counter[str] = Counter()
        for case, places in self.alike:
            for line in case.warnings() if case.refusal() is None else ():
                counts[line] += len(places)
        lines = [f"{line} ({count_of(n, 'case')})" for line, n in counts.items()]
        more = len(lines) - MOST_WARNINGS
        return lines[:MOST_WARNINGS] + ([f"and {more} more of this kind, of other numbers"] if more > 0 else [])

    def _feasibility(self, case: Case, limit: RankLimit, memory_bytes: int | None, *, here: bool = True) -> Feasibility:
        """here: on this machine; else a case is refused only for what holds everywhere."""
        refusal = case.refusal()
        if refusal is not None:
            return Feasibility(refusal, None)
        need = self._needs[id(case)]
        obstacles = self._obstacles(case, limit, need, memory_bytes, here)
        return Feasibility(next(filter(None, obstacles), None), need)

    @cached_property
    def _needs(self) -> dict[int, int]:
        """id of one of `alike` that can run somewhere -> predicted bytes of the rank that needs most."""
        able = [case for case, _ in self.alike if case.refusal() is None]
        parts = [(case.shape, case.recipe, case.layout, case.outer) for case in able]
        found = memory_of_cases(parts, fused_norm=self.device == "cuda")
        return {id(case): int(memory.total) for case, memory in zip(able, found, strict=True)}

    def _obstacles(
        self, case: Case, limit: RankLimit, need: int, memory_bytes: int | None, here: bool
    ) -> Iterator[str | None]:
        """Why a case cannot run, one cause after the other; None: not for that. Looked for only until one is found."""
        yield _small_vocab(case)
        yield self._unavailable(case.layout)
        if case.recipe.start_weights and not Path(case.recipe.start_weights).is_file():
            yield f"recipe.start_weights = {shown(case.recipe.start_weights)}: there is no such file"
        if limit.ranks is not None and case.ranks > limit.ranks:
            yield f"needs {count_of(case.ranks, 'rank')}, {limit.why}"
        if self.run.isolation == "pool" and (change := disturbs(case)):
            yield f"run.isolation = 'pool': {change}; with 'fresh' it can run"
        if memory_bytes is not None:
            yield self._too_big(case.ranks, need, memory_bytes)
        if here:
            yield _unusable(case.data, case.shape.seq_len, case.measure.eval_sequences)

    def _unavailable(self, layout: Layout) -> str | None:
        """Looked for once: it reads the packages' folders."""
        if layout.engine not in self._missing:
            self._missing[layout.engine] = unavailable(layout)
        return self._missing[layout.engine]

    @cached_property
    def _missing(self) -> dict[str, str | None]:
        """engine -> why it cannot run here."""
        return {}

    def _too_big(self, ranks: int, need: int, memory_bytes: int) -> str | None:
        if self.device == "cuda":
            have, process, what = memory_bytes, 0, "of the GPU"
        else:  # under torchrun and mpirun other hosts may carry the other ranks: this one is known to carry one
            sharing = ranks if self.run.launcher == "local" else 1
            have, process = memory_bytes // sharing, PROCESS_BYTES
            what = f"of host memory for each of {count_of(sharing, 'rank')}"
        if need + process <= have:
            return None
        own = f" and {_size(process)} for its process" if process else ""
        return f"predicted to need {_size(need)} a rank{own}; there are {_size(have)} {what}"

    def _rank_limit(self, world_size: int | None) -> RankLimit:
        if world_size is not None and not 0 < self.run.max_ranks < world_size:
            return RankLimit(world_size, f"the world has {world_size}")
        if self.run.max_ranks:
            return RankLimit(self.run.max_ranks, f"run.max_ranks is {self.run.max_ranks}")
        if self.run.launcher != "local":
            return RankLimit(None, "")
        if self.device == "cuda":
            gpus = max(1, machine.gpus())
            return RankLimit(gpus, f"this machine has {gpus} GPUs")
        cores = machine.cores()
        return RankLimit(cores, f"this machine has {cores} cores (with run.max_ranks it would run all the same)")

    def _memory_bytes(self) -> Callable[[int], int | None]:
        """By the ranks of a case: the host's memory, or that of the smallest GPU that these ranks would use."""
        if self.device == "cpu" or self.run.device_memory_gib:
            known = machine.host_memory_bytes() if self.device == "cpu" else int(self.run.device_memory_gib * GIB)
            return lambda ranks: known
        here = self.run.launcher == "local"  # else another host may have the other ranks
        of = {n: machine.gpu_memory_bytes(n if here else None) for n in {case.ranks for case, _ in self.alike}}
        return of.__getitem__


def disturbs(case: Case) -> str | None:
    """What a case changes in its processes that a later one would find."""
    if what := patches(case.layout):
        return f"layout.engine = '{case.layout.engine}' replaces {what} for the whole process"
    if case.layout.compile:
        return "layout.compile keeps what it compiled in the process"
    return "outer.quorum lets ranks die" if case.outer.quorum else None


def load_study(path: str | Path) -> Study:
    """Read, validate and expand a study file.

    Raises
    ------
    StudyError: the file cannot be read or holds a mistake; the text says where and what would be right
    """
    path = Path(path)
    contents = read(path)
    file, problems = contents.file, list(contents.problems)
    name = file.name or path.stem
    if not NAME.fullmatch(name):
        where = "name" if file.name else "name (taken from the file's)"
        problems.append(f"{where} = {shown(name)}: must be letters, digits and . _ -, at most 64, the first no sign")
    settings: dict[str, Any] = {  # of the types that the section's model has checked
        key: tuple(value) if isinstance(value, list) else value for key, value in given(file.run).items()
    }
    run = Run(**settings)
    problems += run.problems()
    cases = combine(contents, run, problems, _vocab_of)
    if problems:
        raise StudyError(path, problems)
    return Study(name=name, path=path, run=run, all_cases=cases)


def _small_vocab(case: Case) -> str | None:
    vocab = _vocab_of(case.data)
    if case.shape.vocab >= vocab:
        return None
    what = f"vocab {case.shape.vocab} is smaller than the {vocab} of data.source {case.data.source}"
    return f"{what}; set model.vocab to {vocab} or more"


@lru_cache(maxsize=256)
def _unusable(data: DataSpec, seq_len: int, eval_sequences: int) -> str | None:
    from ...bench.data import unusable

    return unusable(data, seq_len, eval_sequences)


@lru_cache(maxsize=64)
def _vocab_of(data: DataSpec) -> int:
    from ...bench.data import vocab_of  # reads the source's header; only where a study is loaded

    return vocab_of(data)


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= 10 * GIB else f"{count / 2**20:.1f} MiB"
