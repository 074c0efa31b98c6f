"""Several real processes of this machine as one run; the processes of a pod are no different."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_system import EXPERTS, leaves, world_fixture  # noqa: F401

from pemt_jax.common.errors import PeerLost, PemtError, UsageError
from pemt_jax.common.weights import load_weights
from pemt_jax.parallel import processes
from pemt_jax.parallel.environment import local_devices
from pemt_jax.training.metrics_log import read_metrics

LAUNCH = Path(__file__).parents[2] / "launch" / "local_processes.sh"
LOST = PeerLost.exit_code


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


def assert_equal_to_one_process(
    one: Path, several: Path, steps: int = 20, evaluations: int = 2
) -> None:
    expected = losses(one)
    assert len(expected) == steps
    np.testing.assert_allclose(losses(several), expected, rtol=1e-5)
    weights = [load_weights(run / "artefact" / "weights.safetensors") for run in (one, several)]
    for path, value in weights[0].items():
        np.testing.assert_allclose(weights[1][path], value, rtol=0, atol=1e-4, err_msg=path)
    validations = [
        [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "validation"]
        for run in (one, several)
    ]
    assert len(validations[0]) == len(validations[1]) == evaluations
    for ours, theirs in zip(*validations, strict=True):
        for name, value in ours.items():
            if name not in ("time", "kind"):
                np.testing.assert_allclose(theirs[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_two_processes_train_as_one(world, tmp_path):
    """The shortest of these: stage 1, ten steps of seven examples, no evaluation."""
    world.train(
        tmp_path / "one",
        "tiny_train_only",
        10,
        method="pemt_source",
        batch_size=7,
        library=str(tmp_path / "one_library"),
    )
    job = Job(
        world,
        2,
        "-m",
        "pemt_jax.train",
        *world.train_flags(
            tmp_path / "two", MIXTURE_OR_TASK_NAME="tiny_train_only", TRAIN_STEPS=10, BATCH_SIZE=7
        ),
    )
    code, stderr = job.finish()
    assert code == 0, stderr
    assert job.stdout.count("pemt_source on tiny_train_only, step") == 1  # the first process's
    assert_equal_to_one_process(tmp_path / "one", tmp_path / "two", steps=10, evaluations=0)


@pytest.mark.slow
def test_two_processes_are_one_run(world, tmp_path):
    job = Job(world, 2, *train_flags(world, tmp_path / "two"))
    code, stderr = job.finish()
    assert code == 0, stderr
    assert job.stdout.count("pemt_target on tiny_mood, step") == 1  # the first process's
    assert_equal_to_one_process(world.target, tmp_path / "two")


@pytest.mark.slow
def test_four_processes_that_share_experts_and_matrices_are_one_run(world, tmp_path):
    """Examples do not divide evenly, and trained parameters are sharded over processes."""
    world.train(
        tmp_path / "one",
        method="pemt_target",
        experts=EXPERTS,
        batch_size=7,
        library=str(world.library),
    )
    job = Job(
        world,
        4,
        *train_flags(
            world,
            tmp_path / "four",
            BATCH_SIZE=7,
            MODEL_PARALLEL=2,
            EXPERT_PARALLEL=2,
            FULLY_SHARDED=True,
        ),
    )
    code, stderr = job.finish()
    assert code == 0, stderr
    assert_equal_to_one_process(tmp_path / "one", tmp_path / "four")


MANY = {
    "MIXTURE_OR_TASK_NAME": "('tiny_mood','tiny_topic')",
    "TRAIN_STEPS": "(20,10)",
    "BATCH_SIZE": 7,
    "train.save_every": 5,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, devices, tasks, more",
    [
        (2, 1, 2, {}),  # one task per process
        (2, 2, 3, {"MODEL_PARALLEL": 2, "FULLY_SHARDED": True}),  # all on both, sequentially
        (4, 1, 2, {"MODEL_PARALLEL": 2}),  # one task per two processes
    ],
)
def test_processes_train_many_tasks_as_one(world, tmp_path, number, devices, tasks, more):
    tasks = ("tiny_mood", "tiny_topic", "tiny_train_only")[:tasks]
    steps = (20, 10, 20)[: len(tasks)]
    world.train(
        tmp_path / "one",
        tasks,
        steps,
        method="pemt_source",
        batch_size=7,
        library=str(tmp_path / "one_library"),
    )
    job = Job(
        world,
        number,
        "-m",
        "pemt_jax.train",
        *world.train_flags(
            tmp_path / "several",
            **MANY | {"MIXTURE_OR_TASK_NAME": tasks, "TRAIN_STEPS": steps},
            **more,
        ),
        devices=devices,
    )
    code, stderr = job.finish()
    assert code == 0, stderr
    assert job.stdout.count("pemt_source on tiny_") == len(tasks)
    for task, made, evaluations in zip(tasks, steps, (2, 1, 0), strict=False):
        assert_equal_to_one_process(
            tmp_path / "one" / task, tmp_path / "several" / task, made, evaluations
        )


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGKILL, (LOST, 137)), (signal.SIGTERM, (143,))])
def test_processes_that_trained_many_tasks_resume_to_the_same_bits(world, tmp_path, number, code):
    flags = lambda out: train_flags(world, tmp_path / out, **MANY)  # noqa: E731
    found, stderr = Job(world, 2, *flags("straight")).finish()
    assert found == 0, stderr
    job, deadline = Job(world, 2, *flags("stopped")), time.monotonic() + 400
    first = tmp_path / "stopped" / "tiny_mood"
    while len(losses(first)) < 7 and job.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(job.pid(1), number)
    found, stderr = job.finish()
    assert found in code, stderr
    assert not (first / "artefact").exists()
    found, stderr = Job(world, 2, *flags("stopped")).finish()
    assert found == 0, stderr
    for task, steps in ("tiny_mood", 20), ("tiny_topic", 10):
        straight, stopped = (tmp_path / out / task for out in ("straight", "stopped"))
        assert leaves(straight, steps) == leaves(stopped, steps)
        assert losses(straight) == losses(stopped)


@pytest.mark.slow
def test_two_processes_evaluate_and_predict_as_one(world, tmp_path):
    (tmp_path / "tasks.gin").write_text(
        "from __gin__ import dynamic_registration\nimport tiny_system\n"
    )
    flags = [
        "-m",
        "pemt_jax.evaluate",
        f"--gin_file={tmp_path}/tasks.gin",
        f"--gin.MODEL_DIR={world.target}/artefact",
        "--gin.BATCH_SIZE=3",
    ]
    one, job = world.python(*flags), Job(world, 2, *flags)
    code, stderr = job.finish()
    assert code == 0, stderr
    one, two = json.loads(one.stdout), json.loads(job.stdout)
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-5, err_msg=name)
    rows = world.by_hand(world.target)
    (tmp_path / "in.txt").write_text("".join(f"{row['input']}\n" for row in rows))
    job = Job(
        world,
        2,
        "-m",
        "pemt_jax.predict",
        f"--gin.MODEL_DIR={world.target}",
        f"--gin.INPUT_FILE={tmp_path}/in.txt",
        "--gin.BATCH_SIZE=3",
    )
    code, stderr = job.finish()
    assert code == 0, stderr
    assert job.stdout.splitlines() == [row["prediction"] for row in rows]


# No evaluation: one step to compile.
QUICK = {"MIXTURE_OR_TASK_NAME": "tiny_train_only", "train.save_every": 2}


def disturb(world, out: Path, index: int, number: int) -> tuple[int, str, float]:
    """Send a signal to one of two processes in mid-run; the seconds until the launcher ended."""
    job = Job(world, 2, *train_flags(world, out, **QUICK))
    deadline = time.monotonic() + 400
    while len(losses(out)) < 5 and job.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    victim, other, start = job.pid(index), job.pid(1 - index), time.monotonic()
    os.kill(victim, number)
    if number == signal.SIGSTOP:
        while Path(f"/proc/{other}").exists() and time.monotonic() - start < 60:
            time.sleep(0.1)
        assert time.monotonic() - start < 60
        time.sleep(1)  # the launcher looks five times a second who has ended
        os.kill(victim, signal.SIGKILL)  # the launcher waits for it too
    code, stderr = job.finish()
    return code, stderr, time.monotonic() - start


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_after_a_kill_the_others_stop_and_all_resume_to_the_same_bits(world, tmp_path, index):
    code, stderr = Job(world, 2, *train_flags(world, tmp_path / "straight", **QUICK)).finish()
    assert code == 0, stderr
    code, stderr, seconds = disturb(world, tmp_path / "killed", index, signal.SIGKILL)
    assert code in (137, LOST) and seconds < 60, stderr  # of the killed one, or of the other
    (sentence,) = sentences(stderr)
    assert f"Process {index} of 2 has" in sentence and "its command resumes it" in sentence
    assert not (tmp_path / "killed" / "artefact").exists()
    code, stderr = Job(world, 2, *train_flags(world, tmp_path / "killed", **QUICK)).finish()
    assert code == 0, stderr
    assert leaves(tmp_path / "straight", 20) == leaves(tmp_path / "killed", 20)
    assert losses(tmp_path / "straight") == losses(tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_the_others_do_not_wait_for_a_process_that_hangs(world, tmp_path, index):
    code, stderr, _ = disturb(world, tmp_path / "run", index, signal.SIGSTOP)
    (sentence,) = sentences(stderr)
    assert code == LOST and f"Process {index} of 2 has" in sentence, stderr


# Process 1 stops in step 8: for ever in the step, or as many seconds as it says in reading.
STOPS = """
import os, sys, threading, time
from pemt_jax import train
from pemt_jax.cli import command as cli
from pemt_jax.data import batching
from pemt_jax.parallel import processes

def batch(self, step, local_rows, batch=batching.BatchSource.batch):
    if step == 7:
        time.sleep(READING)
    return batch(self, step, local_rows)

def report(step, place=0, report=processes.report):
    report(step, place)
    if (step, place) == (7, 1):
        threading.Event().wait()

if os.environ["JAX_PROCESS_ID"] == "1":
    READING = float(os.environ.get("READING", 0))
    if READING:
        batching.BatchSource.batch = batch
    else:
        processes.report = report
sys.exit(cli.run(train.train, sys.argv[1:]))
"""


def stop_process_1(world, out: Path, macros: dict, **environment) -> tuple[int, set[str], float]:
    """Return the exit code, the distinct sentences and the seconds of such a run."""
    start = time.monotonic()
    flags = train_flags(world, out, **macros)[2:]
    job = Job(world, 2, "-c", STOPS, *flags, PEMT_JAX_SILENCE_SECONDS="10", **environment)
    code, stderr = job.finish()
    return code, set(sentences(stderr)), time.monotonic() - start


@pytest.mark.slow
@pytest.mark.parametrize(
    "macros",
    [QUICK, {"MIXTURE_OR_TASK_NAME": "('tiny_mood','tiny_topic')"}],
    ids=["one task", "two tasks"],
)
@pytest.mark.parametrize(
    "environment, doing",
    [({}, "been"), ({"READING": "9999", "PEMT_JAX_READ_SECONDS": "12"}, "been reading its batch")],
    ids=["step", "read"],
)
def test_a_main_thread_that_hangs_ends_all_processes(world, tmp_path, macros, environment, doing):
    code, found, seconds = stop_process_1(world, tmp_path / "run", macros, **environment)
    limit = environment.get("PEMT_JAX_READ_SECONDS", "10")
    assert code == LOST and seconds < 300
    assert found == {
        f"error: Process 1 of 2 has {doing} at step 8 for {limit} seconds while others wait for "
        "it, expected it to go on: this run ends, and its command resumes it."
    }


# Process 1 raises in step 8 what FAILS says; process 0 waits in the collective.
FAILS = """
import os, sys
from pemt_jax import train
from pemt_jax.cli import command as cli
from pemt_jax.common.errors import PeerLost, PemtError, UsageError
from pemt_jax.data import batching

def batch(self, step, local_rows, batch=batching.BatchSource.batch):
    if step == 7:
        kinds = {"1": PemtError, "2": UsageError, "42": PeerLost}
        raise kinds[os.environ["FAILS"]]("No such luck.")
    return batch(self, step, local_rows)

if os.environ["JAX_PROCESS_ID"] == "1":
    batching.BatchSource.batch = batch
sys.exit(cli.run(train.train, sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("failed", [1, 2, LOST])
def test_the_failure_of_one_process_gives_all_its_exit_code(world, tmp_path, failed):
    """Else a scheduler would start again what can only fail again."""
    keep = 'python=$1 out=$2; shift 2; "$python" "$@"; echo $? >"$out.$JAX_PROCESS_ID"'
    command = [sys.executable, tmp_path / "code", "-c", FAILS]
    flags = train_flags(world, tmp_path / "run", **QUICK)[2:]
    done = subprocess.run(
        [str(part) for part in (LAUNCH, "--", "bash", "-c", keep, "keep", *command, *flags)],
        env=world.environment() | {"XLA_FLAGS": "", "FAILS": str(failed)},
        cwd=world.folder,
        text=True,
        stderr=subprocess.PIPE,
        timeout=300,
    )
    assert [int((tmp_path / f"code.{index}").read_text()) for index in (0, 1)] == [failed] * 2
    assert set(sentences(done.stderr)) == {
        "error: No such luck.",
        "error: Process 1 of 2 failed: No such luck.",
    }


class Verdictless:
    """A watchdog that finds nobody to blame."""

    def await_verdict(self):
        pass


@pytest.mark.parametrize(
    "error, code",
    [
        (RuntimeError("Gloo all-reduce failed: Connection closed by peer"), LOST),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), None),
        (PemtError("A checkpoint could not be written: UNAVAILABLE"), 1),
    ],
)
def test_a_collective_that_fails_asks_for_another_start(monkeypatch, error, code):
    monkeypatch.setattr(processes, "_watchdog", Verdictless())
    monkeypatch.setattr(processes, "_failure", None)
    with pytest.raises(type(error) if code != LOST else PeerLost) as raised, processes.joined():
        raise error
    assert getattr(raised.value, "exit_code", None) == code
    if code == LOST:
        assert "Connection closed by peer" in str(raised.value)


@pytest.mark.slow
def test_a_slow_read_in_one_process_does_not_end_a_healthy_run(world, tmp_path):
    """Twice as long as a process may be silent; 40 seconds are the default of that."""
    code, found, seconds = stop_process_1(world, tmp_path / "run", QUICK, READING="20")
    assert (code, found) == (0, set()) and seconds > 20
    assert len(losses(tmp_path / "run")) == 20


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(world, tmp_path):
    code, stderr, _ = disturb(world, tmp_path / "run", 1, signal.SIGTERM)
    assert code == 143, stderr
    found = {line.split("after step ")[1].split()[0] for line in sentences(stderr)}
    assert len(sentences(stderr)) == 2 and len(found) == 1, stderr
    code, stderr = Job(world, 2, *train_flags(world, tmp_path / "run", **QUICK)).finish()
    assert code == 0, stderr
    assert len(losses(tmp_path / "run")) == 20


@pytest.mark.slow
def test_processes_that_were_given_different_things_say_which(world, tmp_path):
    script = (
        "import os, sys; from pemt_jax import train; from pemt_jax.cli import command as cli; "
        "extra = ['--gin.LEARNING_RATE=0.5'] * (os.environ['JAX_PROCESS_ID'] == '1'); "
        "sys.exit(cli.run(train.train, sys.argv[1:] + extra))"
    )
    flags = ["-m", "pemt_jax.train", *world.train_flags(tmp_path / "run")]
    code, stderr = Job(world, 2, "-c", script, *flags[2:]).finish()
    assert code == 1
    assert len(sentences(stderr)) == 2 and len(set(sentences(stderr))) == 1, stderr
    assert "The processes do not agree on the optimizer: " in stderr
    assert " in 0; " in stderr and " in 1; " in stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


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
