"""The site profile: what a batch script needs to know of a cluster, in one TOML file that a group shares.

    scheduler = "slurm"
    partition = "gpu"
    gpus_per_node = 4
    modules = ["cuda/12.4"]

    [fabric]
    NCCL_SOCKET_IFNAME = "hsn0"

Everything in it is data and is quoted when it is written into a script, but for `pre_commands`: those are shell.
"""

from __future__ import annotations

import re
import sys
import tomllib
import types
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from ..host.launchers import LAUNCHERS
from ..study.errors import StudyError, shown, unknown
from ..study.parse import text_of

WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+/-]{0,127}")  # an account, a partition: it stands in a directive
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
MPIS = ("mpich", "openmpi")


@dataclass(frozen=True)
class Kubernetes:
    """The table [kubernetes]."""

    image: str = ""  # container image with scalade in it
    namespace: str = "default"  # where the objects are made
    volume_claim: str = ""  # persistent volume claim that all pods share; the results folder lies on it
    mount_path: str = "/data"  # where it is mounted
    jobset: bool = False  # one JobSet for all cases, in place of an Indexed Job and a Service for each
    service_account: str = ""  # of the pods; empty: the namespace's
    gpu_resource: str = "nvidia.com/gpu"  # what gpus_per_node asks for


@dataclass(frozen=True)
class Site:
    """A cluster as its users see it. Empty: not said in the script."""

    scheduler: str = ""  # name of the scheduler; --scheduler overrides it
    launcher: str = ""  # srun, torchrun or mpirun; empty: the study's, else the scheduler's usual one
    account: str = ""  # whom the time is charged to
    partition: str = ""  # partition or queue
    qos: str = ""  # Slurm's quality of service
    time_limit: str = ""  # of one job, as [days-]HH:MM:SS; empty: what its runs may take at most
    gpus_per_node: int = 0  # asked for on every node; 0: none
    ranks_per_node: int = 0  # 0: gpus_per_node, else 1
    cpus_per_rank: int = 0  # 0: not asked for, and ranks are not bound
    exclusive: bool = True  # no other job on the nodes: a shared node cannot be measured on
    signal_s: int = 60  # so long before the limit a job with checkpoints is told to end and goes back into the queue
    max_restarts: int = 20  # times a job goes back into the queue
    modules: tuple[str, ...] = ()  # `module load` each
    pre_commands: tuple[str, ...] = ()  # shell, run before everything else in the job, as it stands
    options: tuple[str, ...] = ()  # further directives, as "--constraint=a100"
    launcher_options: tuple[str, ...] = ()  # further options of srun, mpirun or flux run
    container: tuple[str, ...] = ()  # words in front of python, as ["apptainer", "exec", "--nv", "image.sif"]
    python: str = sys.executable  # that runs the ranks
    mpirun: str = ""  # path or name; empty: the one beside python
    mpi: str = ""  # mpich (Intel's and Cray's too) or openmpi; empty: as the mpirun here says
    environment: Mapping[str, str] = field(default_factory=lambda: types.MappingProxyType({}))
    fabric: Mapping[str, str] = field(default_factory=lambda: types.MappingProxyType({}))
    kubernetes: Kubernetes = Kubernetes()

    @property
    def per_node(self) -> int:
        """Ranks that a node takes."""
        return self.ranks_per_node or self.gpus_per_node or 1

    @property
    def time_limit_s(self) -> int | None:
        return parse_time(self.time_limit) if self.time_limit else None


def load_site(path: Path | None, schedulers: Collection[str]) -> Site:
    """The profile in a file; without one the profile of a cluster that needs none. schedulers: names that are allowed.

    Raises
    ------
    StudyError: the file cannot be read or holds a mistake; the text says where and what would be right
    """
    if path is None:
        return Site()
    try:
        content = tomllib.loads(text_of(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise StudyError(path, [f"not valid TOML: {error}"]) from None
    problems: list[str] = []
    site = Site(**_fields(Site, content, "", problems))
    problems = problems or _problems(site, schedulers)
    if problems:
        raise StudyError(path, problems)
    return site


def _fields(owner: type[Site | Kubernetes], table: dict[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    """Arguments of `owner` from a table of the file; what is of another type is left out and among the problems."""
    types_of = get_type_hints(owner)
    arguments: dict[str, Any] = {}
    for key, value in table.items():
        if key not in types_of:
            problems.append(f"{where}{shown(key)[1:-1]}: {unknown(key, types_of)}")
            continue
        field_value = _field_value(types_of[key], value, f"{where}{key}", problems)
        if field_value is not None:
            arguments[key] = field_value
    return arguments


def _field_value(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """The value as the field holds it; None where it is of another type, which is then among the problems."""
    if hint is Kubernetes and isinstance(value, dict):
        return Kubernetes(**_fields(Kubernetes, value, f"{where}.", problems))
    if get_origin(hint) is Mapping and isinstance(value, dict):
        return _strings(value, where, problems)
    if get_origin(hint) is tuple and isinstance(value, list) and all(isinstance(word, str) for word in value):
        return tuple(value)
    if type(value) is hint:
        return value
    expected = TYPE_NAMES[get_origin(hint) or hint]
    problems.append(f"{where} = {shown(value)}: must be {expected}")
    return None


TYPE_NAMES: dict[Any, str] = {
    Kubernetes: "a table",
    Mapping: "a table of strings",
    tuple: "a list of strings",
    int: "an integer",
    str: "a string",
    bool: "true or false",
}


def _strings(table: dict[str, Any], where: str, problems: list[str]) -> Mapping[str, str]:
    """A table of variables; an integer is taken as its digits."""
    for key, value in table.items():
        if not isinstance(value, str | int) or isinstance(value, bool):
            problems.append(f"{where}.{shown(key)[1:-1]} = {shown(value)}: must be a string")
    return types.MappingProxyType({key: str(value) for key, value in table.items()})


def _problems(site: Site, schedulers: Collection[str]) -> list[str]:
    """What is wrong with values of the right type."""
    return [
        *_wrong_names(site, schedulers),
        *_wrong_numbers(site),
        *_wrong_variables(site),
        *_wrong_options(site),
        *_zero_bytes(site),
    ]


def _wrong_names(site: Site, schedulers: Collection[str]) -> Iterator[str]:
    for name, allowed in (("scheduler", schedulers), ("launcher", LAUNCHERS), ("mpi", MPIS)):
        value = getattr(site, name)
        if value and value not in allowed:
            yield f"{name} = {shown(value)}: allowed are {', '.join(allowed)}"
    for name in ("account", "partition", "qos"):
        value = getattr(site, name)
        if value and not WORD.fullmatch(value):
            yield f"{name} = {shown(value)}: must be letters, digits and . _ : @ + / -"


def _wrong_numbers(site: Site) -> Iterator[str]:
    for name in ("gpus_per_node", "ranks_per_node", "cpus_per_rank", "signal_s", "max_restarts"):
        if getattr(site, name) < 0:
            yield f"{name} = {getattr(site, name)}: must be at least 0"
    if site.gpus_per_node and site.ranks_per_node > site.gpus_per_node:
        yield f"ranks_per_node = {site.ranks_per_node}: there are {site.gpus_per_node} GPUs on a node"
    if site.time_limit and parse_time(site.time_limit) is None:
        yield f"time_limit = {shown(site.time_limit)}: must be [days-]HH:MM:SS"
    if bool(site.mpirun) != bool(site.mpi):
        yield "mpirun and mpi: give both or none"


def _wrong_variables(site: Site) -> Iterator[str]:
    for table, variables in (("environment", site.environment), ("fabric", site.fabric)):
        for key, value in variables.items():
            if not VARIABLE.fullmatch(key):
                yield f"{table}.{shown(key)}: no name of an environment variable"
            if "\0" in value:
                yield f"{table}.{key}: no environment variable holds a zero byte"


def _wrong_options(site: Site) -> Iterator[str]:
    for option in site.options:
        if not option.startswith("-") or not option.isprintable():
            yield f'options: {shown(option)}: must be one printable option, as "--constraint=a100"'


def _zero_bytes(site: Site) -> Iterator[str]:
    commands = {
        "modules": site.modules,
        "container": site.container,
        "launcher_options": site.launcher_options,
        "python": (site.python,),
        "mpirun": (site.mpirun,),
    }
    for name, words in commands.items():
        if any("\0" in word for word in words):
            yield f"{name}: no command holds a zero byte"


def parse_time(text: str) -> int | None:
    """Seconds of `[days-]HH:MM:SS`; None: it is not of that form, or no time at all."""
    match = re.fullmatch(r"(?:(\d{1,3})-)?(\d{1,3}):([0-5]\d):([0-5]\d)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds or None


def clock(seconds: int) -> str:
    """HH:MM:SS, rounded up to whole minutes, as schedulers count."""
    minutes = -(-seconds // 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:00"
