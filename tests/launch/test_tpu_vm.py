"""launch/tpu_vm.sh from `create` to `delete`, with gcloud.py in place of gcloud.

Two workers run as processes of this machine with homes of their own, and what they run comes out of
the archive of this checkout. What is simulated is told in gcloud.py.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gcloud
import pytest
from bucket import storage_fixture  # noqa: F401
from tiny_system import world_fixture  # noqa: F401
from walk import ROOT, STEPS, Walk, await_, losses, training_process

from pemt_jax.common.errors import PeerLost

pytestmark = [pytest.mark.slow, pytest.mark.walk]
if not shutil.which("flock"):
    pytest.skip("flock: it is not on PATH: install util-linux", allow_module_level=True)
ZONE = "us-west4-a"
WHERE = ["--name", "pemt", "--zone", ZONE]
KIND = ["--type", "v5litepod-16", "--spot", "--poll", "1"]
LOST = PeerLost.exit_code


class Cloud:
    """The stand-in's slices in a folder, and tpu_vm.sh with the stand-in on its PATH."""

    def __init__(self, folder: Path):
        self.folder, self.state = folder, folder / "cloud"
        self.state.mkdir()
        program = folder / "bin" / "gcloud"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -P {gcloud.__file__} "$@"\n')
        program.chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "GCLOUD_STATE": str(self.state),
        }

    def of_workers(self, **environment) -> None:
        (self.state / "environment.json").write_text(json.dumps(environment))

    @property
    def slice(self) -> gcloud.Slice:
        return gcloud.Slice(self.state, ZONE, "pemt")

    def home(self, worker: int) -> Path:
        return self.slice.home(worker)

    def start(self, action: str, *arguments) -> subprocess.Popen:
        command = ["bash", ROOT / "launch" / "tpu_vm.sh", action, *WHERE, *arguments]
        with (self.folder / f"{action}.out").open("ab") as out:
            return subprocess.Popen(
                [str(part) for part in command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def said(self, action: str) -> str:
        path = self.folder / f"{action}.out"
        return path.read_text() if path.exists() else ""

    def call(self, action: str, *arguments, seconds: float = 120) -> int:
        process = self.start(action, *arguments)
        try:
            return process.wait(seconds)
        finally:
            end(process)

    def log(self, worker: int = 0) -> str:
        path = self.home(worker) / "train.log"
        return path.read_text() if path.exists() else ""

    def codes(self) -> list[str]:
        """What each worker's process has ended with."""
        files = [self.home(worker) / "train.code" for worker in range(gcloud.WORKERS)]
        return [path.read_text().strip() for path in files if path.exists()]

    def await_(self, condition, what: str, seconds: float = 60) -> None:
        await_(condition, what, seconds, lambda: f"{self.said('babysit')}\n{self.log()}")


def end(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    process.wait()


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.slice.end()


# In place of Python: notes its start, and ends with this worker's codes, one after the other.
STAND_IN = """#!{python} -IS
import os, sys, time
with open({starts!r} + os.environ["JAX_PROCESS_ID"], "a") as file:
    starts = file.tell()
    file.write("x")
print("start", starts, sys.argv[1:], flush=True)
time.sleep(1)
codes = {codes!r}[int(os.environ["JAX_PROCESS_ID"])].split()
sys.exit(int(codes[min(starts, len(codes) - 1)]))
"""


@pytest.fixture
def stand_in(cloud):
    """Let the workers' Python be a program that ends with these codes."""

    def make(*codes: str) -> Cloud:
        program = cloud.state / "python"
        text = STAND_IN.format(
            python=sys.executable, codes=codes, starts=str(cloud.state / "starts")
        )
        program.write_text(text)
        program.chmod(0o755)
        cloud.of_workers(GCLOUD_PYTHON=str(program))
        return cloud

    return make


def test_a_slice_is_had_once_and_runs_one_thing_at_a_time(stand_in):
    cloud = stand_in("0", "0")
    run = ["--model_dir", "gs://bucket/x", "--", "--gin_file=a 'b"]
    assert cloud.call("install") != 0 and "NOT_FOUND" in cloud.said("install")
    assert cloud.call("create", *KIND[:2], "--poll", "1") == 0
    assert cloud.said("create").split() == ["PROVISIONING", "ACTIVE"]
    assert cloud.call("create", *KIND) != 0 and "ALREADY_EXISTS" in cloud.said("create")
    assert cloud.call("install") == 0
    assert (cloud.home(1) / "venv" / "site" / "pemt_jax" / "tasks" / "__init__.py").exists()
    assert cloud.call("run", *run) == 0
    assert cloud.call("run", *run) != 0 and "A run is active here" in cloud.said("run")
    cloud.await_(lambda: cloud.codes() == ["0", "0"], "the end")
    assert cloud.log(1).splitlines() == [
        f"start 0 {['-P', '-m', 'pemt_jax.train', run[3], '--gin.MODEL_DIR=gs://bucket/x']}"
    ]
    (cloud.home(0) / "runs").mkdir()
    (cloud.home(0) / "runs" / "file").write_text("there")
    assert cloud.call("fetch", "--model_dir", "runs", "--to", cloud.folder / "fetched") == 0
    assert (cloud.folder / "fetched" / "file").read_text() == "there"
    assert cloud.call("delete") == 0 and not cloud.home(0).exists()
    assert cloud.call("delete") != 0


def test_the_stand_in_refuses_what_gcloud_refuses(cloud):
    """Else a wrong command of tpu_vm.sh would go unnoticed."""
    command = ["gcloud", "compute", "tpus", "queued-resources", "describe", "pemt"]
    for flags, said in (
        (["--zone", ZONE], "NOT_FOUND"),
        (["--zone", "nowhere"], "invalid choice: 'nowhere'"),
        (["--zone", ZONE, "--detach"], "unrecognized arguments: --detach"),
        ([], "required: --zone"),
    ):
        done = subprocess.run(
            [*command, *flags], env=cloud.environment, capture_output=True, text=True
        )
        assert done.returncode != 0 and said in done.stderr


@pytest.mark.parametrize(
    "codes, more, ended, starts",
    [
        (("0", "0"), [], 0, 1),
        (("1", "1"), [], 1, 1),
        (("2", "2"), [], 2, 1),
        ((f"{LOST} 0", "137 0"), [], 0, 2),
        (("143 134 0", f"143 {LOST} 0"), [], 0, 3),
        ((f"{LOST} 1", "137 1"), [], 1, 2),
        ((str(LOST), "137"), ["--restarts", "1"], LOST, 2),
    ],
)
def test_babysit_runs_again_what_may_go_on_and_nothing_else(stand_in, codes, more, ended, starts):
    cloud = stand_in(*codes)
    code = cloud.call("babysit", *KIND, *more, "--model_dir", "gs://bucket/x", "--", "--a")
    assert code == ended, cloud.said("babysit")
    assert [len((cloud.state / f"starts{worker}").read_text()) for worker in (0, 1)] == [starts] * 2
    assert cloud.slice.read()["state"] == "ACTIVE"  # for a look at its logs


def test_babysit_ends_where_no_slice_can_be_had(cloud):
    flags = ["--poll", "1", "--model_dir", "gs://bucket/x", "--", "--a"]
    assert cloud.call("babysit", "--type", "v4-8", *flags) == 1
    assert "INVALID_ARGUMENT: There is no v4-8 in us-west4-a" in cloud.said("babysit")


def train(cloud: Cloud, storage, walk: Walk, name: str) -> tuple[list[str], Path]:
    """The flags of a slow run in the bucket, and the folder of its objects on this disk."""
    walk.left_alone()
    walk.slow.touch()
    cloud.of_workers(**walk.environment() | storage.environment)
    cloud.environment |= storage.environment
    url = f"{storage.url}/{name}"
    return ["--model_dir", url, "--", *walk.arguments(url)], storage.folder / name


def test_a_preempted_run_goes_on_by_hand_on_a_new_slice(cloud, storage, world, tmp_path):
    """create, install, run, tail, a preemption, all of it again, fetch, delete."""
    walk = Walk(world, tmp_path)
    flags, run = train(cloud, storage, walk, "by_hand")
    assert cloud.call("create", *KIND) == 0
    assert cloud.call("install") == 0, cloud.said("install")
    assert cloud.call("run", *flags) == 0, cloud.said("run")
    cloud.await_(lambda: len(losses(run)) >= 3, "three steps", 400)
    tail = cloud.start("tail")
    cloud.await_(lambda: "step 3/" in cloud.said("tail"), "the log")
    gcloud.preempt(cloud.state, ZONE, "pemt")
    tail.wait(30)
    before = len(losses(run))
    assert cloud.call("run", *flags) != 0  # the slice is gone
    assert cloud.call("delete") == 0 and cloud.call("create", *KIND) == 0
    assert cloud.call("install") == 0
    walk.slow.unlink()
    assert cloud.call("run", *flags) == 0
    cloud.await_(lambda: cloud.codes() == ["0", "0"], "the end", 400)
    assert before < STEPS
    assert cloud.call("fetch", *flags[:2], "--to", tmp_path / "fetched") == 0
    walk.assert_as_left_alone(tmp_path / "fetched")
    assert cloud.call("delete") == 0


def test_babysit_ends_a_run_that_is_preempted_and_loses_a_process(cloud, storage, world, tmp_path):
    """Its artefact has the bits of the run that was left alone."""
    walk = Walk(world, tmp_path)
    flags, run = train(cloud, storage, walk, "babysat")
    babysit = cloud.start("babysit", *KIND, *flags)
    try:
        cloud.await_(lambda: len(losses(run)) >= 3, "three steps", 400)
        gcloud.preempt(cloud.state, ZONE, "pemt")
        reached = len(losses(run))
        cloud.await_(lambda: len(losses(run)) >= reached + 3, "three more", 400)
        victim = training_process(f"HOME={cloud.home(1)}")
        os.kill(victim, signal.SIGKILL)
        walk.slow.unlink()
        assert babysit.wait(600) == 0, cloud.said("babysit")
    finally:
        end(babysit)
    said = cloud.said("babysit")
    assert said.count("Creating the slice") == 2 and said.count("Starting the run") == 3, said
    walk.assert_as_left_alone(run)
