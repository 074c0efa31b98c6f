"""How processes find each other, and what is said when they do not."""

import os
import socket
import subprocess
import sys

import pytest
from local_job import LOST, sentences

from pemt_jax.common.errors import UsageError
from pemt_jax.parallel import processes
from pemt_jax.parallel.environment import local_devices


def joining(*given, **environment) -> subprocess.CompletedProcess:
    """A Python process that joins others, given address, count and index."""
    script = f"from pemt_jax.parallel import processes\nwith processes.joined(*{given}): pass"
    return subprocess.run(
        [sys.executable, "-P", "-c", script],
        text=True,
        capture_output=True,
        env=os.environ | environment,
        timeout=100,
    )


def test_a_port_that_does_not_answer_is_one_sentence():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    done = joining(address, 2, 1, PEMT_JAX_START_SECONDS="1")
    assert done.returncode == LOST
    (sentence,) = sentences(done.stderr)
    assert f"Process 1 had no answer from the coordinator at {address} for 1 seconds" in sentence


@pytest.mark.parametrize(
    "given, message",
    [
        (
            ("host:1", None, None),
            "--coordinator_address without --process_count and --process_index",
        ),
        (("host", 2, 0), "coordinator address 'host', expected HOST:PORT"),
        (("host:1", 2, 2), "process index 2 of 2, expected one from 0 to 1"),
    ],
)
def test_what_does_not_fit_together_is_one_sentence(given, message):
    with pytest.raises(UsageError, match=message), processes.joined(*given):
        pass


@pytest.mark.parametrize(
    "variable, value, expected",
    [
        ("PEMT_JAX_SILENCE_SECONDS", "2m", "seconds as a positive number"),
        ("PEMT_JAX_START_SECONDS", "soon", "seconds as a positive number"),
        ("PEMT_JAX_READ_SECONDS", "-1", "seconds as a positive number"),
        ("PEMT_JAX_READ_SECONDS", "inf", "seconds as a positive number"),
        ("JAX_NUM_PROCESSES", "both", "a whole number"),
        ("SLURM_NTASKS", "many", "a whole number"),
    ],
)
def test_a_wrong_value_in_the_environment_is_one_sentence(monkeypatch, variable, value, expected):
    monkeypatch.setenv(variable, value)
    if variable == "SLURM_NTASKS":
        monkeypatch.setenv("SLURM_STEP_NODELIST", "n[1-2]")
        given = ()
    else:
        given = "localhost:1", None if variable == "JAX_NUM_PROCESSES" else 2, 1
    with pytest.raises(UsageError) as error, processes.joined(*given):
        pass
    assert str(error.value) == f"Found {variable}={value!r}, expected {expected}."


@pytest.mark.parametrize(
    "variables, expected",
    [
        (dict(ON_NODE=8, TASKS="1(x2)", NODE=1, LOCAL=0), list(range(8))),  # one per node
        (dict(ON_NODE=4, TASKS="4(x2)", NODE=1, LOCAL=2), [2]),  # one per GPU
        (dict(ON_NODE=8, TASKS="2(x3),4", NODE=3, LOCAL=1), [2, 3]),
        (dict(ON_NODE=4, TASKS="4", NODE=0, LOCAL=2, VISIBLE="2"), [0]),  # --gpus-per-task=1
        (dict(ON_NODE=4, TASKS="4", NODE=0, LOCAL=2, VISIBLE="0,1,2,3"), [2]),
        (dict(ON_NODE=None, TASKS="1(x2)", NODE=0, LOCAL=0), None),  # CPUs
        (dict(ON_NODE=8, TASKS="1(x2)", NODE=0, LOCAL=0, CHOSEN="0,3"), None),
    ],
)
def test_tasks_of_a_slurm_node_share_its_gpus(monkeypatch, variables, expected):
    """The values are those of a real SLURM; see tests/launch/test_slurm.py."""
    names = {
        "ON_NODE": "SLURM_GPUS_ON_NODE",
        "TASKS": "SLURM_STEP_TASKS_PER_NODE",
        "NODE": "SLURM_NODEID",
        "LOCAL": "SLURM_LOCALID",
        "VISIBLE": "CUDA_VISIBLE_DEVICES",
        "CHOSEN": "JAX_LOCAL_DEVICE_IDS",
    }
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[1-2]")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    for short, name in names.items():
        value = variables.get(short)
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, str(value))
    assert local_devices() == expected


def test_more_slurm_tasks_than_gpus_is_one_sentence(monkeypatch):
    for name, value in {
        "SLURM_STEP_NODELIST": "n1",
        "SLURM_NTASKS": "4",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_STEP_TASKS_PER_NODE": "4",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="Found 4 SLURM tasks on a node with 2 GPUs"):
        local_devices()


def test_importing_and_running_alone_read_no_limits_from_the_environment():
    wrong = dict.fromkeys(("PEMT_JAX_SILENCE_SECONDS", "PEMT_JAX_START_SECONDS"), "2m")
    done = joining(None, None, None, JAX_PLATFORMS="cpu", JAX_COORDINATOR_ADDRESS="", **wrong)
    assert (done.returncode, done.stderr) == (0, "")
