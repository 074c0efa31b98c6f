"""launch/gke_xpk.sh through the real xpk, which writes the JobSet that it would apply.

xpk has dependencies of its own that do not fit beside ours: `pip install xpk` in another
environment, and its `xpk` on PATH or in $XPK. No cluster is involved; what Kubernetes would do with
an exit code is read from the JobSet, and the container's command is run as it stands there.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from bucket import storage_fixture  # noqa: F401
from slurm_cluster import free_ports
from tiny_system import world_fixture  # noqa: F401
from walk import ROOT, Walk, await_, losses, training_process

from pemt_jax.common.errors import PeerLost

XPK = os.environ.get("XPK") or shutil.which("xpk")
pytestmark = [pytest.mark.slow, pytest.mark.walk]
if not XPK:
    why = "xpk: it is not on PATH: pip install xpk in an environment of its own"
    pytest.skip(why, allow_module_level=True)
WHERE = ["--workload", "films", "--cluster", "tpus", "--zone", "us-west4-a", "--project", "mine"]
ARGUMENTS = ["--gin_file=runs/stage2.gin", "--gin.EXPERTS=('mnli', 'it''s')"]


@pytest.fixture
def programs(tmp_path):
    """A folder for PATH whose xpk is the real one, in a dry run."""
    folder = tmp_path / "bin"
    folder.mkdir()
    jobset = f"--output-manifest-file={tmp_path}/jobset.yaml"
    write_program(
        folder / "xpk",
        f'case "$*" in *create*) more={jobset} ;; esac\n'
        f'exec {XPK} "$@" --dry-run --skip-validation $more',
    )
    return folder


def write_program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def launch(programs: Path, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", ROOT / "launch" / "gke_xpk.sh", *WHERE, *arguments],
        env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(programs.parent)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )


def jobset(
    programs: Path, *options, model_dir: str = "gs://bucket/runs/films", arguments=ARGUMENTS
) -> dict:
    """What xpk would apply."""
    done = launch(
        programs,
        *("--type", "v5litepod-16", "--image", "python:3.12"),
        *("--model_dir", model_dir, *options, "--", *arguments),
    )
    assert done.returncode == 0, done.stdout
    return yaml.safe_load((programs.parent / "jobset.yaml").read_text())


def is_restarted(jobset: dict, code: int) -> bool:
    """What the JobSet says of a container that ends with this exit code, in Kubernetes' words.

    A job whose pod failed by a rule of its podFailurePolicy fails the JobSet, without restarts.
    """
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0  # no pod starts again alone
    (rule,) = job["podFailurePolicy"]["rules"]
    codes = rule["onExitCodes"]
    assert rule["action"] == "FailJob" and codes["operator"] == "NotIn"
    return code in codes["values"]


def pod_of(jobset: dict) -> dict:
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_the_jobset_restarts_what_may_go_on_and_nothing_else(programs):
    found = jobset(
        programs,
        *("--restarts", "7", "--grace", "240", "--slices", "2", "--spot"),
        *("--env", "PEMT_JAX_CACHE=/cache", "--env", "GREETING=two words"),
    )
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert [is_restarted(found, code) for code in (PeerLost.exit_code, 134, 137, 143, 130)] == (
        [True] * 5
    )
    assert [is_restarted(found, code) for code in (1, 2)] == [False] * 2
    assert found["spec"]["replicatedJobs"][0]["replicas"] == 2
    pod = pod_of(found)
    assert pod["terminationGracePeriodSeconds"] == 240 and pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    variables = [(variable["name"], variable["value"]) for variable in container["env"]]
    assert {("PEMT_JAX_CACHE", "/cache"), ("GREETING", "two words")} <= set(variables)


def test_the_workload_is_deleted(programs):
    done = launch(programs, "--delete")
    assert done.returncode == 0 and "films" in done.stdout, done.stdout


# In place of a training: prints its arguments, then waits for SIGTERM or ends.
STAND_IN = """#!{python} -IS
import signal, sys, time
def stop(*_):
    time.sleep(1)
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("runs", sys.argv[1:], flush=True)
if {code} is None:
    time.sleep(100)
sys.exit({code})
"""


@pytest.mark.parametrize("code", [0, 1, PeerLost.exit_code, None])
def test_the_container_passes_arguments_signals_and_exit_codes(programs, tmp_path, code):
    """Its command as xpk writes it, with stand-ins for pip and Python."""
    command = pod_of(jobset(programs))["containers"][0]["command"]
    write_program(programs / "pip", 'echo pip "$@"')
    (programs / "python3").write_text(STAND_IN.format(python=sys.executable, code=code))
    (programs / "python3").chmod(0o755)
    log = tmp_path / "log"
    with log.open("w") as out:
        container = subprocess.Popen(
            command,
            env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"},
            stdout=out,
            stderr=out,
        )
    try:
        if code is None:
            await_(lambda: "runs" in log.read_text(), "the start", 30)
            container.send_signal(signal.SIGTERM)
        assert container.wait(30) == (143 if code is None else code)
    finally:
        container.kill()
    said = log.read_text()
    model_dir = "--gin.MODEL_DIR=gs://bucket/runs/films"
    assert f"runs {['-m', 'pemt_jax.train', *ARGUMENTS, model_dir]}" in said
    assert "pip install -q .[tpu,gs]" in said and ("saved" in said) == (code is None)


def test_a_workload_that_loses_a_host_is_started_again_to_the_same_bits(
    programs, storage, world, tmp_path
):
    """Two containers with the workload's command, in place of Kubernetes; MODEL_DIR on gs://."""
    walk, run = Walk(world, tmp_path), storage.folder / "workload"
    walk.left_alone()
    url = f"{storage.url}/workload"
    found = jobset(programs, model_dir=url, arguments=walk.arguments(url))
    (container,) = pod_of(found)["containers"]
    write_program(programs / "pip", "exit 0")
    write_program(programs / "python3", f'exec {sys.executable} -P "$@"')

    def start() -> list[subprocess.Popen]:
        more = (
            walk.environment()
            | storage.environment
            | {
                "PATH": f"{programs}:{os.environ['PATH']}",
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_ports(1)[0]}",
                "JAX_NUM_PROCESSES": "2",
            }
        )
        with (tmp_path / "log").open("a") as out:
            return [
                subprocess.Popen(
                    container["command"],
                    env=more | {"JAX_PROCESS_ID": str(index)},
                    cwd=tmp_path,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
                for index in (0, 1)
            ]

    walk.slow.touch()
    containers = start()
    try:
        await_(lambda: len(losses(run)) >= 3, "three steps", 400, (tmp_path / "log").read_text)
        os.kill(training_process(f"SLOW_STEPS={walk.slow}", "JAX_PROCESS_ID=1"), signal.SIGKILL)
        codes = [process.wait(120) for process in containers]
        assert codes == [PeerLost.exit_code, 137] and all(is_restarted(found, c) for c in codes)
        walk.slow.unlink()
        containers = start()
        codes = [process.wait(400) for process in containers]
        assert codes == [0, 0], (tmp_path / "log").read_text()
    finally:
        for process in containers:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    walk.assert_as_left_alone(run)
