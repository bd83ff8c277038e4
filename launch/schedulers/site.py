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
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_origin, get_type_hints

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
    environment: types.MappingProxyType[str, str] = field(default_factory=lambda: types.MappingProxyType({}))
    fabric: types.MappingProxyType[str, str] = field(default_factory=lambda: types.MappingProxyType({}))
    kubernetes: Kubernetes = Kubernetes()

    @property
    def per_node(self) -> int:
        """Ranks that a node takes."""
        return self.ranks_per_node or self.gpus_per_node or 1

    @property
    def time_limit_s(self) -> int | None:
        return parse_time(self.time_limit) if self.time_limit else None


def load_site(path: Path | None) -> Site:
    """The profile in a file; without one the profile of a cluster that needs none.

    Raises
    ------
    StudyError: the file cannot be read or holds a mistake; the text says where and what would be right
    """
    if path is None:
        return Site()
    try:
        raw = tomllib.loads(text_of(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise StudyError(path, [f"not valid TOML: {error}"]) from None
    problems: list[str] = []
    given = _table(Site, raw, "", problems)
    if not problems:
        problems = _problems(replace(Site(), **given))
    if problems:
        raise StudyError(path, problems)
    return replace(Site(), **given)


def _table(owner: type, raw: dict[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    hints, given = get_type_hints(owner), {}
    known = [f.name for f in fields(owner)]
    for key, value in raw.items():
        if key not in known:
            problems.append(f"{where}{shown(key)[1:-1]}: {unknown(key, known)}")
            continue
        wanted = _wanted(hints[key], value, f"{where}{key}", problems)
        if wanted is not None:
            given[key] = wanted
    return given


def _wanted(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """The value as the field holds it; None where it is of another kind, which is then among the problems."""
    if hint is Kubernetes:
        if isinstance(value, dict):
            return Kubernetes(**_table(Kubernetes, value, f"{where}.", problems))
        kind = "a table"
    elif get_origin(hint) is types.MappingProxyType:
        if isinstance(value, dict):
            wrong = [key for key, each in value.items() if not isinstance(each, str | int) or isinstance(each, bool)]
            problems += [f"{where}.{shown(key)[1:-1]} = {shown(value[key])}: must be a string" for key in wrong]
            return types.MappingProxyType({key: str(each) for key, each in value.items()})
        kind = "a table of strings"
    elif get_origin(hint) is tuple:
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return tuple(value)
        kind = "a list of strings"
    elif type(value) is hint:
        return value
    else:
        kind = {int: "an integer", str: "a string", bool: "true or false"}[hint]
    problems.append(f"{where} = {shown(value)}: must be {kind}")
    return None


def _problems(site: Site) -> list[str]:
    from ..host.launchers import LAUNCHERS
    from . import SCHEDULERS

    found = []
    choices = {"scheduler": tuple(SCHEDULERS), "launcher": tuple(LAUNCHERS), "mpi": MPIS}
    for name, allowed in choices.items():
        if getattr(site, name) and getattr(site, name) not in allowed:
            found.append(f"{name} = {shown(getattr(site, name))}: allowed are {', '.join(allowed)}")
    for name in ("account", "partition", "qos"):
        if getattr(site, name) and not WORD.fullmatch(getattr(site, name)):
            found.append(f"{name} = {shown(getattr(site, name))}: must be letters, digits and . _ : @ + / -")
    for name in ("gpus_per_node", "ranks_per_node", "cpus_per_rank", "signal_s", "max_restarts"):
        if getattr(site, name) < 0:
            found.append(f"{name} = {getattr(site, name)}: must be at least 0")
    if site.gpus_per_node and site.ranks_per_node > site.gpus_per_node:
        found.append(f"ranks_per_node = {site.ranks_per_node}: there are {site.gpus_per_node} GPUs on a node")
    if site.time_limit and parse_time(site.time_limit) is None:
        found.append(f"time_limit = {shown(site.time_limit)}: must be [days-]HH:MM:SS")
    if bool(site.mpirun) != bool(site.mpi):
        found.append("mpirun and mpi: give both or none")
    for name in ("environment", "fabric"):
        for key, value in getattr(site, name).items():
            if not VARIABLE.fullmatch(key):
                found.append(f"{name}.{shown(key)}: no name of an environment variable")
            if "\0" in value:
                found.append(f"{name}.{key}: no environment variable holds a zero byte")
    for option in site.options:
        if not option.startswith("-") or not option.isprintable():
            found.append(f'options: {shown(option)}: must be one printable option, as "--constraint=a100"')
    for name in ("modules", "container", "launcher_options", "python", "mpirun"):
        value = getattr(site, name)
        if any("\0" in word for word in ([value] if isinstance(value, str) else value)):
            found.append(f"{name}: no command holds a zero byte")
    return found


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
