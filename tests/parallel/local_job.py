"""A script in two processes of one job, as launch/local_processes.sh starts them."""

import subprocess
import sys
from pathlib import Path

LAUNCH = Path(__file__).parents[2] / "launch" / "local_processes.sh"


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
