"""A real SLURM of two nodes on this machine: munged, slurmctld and two slurmd in one folder.

Nothing outside the folder is read or changed, and `stop` ends exactly the processes that it
started. The nodes are called 127.0.0.1 and 127.0.0.2, because JAX connects to the first node by its
name and these need no entry in /etc/hosts. Ports, sockets and keys are its own, so several clusters
may run side by side.
"""

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
NODES = ("127.0.0.1", "127.0.0.2")

CONFIGURATION = """
ClusterName=walk
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=20
KillWait=30
MinJobAge=86400
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=walk Nodes={names} Default=YES PriorityTier=1 GraceTime=30 State=UP
PartitionName=urgent Nodes={names} PriorityTier=10 State=UP
"""


def missing() -> list[str]:
    """The programs that this machine lacks."""
    return [name for name in PROGRAMS if not find(name)]


def find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


class Cluster:
    """Two nodes; each has two cores and `gpus` files that SLURM takes for GPUs.

    A job in the partition `urgent` preempts those in `walk`, the default.
    """

    def __init__(self, folder: Path, gpus: int = 0):
        self.folder = folder
        folder.mkdir(mode=0o755, parents=True)
        (folder / "state").mkdir()
        ports = free_ports(3)
        host = socket.gethostname()
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr={name} Port={port} CPUs=2 State=UNKNOWN"
            + (f" Gres=gpu:{gpus}" if gpus else "")
            for name, port in zip(NODES, ports[1:], strict=True)
        ]
        configuration = folder / "slurm.conf"
        configuration.write_text(
            CONFIGURATION.format(
                host=host,
                ports=ports,
                user=getpass.getuser(),
                folder=folder,
                nodes="\n".join(nodes),
                names=",".join(NODES),
            )
        )
        if gpus:
            for number in range(gpus):
                (folder / f"gpu{number}").touch()
            (folder / "gres.conf").write_text(
                f"Name=gpu Flags=nvidia_gpu_env File={folder}/gpu[0-{gpus - 1}]\n"
            )
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM", "SBATCH", "SRUN"))
        } | {"SLURM_CONF": str(configuration)}
        self.daemons: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "Cluster":
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        try:
            self._start(
                "munged",
                "--foreground",
                "--force",  # the folder above may be writable by all, as /tmp is
                f"--key-file={key}",
                f"--socket={self.folder}/munge.socket",
                f"--pid-file={self.folder}/munged.pid",
                f"--log-file={self.folder}/munged.log",
                f"--seed-file={self.folder}/munged.seed",
            )
            self.await_(lambda: (self.folder / "munge.socket").exists(), "munged", 30)
            configuration = self.environment["SLURM_CONF"]
            self._start("slurmctld", "-D", "-f", configuration)
            for name in NODES:
                self.start_node(name)
            self.await_(lambda: self.states() == {"idle"}, "two idle nodes", 60)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def _start(self, program: str, *arguments: str, name: str | None = None) -> None:
        with open(self.folder / f"{name or program}.out", "ab") as out:
            self.daemons[name or program] = subprocess.Popen(
                [find(program), *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.folder,
            )

    def start_node(self, name: str) -> None:
        self._start("slurmd", "-D", "-N", name, "-f", self.environment["SLURM_CONF"], name=name)

    def stop(self) -> None:
        """End the jobs, then the daemons, the last one first."""
        if "slurmctld" in self.daemons:
            self.call("scancel", "--signal=KILL", "--full", "--state=RUNNING")
            self.call("scancel", "--state=PENDING")
            deadline = time.monotonic() + 20
            while self.call("squeue", "-h").stdout.strip() and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self.daemons = {}

    def call(self, program: str, *arguments, **environment) -> subprocess.CompletedProcess:
        return subprocess.run(
            [program, *map(str, arguments)],
            env=self.environment | environment,
            cwd=self.folder,
            text=True,
            capture_output=True,
            timeout=60,
        )

    def states(self) -> set[str]:
        """Of all nodes."""
        return set(self.call("sinfo", "-h", "-N", "-o", "%t").stdout.split())

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        shown = self.call("scontrol", "--oneliner", "show", "job", number).stdout
        return dict(part.split("=", 1) for part in shown.split() if "=" in part)

    def await_(self, condition, what: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = "".join(
                    f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
                    for path in sorted(self.folder.glob("*.log"))
                    + sorted(self.folder.glob("*.out"))
                )
                raise AssertionError(f"Waited {seconds:g} seconds in vain for {what}.\n{logs}")
            time.sleep(0.1)
