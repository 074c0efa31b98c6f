"""Scripts and training commands as several processes of one job, started by local_processes.sh."""

import subprocess
import sys
from pathlib import Path

from tiny_system import EXPERTS

from pemt_jax.common.errors import PeerLost
from pemt_jax.training.metrics_log import read_metrics

LAUNCH = Path(__file__).parents[2] / "launch" / "local_processes.sh"
LOST = PeerLost.exit_code
# No evaluation: one step to compile.
QUICK = {"MIXTURE_OR_TASK_NAME": "tiny_train_only", "train.save_every": 2}


def run_twice(world, script: str, *arguments) -> subprocess.CompletedProcess:
    """Run the Python text `script` in both, with the environment of a tiny_system.World."""
    command = [LAUNCH, "--processes", "2", "--", sys.executable, "-P", "-c", script, *arguments]
    return subprocess.run(
        [str(part) for part in command],
        env=world.environment() | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )


class Job:
    """A command as several processes; `finish` gives the launcher's exit code and stderr."""

    def __init__(self, world, number: int, *arguments, devices: int = 1, **environment):
        command = [
            LAUNCH,
            "--processes",
            number,
            "--devices",
            devices,
            "--",
            sys.executable,
            *arguments,
        ]
        # The launcher sets the number of devices.
        environment = world.environment() | {"XLA_FLAGS": ""} | environment
        self.process = subprocess.Popen(
            [str(part) for part in command],
            env=environment,
            cwd=world.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def finish(self, timeout: float = 500) -> tuple[int, str]:
        self.stdout, stderr = self.process.communicate(timeout=timeout)
        return self.process.returncode, stderr

    def pid(self, index: int) -> int:
        """The process with this number."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for child in map(int, children.read_text().split()):
            environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            if f"JAX_PROCESS_ID={index}".encode() in environment:
                return child
        raise AssertionError(f"There is no process {index}.")


def losses(model_dir: Path) -> list[float]:
    return [
        row["loss"] for row in read_metrics(model_dir / "metrics.jsonl") if row["kind"] == "train"
    ]


def train_flags(world, out: Path, **macros) -> list[str]:
    """Of stage 2 on two experts."""
    return [
        "-m",
        "pemt_jax.train",
        *world.train_flags(
            out,
            **(
                dict(
                    METHOD="pemt_target",
                    EXPERTS=str(EXPERTS).replace(" ", ""),
                    LIBRARY=world.library,
                )
                | macros
            ),
        ),
    ]


def sentences(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("error: ")]
