"""Bad inputs end as promised, and broken promises are seen: `run.py` as a process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")


def run(folder: Path, *arguments: str) -> tuple[dict, str]:
    """What the driver found, and what it printed."""
    done = subprocess.run(
        [sys.executable, RUN, "--json", folder / "found.json", *arguments],
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert (folder / "found.json").is_file(), done.stderr
    found = json.loads((folder / "found.json").read_text())
    assert done.returncode == bool(found["failures"]), done.stderr
    return found, done.stdout


@pytest.mark.slow
@pytest.mark.walk
def test_planted_faults_are_found_and_a_sample_ends_as_promised(tmp_path):
    """One process for both, since importing everything takes most of the time."""
    found, said = run(tmp_path, "--sample", "--planted")
    tried = found["tried"].pop("planted")
    planted = [failure for failure in found["failures"] if failure["category"] == "planted"]
    for failure in planted:
        assert any(fault.startswith(failure["name"]) for fault in failure["faults"]), failure
    assert len(planted) == tried - 2  # two of them keep every promise
    assert len(found["failures"]) == len(planted), said
    assert sum(found["tried"].values()) >= 20


@pytest.mark.slow
def test_bad_inputs_end_as_promised(tmp_path):
    found, said = run(tmp_path)
    assert not found["failures"], said
    assert sum(found["tried"].values()) >= 600
