"""launch/slurm.sbatch under a real slurmctld and two slurmd on this machine."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import slurm_cluster
from slurm_cluster import NODES
from tiny_system import world_fixture  # noqa: F401
from walk import ROOT, STEPS, Walk, await_, losses, training_process

from pemt_jax.common.errors import PeerLost

pytestmark = [pytest.mark.slow, pytest.mark.walk]
if absent := slurm_cluster.missing():
    why = f"SLURM: there is no {', '.join(absent)}: apt-get install slurm-wlm munge"
    pytest.skip(why, allow_module_level=True)

# In place of a training: waits for a file in the working directory that says how to end.
STAND_IN = """#!{python} -IS
import os, signal, sys, time
me, restarts = os.environ["SLURM_PROCID"], os.environ.get("SLURM_RESTART_COUNT", "0")
def stop(number, _):
    time.sleep(1)
    open(sys.argv[0] + "-saved", "a").write(me)  # after scancel nobody forwards the output
    os._exit(128 + number)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, stop)
print("runs", me, restarts, os.environ.get("SLURM_CPUS_PER_TASK"), os.getpid(), flush=True)
codes = {codes!r}.split()
if codes[0] == "wait" and restarts == "0":
    time.sleep(600)
code = 0 if codes[0] == "wait" or int(restarts) >= {times} else int(codes[int(me)])
os.kill(os.getpid(), -code) if code < 0 else os._exit(code)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm_cluster.Cluster(tmp_path_factory.mktemp("slurm") / "c", gpus=4) as cluster:
        yield cluster


class Job:
    """A submitted launch/slurm.sbatch."""

    def __init__(self, cluster, folder: Path, venv: Path, *arguments, options=(), **environment):
        self.cluster, self.log = cluster, folder / "job.log"
        command = [ROOT / "launch" / "slurm.sbatch", "--venv", venv, *arguments]
        done = cluster.call(
            "sbatch", "--parsable", f"--output={self.log}", *options, *command, **environment
        )
        assert done.returncode == 0, done.stderr
        self.number = done.stdout.strip()

    @property
    def state(self) -> str:
        return self.cluster.job(self.number)["JobState"]

    @property
    def restarts(self) -> int:
        return int(self.cluster.job(self.number)["Restarts"])

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def await_(self, condition, what: str, seconds: float = 60) -> None:
        await_(condition, what, seconds, lambda: f"{self.cluster.job(self.number)}\n{self.text()}")

    def await_requeue(self, restarts: int, seconds: float = 60) -> None:
        """Wait until it is queued again, and spare it SLURM's two minutes before the next start."""
        self.await_(
            lambda: (self.state, self.restarts) == ("PENDING", restarts), "a requeue", seconds
        )
        more = ["StartTime=now", "TimeLimit=60"]
        self.cluster.call("scontrol", "update", f"JobId={self.number}", *more)

    def end(self, seconds: float = 60) -> tuple[str, str]:
        """Wait for its end; return state and exit code."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.await_(lambda: self.state in over, "the end of the job", seconds)
        return self.state, self.cluster.job(self.number)["ExitCode"]


@pytest.fixture
def stand_in(cluster, tmp_path):
    """Submit the job with a program that ends as told in place of the training."""

    def submit(codes: str, *arguments, times: int = 1, options=()) -> Job:
        python = tmp_path / "venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(STAND_IN.format(python=sys.executable, codes=codes, times=times))
        python.chmod(0o755)
        flags = ["--model_dir", tmp_path / "run", *arguments, "--", "--gin_file=x"]
        return Job(cluster, tmp_path, tmp_path / "venv", *flags, options=options)

    return submit


@pytest.mark.parametrize("codes, ended", [("0 0", "0:0"), ("1 1", "1:0"), ("2 2", "2:0")])
def test_a_run_that_ended_or_failed_is_not_started_again(stand_in, codes, ended):
    job = stand_in(codes, options=["--cpus-per-task=2"])
    assert job.end() == ("COMPLETED" if ended == "0:0" else "FAILED", ended)
    assert job.restarts == 0 and "runs 1 0 2 " in job.text()  # the tasks have their CPUs


@pytest.mark.parametrize("codes", [f"{PeerLost.exit_code} -9", "134 134", "143 143"])
def test_a_run_that_lost_a_process_is_queued_again_and_ends(stand_in, codes):
    job = stand_in(codes)
    job.await_requeue(1)
    assert job.end() == ("COMPLETED", "0:0")
    assert "runs 0 1 " in job.text() and "is queued again." in job.text()


def test_there_is_an_end_to_restarts(stand_in):
    job = stand_in(f"{PeerLost.exit_code} {PeerLost.exit_code}", "--restarts", "1", times=9)
    job.await_requeue(1)
    assert job.end() == ("FAILED", f"{PeerLost.exit_code}:0") and job.restarts == 1


@pytest.mark.parametrize(
    "how, state",
    [((), ("CANCELLED", "0:15")), (("--signal=INT",), ("FAILED", "130:0"))],
    ids=["scancel", "scancel --signal=INT"],
)
def test_a_job_that_the_user_ends_saves_and_stays_ended(cluster, stand_in, tmp_path, how, state):
    job = stand_in("wait")
    job.await_(lambda: job.text().count("runs") == 2, "both processes")
    cluster.call("scancel", *how, job.number)
    assert job.end() == state
    saved = tmp_path / "venv" / "bin" / "python-saved"
    job.await_(lambda: saved.exists() and len(saved.read_text()) == 2, "both to save")
    cluster.await_(lambda: cluster.states() == {"idle"}, "idle nodes")
    assert job.state == state[0] and job.restarts == 0


def test_a_job_that_is_preempted_saves_and_is_queued_again(cluster, stand_in, tmp_path):
    job = stand_in("wait")
    job.await_(lambda: job.text().count("runs") == 2, "both processes")
    urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
    assert cluster.call("sbatch", *urgent, "--wrap=sleep 1").returncode == 0
    job.await_requeue(1)
    assert job.end() == ("COMPLETED", "0:0")
    assert len((tmp_path / "venv" / "bin" / "python-saved").read_text()) == 2


def test_a_job_whose_node_is_lost_is_queued_again(cluster, stand_in):
    """By SLURM itself, when the node has not answered for SlurmdTimeout; the others save."""
    job = stand_in("wait")
    job.await_(lambda: job.text().count("runs") == 2, "both processes")
    (lost,) = re.findall(r"runs 1 0 \S+ (\d+)", job.text())
    cluster.daemons[NODES[1]].kill()
    os.kill(int(lost), signal.SIGKILL)
    try:
        job.await_(lambda: job.restarts == 1 and job.state == "PENDING", "the requeue", 120)
        assert f"Node failure on {NODES[1]}" in job.text()
    finally:
        cluster.daemons[NODES[1]].wait()
        cluster.start_node(NODES[1])
    cluster.await_(lambda: cluster.states() == {"idle"}, "the node's return")
    time.sleep(10)  # of SLURM's two minutes; started at once, srun finds a single node
    job.await_requeue(1)
    assert job.end() == ("COMPLETED", "0:0")


def test_tasks_are_told_their_gpus(cluster):
    """With files for GPUs; the rest of what SLURM says is real."""
    script = (
        "from pemt_jax.parallel.environment import local_devices; import os; "
        "print(os.environ['SLURM_PROCID'], local_devices())"
    )
    for options, expected in (
        (["--ntasks-per-node=1", "--gpus-per-node=4"], [[0, 1, 2, 3]] * 2),
        (["--ntasks-per-node=2", "--gpus-per-node=4"], [[0, 1], [2, 3]] * 2),
        (["--ntasks-per-node=2", "--gpus-per-node=2"], [[0], [1]] * 2),
        (["--ntasks-per-node=1"], [None] * 2),
    ):
        done = cluster.call("srun", "--nodes=2", *options, sys.executable, "-P", "-c", script)
        said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
        assert said == {str(i): str(devices) for i, devices in enumerate(expected)}, done.stderr


def test_a_training_under_slurm_survives_its_time_limit_and_a_lost_process(
    cluster, world, tmp_path
):
    """The bits of the run that was left alone, after SIGTERM at the limit and a kill -9."""
    walk, run = Walk(world, tmp_path), tmp_path / "run"
    walk.left_alone()
    walk.slow.touch()
    job = Job(
        cluster,
        tmp_path,
        walk.venv(),
        "--model_dir",
        run,
        "--",
        *walk.arguments(run),
        options=["--time=10", "--gpus-per-node=0"],
        **walk.environment(),
    )

    def reached(step: int):
        return lambda: len(losses(run)) >= step

    job.await_(reached(3), "three steps", 400)
    # Between 40 and 100 seconds remain, less than the 120 of --signal=TERM@120. SLURM looks twice
    # a minute.
    hours, minutes, seconds = map(int, cluster.job(job.number)["RunTime"].split(":"))
    limit = (3600 * hours + 60 * minutes + seconds + 40) // 60 + 1
    cluster.call("scontrol", "update", f"JobId={job.number}", f"TimeLimit={limit}")
    job.await_requeue(1, 200)
    stopped = len(losses(run))
    said = f"Stopped by SIGTERM after step {stopped} of {STEPS}, which is saved"
    assert job.text().count(said) == 2, job.text()
    job.await_(reached(stopped + 3), "three more steps", 400)
    victim = training_process("SLURM_PROCID=1", f"SLURM_JOB_ID={job.number}")
    os.kill(victim, signal.SIGKILL)
    walk.slow.unlink()
    job.await_requeue(2, 200)
    assert "error: Process 1 of 2 has" in job.text(), job.text()
    assert not (run / "artefact").exists()
    assert job.end(400) == ("COMPLETED", "0:0"), job.text()
    walk.assert_as_left_alone(run)
