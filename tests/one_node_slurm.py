"""A Slurm of one node in a folder: munged, slurmctld and slurmd without systemd. Needs root and Debian's packages."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")

CONFIGURATION = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={first}
SlurmdPort={second}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=1,sched_min_interval=100000
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why it cannot be started here; empty where it can."""
    if os.name != "posix" or os.getuid() != 0:
        return "needs root"
    absent = [name for name in PROGRAMS if not _found(name)]
    return f"{', '.join(absent)} not installed (apt-get install munge slurmctld slurmd)" if absent else ""


class OneNodeSlurm:
    """Starts in ``folder``; ``environment`` is what its clients need."""

    def __init__(self, folder: Path, cpus: int = 2):
        self.folder, self.processes = folder, []
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        folder.chmod(0o755)
        first, second = _free_ports(2)
        host = socket.gethostname().split(".")[0]
        path = folder / "slurm.conf"
        path.write_text(CONFIGURATION.format(folder=folder, host=host, first=first, second=second, cpus=cpus))
        self.environment = os.environ | {"SLURM_CONF": str(path)}
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
        self._start("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket", *files)
        self._wait(lambda: (folder / "munge.socket").exists())
        self.controller = self._start("slurmctld", "-D", "-i", "-f", str(path))
        self._start("slurmd", "-D", "-f", str(path), "-N", host)
        self._wait(lambda: "idle" in self.call("sinfo", "--noheader", "--format=%T"))

    def call(self, *command: str) -> str:
        """What a client of Slurm prints."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60).stdout

    @contextmanager
    def without_controller(self) -> Iterator[None]:
        """No client gets an answer; tasks go on, and what is queued is there again afterwards."""
        self.controller.terminate()
        self.controller.wait(timeout=20)
        yield
        self.controller = self._start("slurmctld", "-D", "-f", self.environment["SLURM_CONF"])
        self._wait(lambda: self.call("sinfo", "--noheader", "--format=%T").strip())

    def stop(self) -> None:
        self.call("scancel", "--user=root", "--signal=KILL")
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.out").open("w") as output:
            command = [_found(name), *arguments]
            process = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )
        self.processes.append(process)
        return process

    def _wait(self, condition, seconds: float = 60) -> None:
        ends = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > ends:
                logs = [path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.[lo]*")]
                self.stop()
                raise TimeoutError("Slurm did not start: " + "\n".join(logs))
            time.sleep(0.2)


def _found(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
