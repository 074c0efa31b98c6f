"""launch/local_processes.sh as a launcher of any command; test_processes.py trains with it."""

import dataclasses
import os
import signal
import subprocess
import time
from pathlib import Path

from pemt_jax.parallel.environment import Limits

LAUNCH = Path(__file__).parents[2] / "launch" / "local_processes.sh"


def launch(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(LAUNCH), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
    )


def test_the_launcher_prints_what_it_would_run():
    done = launch("--processes", "2", "--devices", "4", "--dry-run", "--", "python", "a b.py")
    lines = [
        f"env JAX_PLATFORMS=cpu JAX_COORDINATOR_ADDRESS=127.0.0.1:PORT JAX_NUM_PROCESSES=2 "
        f"JAX_PROCESS_ID={index} XLA_FLAGS=--xla_force_host_platform_device_count=4 "
        "python a\\ b.py &"
        for index in (0, 1)
    ]
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, lines, "")


def test_the_launcher_has_the_exit_code_of_the_first_that_fails():
    script = "sleep $JAX_PROCESS_ID; exit $((4 * JAX_PROCESS_ID))"
    assert launch("--processes", "3", "--", "bash", "-c", script).returncode == 4
    assert launch("--", "true").returncode == 0


def test_the_launcher_passes_signals_on_and_refuses_wrong_use():
    process = subprocess.Popen([str(LAUNCH), "--", "sleep", "100"])
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 143
    done = launch("--processes", "none", "--", "true")
    assert (done.returncode, done.stderr) == (
        2,
        "error: Found --processes 'none', expected a positive number.\n",
    )
    assert "Found no command" in launch("--processes", "2").stderr


def test_the_help_names_the_limits_and_their_defaults():
    printed = launch("--help").stdout
    for limit in dataclasses.fields(Limits):
        name = f"PEMT_JAX_{limit.name.upper()}_SECONDS"
        (line,) = (line for line in printed.splitlines() if line.strip().startswith(name))
        assert line.endswith(f"; {limit.default} when not set")
