"""A process of several that is killed, hangs, fails or was given something else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from local_job import LAUNCH, LOST, QUICK, Job, losses, sentences, train_flags
from tiny_system import leaves, world_fixture  # noqa: F401

from pemt_jax.common.errors import PeerLost, PemtError
from pemt_jax.parallel import processes


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
