"""A real Slurm in a temporary folder: slurmctld and four slurmd, each with a host name of its own.

    with Cluster(folder) as cluster:
        cluster.run("sinfo")

Needs root, the packages `slurmctld slurmd slurm-client` and no systemd. Every daemon lives in a UTS and a mount
namespace of its own in which /etc/hosts names the four nodes, so that what runs on a "node" sees that node's name.
Nothing outside the folder is written; all is stopped by pid file.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path

NODES = ("n1", "n2", "n3", "n4")
DATABASE = ("slurmdbd", "sacctmgr", "mariadbd", "mariadb", "mariadb-install-db")
NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "unshare")
ACCOUNTING = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}"""
DBD_CONFIG = """
AuthType=auth/none
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=accounting
PidFile={folder}/run/dbd.pid
LogFile={folder}/log/dbd.log
"""
USER = "create user slurm@'%' identified by 'slurm'; grant all on accounting.* to slurm@'%';"
CONFIG = """
ClusterName=loop
SlurmctldHost=ctl(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
TmpFS={folder}/tmp/%n
SlurmctldPidFile={folder}/run/ctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/ctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
{accounting}
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
MpiDefault=none
ReturnToService=2
SlurmdTimeout={slurmd_timeout}
SlurmctldTimeout=30
OverTimeLimit=0
MaxArraySize={most_tasks}
KillWait=2
SlurmdParameters=config_overrides
NodeName=n[1-4] NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing(accounting: bool = False) -> str | None:
    """Why no Slurm can be started here, in words; None: it can."""
    absent = [name for name in (*NEEDED, *(DATABASE if accounting else ())) if shutil.which(name) is None]
    if absent:
        packages = "slurmctld slurmd slurm-client" + " slurmdbd mariadb-server" * accounting
        return f"no {', '.join(absent)} here (apt-get install {packages})"
    if os.geteuid() != 0:
        return "starting Slurm needs root"
    tried = subprocess.run(["unshare", "--uts", "--mount", "hostname", "n1"], capture_output=True, text=True)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


class Cluster:
    """Started by `with`; `env` is what its clients need.

    accounting: with slurmdbd and a MariaDB of its own, so that sacct has something to say
    slurmd_timeout: s, after which a node that does not answer is down
    most_tasks: MaxArraySize
    cpus: of each node, as Slurm is told
    """

    def __init__(
        self, folder: Path, accounting: bool = False, slurmd_timeout: int = 30, most_tasks: int = 1001, cpus: int = 2
    ) -> None:
        self.folder, self.accounting = folder, accounting
        for name in ("state", "spool", "tmp", "run", "log"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for node in NODES:
            (folder / "tmp" / node).mkdir(exist_ok=True)
            (folder / "spool" / node).mkdir(exist_ok=True)
        (folder / "hosts").write_text("\n".join(f"127.0.0.1 {name}" for name in ("localhost", "ctl", *NODES)) + "\n")
        port = self.port = _free_ports(3 + len(NODES))
        (folder / "slurmdbd.conf").write_text(DBD_CONFIG.format(folder=folder, port=port + 5, database_port=port + 6))
        (folder / "slurmdbd.conf").chmod(0o600)
        kind = ACCOUNTING.format(port=port + 5) if accounting else "AccountingStorageType=accounting_storage/none"
        config = CONFIG.format(
            folder=folder,
            port=port,
            first=port + 1,
            last=port + len(NODES),
            accounting=kind,
            slurmd_timeout=slurmd_timeout,
            most_tasks=most_tasks,
            cpus=cpus,
        )
        (folder / "slurm.conf").write_text(config.lstrip())
        self.env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> Cluster:
        try:
            if self.accounting:
                self._start_accounting()
            self.start_controller("-c")
            for node in NODES:
                self._start(node, ["slurmd", "-N", node])
            self.wait(lambda: self.run("sinfo", "-h", "-o", "%t %D").strip() == "idle 4", 30, "four idle nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._pid("ctld"):
            with suppress(subprocess.SubprocessError):
                self.run("scancel", "--user", "root", timeout=10)
                self.wait(lambda: not self.run("squeue", "-h").strip(), 10, "an empty queue")
        self.stop(*(f"slurmd.{node}" for node in NODES), "ctld")
        for name in ("dbd", "db"):
            self.stop(name)

    def _start_accounting(self) -> None:
        data, socket_file = self.folder / "db", self.folder / "run" / "db.sock"
        own = ["--no-defaults", f"--datadir={data}", "--user=root"]
        made = ["mariadb-install-db", *own, "--skip-test-db", "--auth-root-authentication-method=normal"]
        subprocess.run(made, check=True, capture_output=True, timeout=120)
        with open(self.folder / "log" / "db.log", "w") as log:
            subprocess.Popen(
                [
                    "mariadbd",
                    *own,
                    f"--socket={socket_file}",
                    f"--port={self.port + 6}",
                    "--bind-address=127.0.0.1",
                    f"--pid-file={self.folder}/run/db.pid",
                    "--innodb-log-file-size=16M",
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        ask = ["mariadb", "--no-defaults", f"--socket={socket_file}", "-e"]
        self.wait(lambda: self.run(*ask, "select 1"), 60, "the database")
        self.run(*ask, USER)
        subprocess.run(["slurmdbd"], env=self.env, check=True, timeout=30)
        self.wait(lambda: self.run("sacctmgr", "-i", "add", "cluster", "loop"), 60, "slurmdbd")

    def start_controller(self, *options: str) -> None:
        self._start("ctl", ["slurmctld", *options])

    def stop(self, *names: str) -> None:
        """End the daemons with these pid files, and wait until they have gone."""
        pids = {pid for name in names if (pid := self._pid(name))}
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + 10
            while pids and time.monotonic() < deadline:
                pids = {pid for pid in pids if _signalled(pid, number)}
                time.sleep(0.1)
        for name in names:
            (self.folder / "run" / f"{name}.pid").unlink(missing_ok=True)

    def crash(self, node: str) -> None:
        """Every process of the node is gone at once, slurmd first: power loss."""
        own = os.readlink(f"/proc/{self._pid(f'slurmd.{node}')}/ns/uts")
        while left := [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _uts(pid) == own]:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def power_on(self, node: str) -> None:
        """The node that crashed boots."""
        (self.folder / "run" / f"slurmd.{node}.pid").unlink(missing_ok=True)
        self._start(node, ["slurmd", "-N", node, "-b"])

    def run(self, *command: str, timeout: float = 30) -> str:
        """A client's output. Raises CalledProcessError."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=timeout)
        if done.returncode:
            raise subprocess.SubprocessError(f"{command}: {done.stderr.strip()}")
        return done.stdout

    def wait(self, true, timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            with suppress(subprocess.SubprocessError):
                if true():
                    return
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}\n{self.story()}"
            time.sleep(0.3)

    def story(self) -> str:
        """The nodes' states and what the controller said last, for a failing test."""
        log = self.folder / "log" / "ctld.log"
        nodes = "no answer of sinfo"
        with suppress(subprocess.SubprocessError):
            nodes = self.run("sinfo", "-h", "-N", "-o", "%N is %T")
        lines = log.read_text(errors="replace").splitlines()[-25:] if log.exists() else []
        return "\n".join([nodes.strip(), *lines])

    def _start(self, host: str, command: list[str]) -> None:
        script = 'hostname "$1"; mount --bind "$2" /etc/hosts; shift 2; exec "$@"'
        prefix = ["unshare", "--uts", "--mount", "sh", "-euc", script, "sh", host, str(self.folder / "hosts")]
        subprocess.run([*prefix, *command], env=self.env, check=True, timeout=30, stdout=subprocess.DEVNULL)

    def _pid(self, name: str) -> int:
        try:
            return int((self.folder / "run" / f"{name}.pid").read_text())
        except (OSError, ValueError):
            return 0


def _signalled(pid: int, number: int) -> bool:
    """Whether the process was there to get the signal."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def _uts(pid: int) -> str:
    """The host name's namespace that a process lives in; empty: it is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/uts") if _state(pid) != "Z" else ""
    except OSError:
        return ""


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]


def _free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on, below those that the kernel gives out by itself."""
    for first in range(17000 + os.getpid() % 1000 * 10, 32000, count):
        with suppress(OSError), ExitStack() as kept:
            for port in range(first, first + count):
                kept.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("no free ports")
