"""Seconds from the command to the first update of a run whose steps were compiled before.

    python tests/benchmarks/warm_start.py --json

The command is the demo's stage 1 on the packaged mini T5, each time into a new folder. The first
run fills the caches of compiled steps and tokens. The later runs are timed: the total, the imports,
and the rest, which is the value.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

import timing

REPEATS = 3
# The child process, which ends with the first update.
CHILD = """
import json, os, sys, time
from pemt_jax import train
import jax
import pemt_jax.runs.build_model  # what the command imports only once it runs
from pemt_jax.cli import command
from pemt_jax.training.trainer import Trainer
imported = time.time()
step = Trainer.step
def first(self, batch):
    jax.block_until_ready(step(self, batch))
    print("TIMES", json.dumps([imported, time.time()]), flush=True)
    os._exit(0)
Trainer.step = first
sys.exit(command.run(train.train, sys.argv[1:]))
"""


def start_once(task: str, gin_file: str) -> dict[str, float]:
    """Run the command up to its first update."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [
            f"--gin_file={gin_file}",
            f"--gin.MODEL_DIR={folder}/run",
            f"--gin.MIXTURE_OR_TASK_NAME={task}",
            f"--gin.LIBRARY={folder}/library",
        ]
        begun = time.time()
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *flags],
            capture_output=True,
            text=True,
            env=dict(os.environ),
            check=False,
        )
    times = [line for line in done.stdout.splitlines() if line.startswith("TIMES ")]
    if not times:
        raise SystemExit(f"The command made no update: {done.stderr[-2000:]}")
    imported, stepped = json.loads(times[0].removeprefix("TIMES "))
    return {
        "import": imported - begun,
        "beyond import": stepped - imported,
        "whole": stepped - begun,
    }


def measure(task: str = "vader_movies", gin_file: str = "demo/stage1.gin") -> dict:
    start_once(task, gin_file)
    runs = [start_once(task, gin_file) for _ in range(REPEATS)]
    seconds = {name: timing.summary([run[name] for run in runs]) for name in runs[0]}
    return {
        "warm_start_seconds": timing.row(
            seconds["beyond import"]["min"], 8.0, seconds=seconds, task=task
        )
    }


if __name__ == "__main__":
    timing.main(__doc__, measure)
