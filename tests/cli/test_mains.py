"""What the programs of the package share: a silent, light --help and the flags of diagnosis."""

import os
import subprocess
import sys

import pytest

from pemt_jax.cli.console import COMMANDS

WITH_TENSORFLOW = {"tasks"}  # a SeqIO task is what it is about


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_silent_and_light_and_has_the_shared_flags(tmp_path, name):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"pemt_jax.{name}", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={key: value for key, value in os.environ.items() if not key.startswith("TF_")},
    )
    assert done.returncode == 0
    for part in (f"python -m pemt_jax.{name}", "--traceback", "--log debug|info|warning|error"):
        assert part in done.stdout
    lines = done.stderr.splitlines()
    times = [line for line in lines if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip() for line in times}
    assert [line for line in lines if line not in times] == []
    assert ("tensorflow" in imported) == (name in WITH_TENSORFLOW)
