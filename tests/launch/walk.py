"""A run of two processes for the launchers to walk with, and what it ends with when left alone."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

from tiny_system import GIN, World, leaves

from pemt_jax.training.metrics_log import read_metrics

ROOT = Path(__file__).parents[2]
STEPS = 60


@dataclasses.dataclass(frozen=True)
class Walk:
    """Stage 1 on a task without evaluation; its steps are slow while the file `slow` exists."""

    world: World
    folder: Path

    @property
    def slow(self) -> Path:
        return self.folder / "slow"

    def environment(self) -> dict[str, str]:
        environment = self.world.environment()
        tests = environment["PYTHONPATH"]
        environment.pop("XLA_FLAGS")
        return environment | {
            "PYTHONPATH": f"{tests}:{tests}/launch",
            "SLOW_STEPS": str(self.slow),
            "PEMT_JAX_SILENCE_SECONDS": "20",  # half as long to wait for a process that was killed
            "PEMT_JAX_CACHE": os.environ["PEMT_JAX_CACHE"],
        }

    def arguments(self, out: Path | str) -> list[str]:
        """Of `train`, without MODEL_DIR, which the launchers add."""
        gin_file = self.folder / "walk.gin"
        both = "import slow_steps\nimport tiny_system"
        gin_file.write_text(GIN.replace("import tiny_system", both))
        return [
            f"--gin_file={gin_file}",
            "--gin.MIXTURE_OR_TASK_NAME=tiny_train_only",
            f"--gin.INITIAL_CHECKPOINT_PATH={self.world.base}",
            f"--gin.LIBRARY={out}-library",
            f"--gin.TRAIN_STEPS={STEPS}",
            "--gin.train.save_every=2",
        ]

    def venv(self) -> Path:
        """A folder whose bin/python is this interpreter."""
        python = self.folder / "venv" / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -P "$@"\n')
        python.chmod(0o755)
        return self.folder / "venv"

    def left_alone(self) -> Path:
        """The run that nothing disturbed, by local_processes.sh; made once per session."""
        out = self.world.folder / "left_alone"
        if not (out / "artefact").exists():
            python = self.venv() / "bin" / "python"
            command = [ROOT / "launch" / "local_processes.sh", "--", python, "-m", "pemt_jax.train"]
            done = subprocess.run(
                [str(part) for part in (*command, *self.arguments(out), f"--gin.MODEL_DIR={out}")],
                env=self.environment(),
                cwd=self.folder,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=600,
            )
            assert done.returncode == 0, done.stdout
        return out

    def assert_as_left_alone(self, run: Path) -> None:
        alone = self.left_alone()
        assert leaves(run, STEPS) == leaves(alone, STEPS)
        assert losses(run) == losses(alone)
        weights = "artefact/weights.safetensors"
        assert (run / weights).read_bytes() == (alone / weights).read_bytes()


def losses(run: Path) -> list[float]:
    path = run / "metrics.jsonl"
    return [row["loss"] for row in read_metrics(path) if row["kind"] == "train"]


def training_process(*variables: str) -> int:
    """The process that trains and has these variables, each NAME=VALUE."""
    wanted = {variable.encode() for variable in variables}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"\0-m\0pemt_jax.train\0" in (folder / "cmdline").read_bytes():
                if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                    found.append(int(folder.name))
        except OSError:  # it has ended
            continue
    (process,) = found
    return process


def await_(condition, what: str, seconds: float, log=lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"Waited {seconds:g} s in vain for {what}.\n{log()}"
        time.sleep(0.1)
