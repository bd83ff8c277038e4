"""The study file: read, validated, expanded into cases, and pruned of what cannot run here, with the reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

from ..bench.mistakes import Mistake, Mistakes
from ..parallelism.engines import patches, unavailable
from ..parallelism.memory import GIB, predict
from . import machine
from .case import Case
from .errors import StudyError, dotted, nearest, shown
from .expand import Axis, Point, Tables, axes_of, expand, too_many
from .read import read, wrong_value
from .resolve import case_of, value_of
from .schema import ALTERNATIVES, KEYS, MODELS, Run, check_many

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # it names a folder
PROCESS_BYTES = 300 * 2**20  # resident set of a rank before it holds a model (CPython, torch, gloo; measured)


@dataclass(frozen=True)
class PlannedCase:
    case: Case
    skip_reason: str | None  # None: it can run
    predicted_memory_bytes: int | None  # of the rank that needs most, without PROCESS_BYTES; None: no such layout


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
        most = machine.gpus() if self.device == "cuda" else self._most_ranks()
        return max(1, machine.cores() // max(1, most))

    def _most_ranks(self) -> int:
        """Of a case that this machine could run, whatever memory and packages there are today."""
        limit, _ = self._rank_limit(None)
        ranked = sorted(self.all_cases, key=lambda case: -case.ranks)
        able = (case.ranks for case in ranked if (limit is None or case.ranks <= limit) and case.refusal() is None)
        return next(able, 1)

    def cases(self, world_size: int | None = None) -> list[PlannedCase]:
        """Every case, and for those that cannot run here the reason.

        world_size: ranks that are there (under torchrun or mpirun); None: what run.max_ranks and the machine offer.
        """
        limit, why = self._rank_limit(world_size)
        memory_bytes = self._memory_bytes()
        return [self._plan(case, limit, why, memory_bytes(case.ranks)) for case in self.all_cases]

    def cases_elsewhere(self) -> list[PlannedCase]:
        """Every case, and for those that can run nowhere the reason: of this machine nothing is asked."""
        limit = self.run.max_ranks or None
        return [self._plan(case, limit, f"run.max_ranks is {limit}", None, here=False) for case in self.all_cases]

    def warnings(self) -> list[str]:
        """What runs of this study will lack, one line for each kind with the number of its cases."""
        counts = Counter(line for case in self.all_cases if case.refusal() is None for line in case.warnings())
        return [f"{line} ({n} case{'s' * (n != 1)})" for line, n in counts.items()]

    def _plan(
        self, case: Case, limit: int | None, why: str, memory_bytes: int | None, here: bool = True
    ) -> PlannedCase:
        reason = case.refusal()
        if reason is not None:
            return PlannedCase(case, reason, None)
        need = predict(case.shape, case.recipe, case.layout, case.outer, fused_norm=self.device == "cuda").total
        vocab = _vocab_of(case.data)
        if case.shape.vocab < vocab:
            what = f"vocab {case.shape.vocab} is smaller than the {vocab} of data.source {case.data.source}"
            reason = f"{what}; set model.vocab to {vocab} or more"
        elif reason := unavailable(case.layout):
            pass
        elif case.recipe.start_weights and not Path(case.recipe.start_weights).is_file():
            reason = f"recipe.start_weights = {shown(case.recipe.start_weights)}: there is no such file"
        elif limit is not None and case.ranks > limit:
            reason = f"needs {case.ranks} ranks, {why}"
        elif self.run.isolation == "pool" and (what := disturbs(case)):
            reason = f"run.isolation = 'pool': {what}; with 'fresh' it can run"
        elif memory_bytes is not None:
            reason = self._too_big(case.ranks, need, memory_bytes)
        if reason is None and here:
            reason = _unusable(case.data, case.shape.seq_len, case.measure.eval_sequences)
        return PlannedCase(case, reason, need)

    def _too_big(self, ranks: int, need: int, memory_bytes: int) -> str | None:
        if self.device == "cuda":
            have, process, what = memory_bytes, 0, "of the GPU"
        else:  # under torchrun and mpirun other hosts may carry the other ranks: this one is known to carry one
            sharing = ranks if self.run.launcher == "local" else 1
            have, process = memory_bytes // sharing, PROCESS_BYTES
            what = f"of host memory for each of {sharing} ranks"
        if need + process <= have:
            return None
        own = f" and {_size(process)} for its process" if process else ""
        return f"predicted to need {_size(need)} a rank{own}; there are {_size(have)} {what}"

    def _rank_limit(self, world_size: int | None) -> tuple[int | None, str]:
        if world_size is not None and not 0 < self.run.max_ranks < world_size:
            return world_size, f"the world has {world_size}"
        if self.run.max_ranks:
            return self.run.max_ranks, f"run.max_ranks is {self.run.max_ranks}"
        if self.run.launcher != "local":
            return None, ""
        if self.device == "cuda":
            found = max(1, machine.gpus())
            return found, f"this machine has {found} GPUs"
        found = machine.cores()
        return found, f"this machine has {found} cores (with run.max_ranks it would run all the same)"

    def _memory_bytes(self) -> Callable[[int], int | None]:
        """By the ranks of a case: the host's memory, or that of the smallest GPU that these ranks would use."""
        if self.device == "cpu" or self.run.device_memory_gib:
            known = machine.host_memory_bytes() if self.device == "cpu" else int(self.run.device_memory_gib * GIB)
            return lambda ranks: known
        here = self.run.launcher == "local"  # else another host may have the other ranks
        of = {n: machine.gpu_memory_bytes(n if here else None) for n in {case.ranks for case in self.all_cases}}
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
    file, single, problems, unsure = contents.file, contents.single, list(contents.problems), set(contents.unsure)
    name = file.name or path.stem
    if not NAME.fullmatch(name):
        where = "name" if file.name else "name (taken from the file's)"
        problems.append(f"{where} = {shown(name)}: must be letters, digits and . _ -, at most 64, the first no sign")
    run = Run(**{key: tuple(value) if isinstance(value, list) else value for key, value in _given(file.run).items()})
    problems += run.problems()
    zips = [_pairs(table, _at("zip", i, single), problems, unsure) for i, table in enumerate(file.zip)]
    rules = [
        _pairs(table, _at("exclude", i, single), problems, unsure, lists=True) for i, table in enumerate(file.exclude)
    ]
    tables = {
        section: [
            {f"{section}.{key}": value for key, value in _given(table).items()}
            for table in (getattr(file, section) if section in ALTERNATIVES else [getattr(file, section)])
        ]
        for section in MODELS
        if section != "run"
    }
    if run.seeds:
        if "recipe.seed" in tables["recipe"][0]:
            problems.append("run.seeds and recipe.seed: give one of them")
        tables["recipe"][0] |= {"recipe.seed": list(run.seeds)}
    problems += _twice(zips, tables)
    if "zip" in unsure:
        zips, unsure = [], unsure | set(MODELS)
    zips, rules = [pairs for pairs in zips if pairs], [] if "exclude" in unsure else rules
    axes = _axes(zips, tables, problems)
    cases = _build(axes, rules, unsure, problems) if axes else ()
    if problems:
        raise StudyError(path, problems)
    return Study(name=name, path=path, run=run, all_cases=cases)


def _given(table: BaseModel) -> dict[str, object]:
    """What the file sets in a section, in the order of the section's keys, so that the cases' order is one."""
    return {key: getattr(table, key) for key in type(table).model_fields if key in table.model_fields_set}


def _at(section: str, index: int, single: set[str]) -> str:
    return section if section in single else f"{section}[{index}]"


def _pairs(
    table: Mapping, where: str, problems: list[str], unsure: set[str], lists: bool = False
) -> dict[str, list]:
    """A `zip` or (lists) `exclude` table as dotted key -> values; with a problem in it that section is unsure."""
    before = len(problems)
    pairs: dict[str, list] = {}
    for key, value in _flat(table).items():
        at = f"{where}.{dotted([key]) if key not in KEYS else key}"
        if key not in KEYS or KEYS[key].one_value:
            known = [name for name, one in KEYS.items() if not one.one_value]
            near = nearest(key, known)
            hint = f"unknown key; did you mean {near}?" if near else 'unknown key; keys are dotted, as in "layout.tp"'
            problems.append(f"{at}: {'[run] is one for the whole study' if key in KEYS else hint}")
            continue
        if not lists and not isinstance(value, list):
            problems.append(f"{at} = {shown(value)}: must be a list")
            continue
        try:
            checked = check_many(KEYS[key], value)
        except PydanticCustomError as error:
            problems.append(wrong_value(at, value, error.message(), error.context))
            continue
        pairs[key] = checked if isinstance(checked, list) else [checked]
    if not table:
        problems.append(f"{where}: must not be empty")
    lengths = {key: len(values) for key, values in pairs.items()}
    if not lists and len(set(lengths.values())) > 1:
        told = ", ".join(f"{key} has {n}" for key, n in lengths.items())
        problems.append(f"{where}: lists must be of equal length; {told}")
    if len(problems) > before:
        unsure.add("exclude" if lists else "zip")
    return pairs


def _flat(table: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested tables (unquoted dotted keys) as dotted names."""
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _twice(zips: list[dict[str, list]], tables: dict[str, list[dict]]) -> list[str]:
    seen, problems = {key for section in tables.values() for table in section for key in table}, []
    for pairs in zips:
        twice = [key for key in pairs if key in seen]
        problems += [f"{key}: set twice, the second time in zip" for key in twice]
        seen |= set(pairs)
        for key in twice:
            del pairs[key]
    return problems


def _axes(zips: list[dict[str, list]], tables: dict[str, list[dict]], problems: list[str]) -> list[Axis]:
    """What multiplies, slowest first; nothing is built where there would be too many."""
    alternatives = {section: Tables(section, tuple(tables[section] or [{}])) for section in ALTERNATIVES}
    single = {key: value for section, (table, *_) in _single(tables) for key, value in table.items()}
    counts = {" + ".join(pairs): len(next(iter(pairs.values()))) for pairs in zips}
    counts |= {key: len(value) for key, value in single.items() if isinstance(value, list)}
    counts |= {section: len(found) for section, found in alternatives.items()}
    message = too_many(counts)
    if message:
        problems.append(message)
        return []
    zipped = [
        Axis("zip", tuple(dict(zip(pairs, values, strict=True)) for values in zip(*pairs.values(), strict=True)))
        for pairs in zips
    ]
    axes = zipped + axes_of(single) + [found.axis() for found in alternatives.values()]
    assert prod(len(axis.points) for axis in axes) == prod(counts.values())
    return axes


def _single(tables: dict[str, list[dict]]) -> list[tuple[str, list[dict]]]:
    return [(section, found) for section, found in tables.items() if section not in ALTERNATIVES]


def _build(
    axes: list[Axis], rules: list[dict[str, list]], unsure: set[str], problems: list[str]
) -> tuple[Case, ...]:
    """The cases of all points, each once. A value that makes no case at all is the file's mistake.

    unsure: sections of which something could not be read: a mistake that hangs on a key which is not given there, or
    which a rule might have excluded, is not told
    """
    cases: dict[str, Case] = {}
    wrong: Counter[tuple[str, bool]] = Counter()  # (line, is in one table of an array) -> cases
    points = 0
    for point in expand(axes, rules, value_of):
        points += 1
        try:
            case = case_of(point, _vocab_of)
        except Mistakes as error:
            sure = [
                mistake for mistake in error.found
                if all(key in point or key.partition(".")[0] not in unsure for key in mistake.keys)
            ]  # fmt: skip
            wrong.update(dict.fromkeys((_numbered(mistake, point) for mistake in sure), 1))
        else:
            cases.setdefault(case.case_id, case)
    for (line, in_table), count in wrong.items():
        if count == points or in_table:
            problems.append(line)
        elif "exclude" not in unsure:
            problems.append(f"{line} (in {count} of {points} cases; drop these with [[exclude]])")
    if not points and not problems:
        problems.append("exclude leaves no case")
    return tuple(cases.values())


def _numbered(mistake: Mistake, point: Point) -> tuple[str, bool]:
    """`layout.tp = 0: ...` with the number of the table it is in, and whether it is in one of several."""
    section = mistake.keys[0].partition(".")[0]
    number = point.get(f"{section}#")
    return (mistake.line, False) if number is None else (f"{section}[{number}]{mistake.line[len(section):]}", True)


@lru_cache(maxsize=256)
def _unusable(data: object, seq_len: int, eval_sequences: int) -> str | None:
    from ..bench.data import unusable

    return unusable(data, seq_len, eval_sequences)


@lru_cache(maxsize=64)
def _vocab_of(data: object) -> int:
    from ..bench.data import vocab_of  # reads the source's header; only where a study is loaded

    return vocab_of(data)


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= 10 * GIB else f"{count / 2**20:.1f} MiB"
