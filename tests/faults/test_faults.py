"""What happens to a run: killed, stopped, no room, no folder, damage; in processes of their own.

kill.py makes as many random kills as one likes; here is a sample of it.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from forking import OBEY_PERMISSIONS, Forker
from table import AT_SAVE
from tiny_system import leaves, snapshot, world_fixture  # noqa: F401

from pemt_jax.checkpoints.manifest import read_manifest
from pemt_jax.training.metrics_log import read_metrics


@pytest.fixture(scope="module")
def forkers():
    made = {}
    yield made
    for forker in made.values():
        forker.close()


@pytest.fixture
def forker(world, forkers):
    if not forkers:
        assert world.source
        forkers["one"] = Forker(world)
    return forkers["one"]


def flags(world, run, **macros):
    return world.train_flags(run, **macros)


def rows(run):
    return [
        {name: value for name, value in row.items() if name not in ("time", "examples_per_second")}
        for row in read_metrics(run / "metrics.jsonl")
    ]


def steps(run):
    return sorted(
        int(path.name)
        for path in (run / "checkpoints").iterdir()
        if path.name.isdigit() and read_manifest(path)
    )


def assert_as_undisturbed(world, run):
    assert leaves(run, 20) == leaves(world.source, 20)
    assert rows(run) == rows(world.source)
    weights = "artefact/weights.safetensors"
    assert (run / weights).read_bytes() == (world.source / weights).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["KILL", "TERM"])
def test_killed_at_random_moments_is_the_run_that_was_left_alone(world, name, runs=4):
    script = Path(__file__).with_name("kill.py")
    flags = ("--seed=3", f"--runs={runs}", f"--signal={name}", f"--base={world.base}")
    done = world.python(script, *flags)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["mismatches"] == {} and report["runs"] == runs and report["kills"] >= runs


@pytest.mark.parametrize(
    "number, code",
    [
        pytest.param(signal.SIGTERM, 143, marks=(pytest.mark.slow, pytest.mark.walk)),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_asked_to_stop_saves_that_step(world, forker, tmp_path, number, code):
    run = tmp_path / "run"
    pid = forker.start(tmp_path / "log", flags(world, run))
    deadline = time.monotonic() + 100
    while len(read_metrics(run / "metrics.jsonl")) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(pid, number)
    assert forker.wait() == code
    last = (tmp_path / "log").read_text().splitlines()[-1]
    (step,) = steps(run)[-1:]
    assert last == (
        f"error: Stopped by {number.name} after step {step} of 20, which is saved: the "
        "same command resumes there."
    )
    assert not (run / "artefact").exists()
    assert forker.run(tmp_path / "log", flags(world, run))[0] == 0
    assert_as_undisturbed(world, run)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, of 3 MB; as a limit of file sizes where nothing may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        os.getuid() == 0
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True
        ).returncode
        == 0
    )
    yield folder, mounted
    if mounted:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
@pytest.mark.walk
def test_full_disk(world, forker, tmp_path, small_disk):
    disk, mounted = small_disk
    run = disk / "run"
    fault = (
        """
def fault(run):
    with open(run.parent / "ballast", "wb", 0) as file:
        try:
            while file.write(bytes(4096)): pass
        except OSError: pass
"""
        if mounted
        else """
def fault(run):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
"""
    )
    macros = {"train.save_every": 4, "LIBRARY": tmp_path / "library"}
    code, said = forker.run(
        tmp_path / "log", flags(world, run, **macros), fault + AT_SAVE.format(number=2)
    )
    assert code == 1 and len(said) == 1, "\n".join(said)
    assert said[0].startswith(
        f"error: A checkpoint could not be written to {run}/checkpoints: "
    ) or said[0].startswith(f"error: Cannot write {run}/metrics.jsonl: "), said
    assert 4 in steps(run) and max(steps(run)) <= 8
    (disk / "ballast").unlink(missing_ok=True)
    assert forker.run(tmp_path / "log", flags(world, run, **macros))[0] == 0
    assert leaves(run, 20) == leaves(world.source, 20)


@pytest.mark.slow
@pytest.mark.walk
def test_folder_that_becomes_read_only(world, forker, tmp_path):
    run = tmp_path / "run"
    fault = OBEY_PERMISSIONS + "def fault(run): (run / 'checkpoints').chmod(0o555)\n"
    code, said = forker.run(
        tmp_path / "log",
        flags(world, run, **{"train.save_every": 4}),
        fault + AT_SAVE.format(number=2),
    )
    (run / "checkpoints").chmod(0o755)
    assert code == 1 and len(said) == 1, "\n".join(said)
    assert said[0].startswith(f"error: A checkpoint could not be written to {run}/checkpoints: ")
    assert "ermission" in said[0]
    assert steps(run) == [4]


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints",
        pytest.param("checkpoints/20/manifest/metadata", marks=pytest.mark.slow),
        "checkpoints/20/state",
    ],
)
def test_checkpoint_that_may_not_be_read_is_not_taken_for_damaged(world, forker, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(world.source, run)
    before = snapshot(run / "checkpoints")
    mode = (run / name).stat().st_mode
    (run / name).chmod(0)
    code, said = forker.run(tmp_path / "log", flags(world, run), OBEY_PERMISSIONS)
    (run / name).chmod(mode)
    assert code == 1 and len(said) == 1, "\n".join(said)
    path = run / "checkpoints" / "20" if name.endswith("state") else run / name
    assert said[0] == f"error: {path} cannot be read: Permission denied."
    assert snapshot(run / "checkpoints") == before
    assert forker.run(tmp_path / "log", flags(world, run))[0] == 0
    assert_as_undisturbed(world, run)


def test_read_only_folder_is_refused_at_the_start(world, forker, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(0o555)
    code, said = forker.run(tmp_path / "log", flags(world, run / "x"), OBEY_PERMISSIONS)
    assert (code, said) == (
        2,
        [f"error: MODEL_DIR is {run}/x but {run} is read-only, expected a folder to write to."],
    )


def test_folder_that_vanishes(world, forker, tmp_path):
    run = tmp_path / "run"
    fault = "def fault(run): shutil.rmtree(run)\n"
    code, said = forker.run(
        tmp_path / "log",
        flags(world, run, **{"train.save_every": 4}),
        fault + AT_SAVE.format(number=2),
    )
    assert code == 1 and len(said) == 1, "\n".join(said)
    assert said[0] == (
        f"error: A checkpoint could not be written to {run}/checkpoints: the folder is gone."
    )
    assert not run.exists()  # nor is half a run made anew


def cut(step):
    biggest = max((step / "state").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    biggest.write_bytes(biggest.read_bytes()[:-100])


def flip(step):
    biggest = max((step / "state").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    content = bytearray(biggest.read_bytes())
    content[len(content) // 2] ^= 1
    biggest.write_bytes(content)


def flip_manifest(step):
    file = step / "manifest" / "metadata"
    file.write_text(file.read_text().replace('"data_step": 20', '"data_step": 21'))


@pytest.mark.parametrize(
    "damage, says",
    [
        pytest.param(cut, "the bytes of ", marks=pytest.mark.slow),
        pytest.param(flip, "the bytes of ", marks=pytest.mark.slow),
        pytest.param(
            lambda step: shutil.rmtree(step / "state"), "the bytes of ", marks=pytest.mark.slow
        ),
        (flip_manifest, "its manifest is missing or damaged"),
        pytest.param(
            lambda step: (step / "manifest" / "metadata").unlink(),
            "its manifest is missing or damaged",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["cut", "flipped", "arrays missing", "manifest changed", "manifest missing"],
)
def test_damaged_newest_checkpoint(world, forker, tmp_path, damage, says):
    run = tmp_path / "run"
    shutil.copytree(world.source, run)
    damage(run / "checkpoints" / "20")
    code, said = forker.run(tmp_path / "log", flags(world, run))
    assert code == 0, said
    assert said[0].startswith(f"warning: Checkpoint {run}/checkpoints/20 is damaged: {says}")
    assert said[0].endswith("; it is set aside as 20.damaged.")
    if "bytes" in says:
        assert said[1] == "warning: The run resumes from the previous checkpoint, step 10."
    assert_as_undisturbed(world, run)
    assert (run / "checkpoints" / "20.damaged").is_dir()


@pytest.mark.slow
def test_no_checkpoint_is_whole(world, forker, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(world.source, run)
    for step in (run / "checkpoints").iterdir():
        cut(step)
    before = snapshot(run)
    code, said = forker.run(tmp_path / "log", flags(world, run))
    assert code == 1 and len(said) == 1, "\n".join(said)
    assert said[0].startswith(f"error: Checkpoint {run}/checkpoints/20 is damaged: the bytes of ")
    assert snapshot(run) == before


JUMPING_CLOCK = """
import random, sys, time
from pemt_jax.checkpoints.manager import Checkpoints
from pemt_jax.training.trainer import Trainer
real, random, ahead = {"time": time.time, "time_ns": time.time_ns}, random.Random(0), [0]
fake = {"time": lambda: real["time"]() + ahead[0],
        "time_ns": lambda: real["time_ns"]() + ahead[0] * 10**9}
for module in list(sys.modules.values()):
    for name, function in real.items():
        for key, value in list(vars(module).items() if hasattr(module, "__dict__") else ()):
            if value is function:
                setattr(module, key, fake[name])
def step(self, batch, step=Trainer.step):
    ahead[0] = random.choice((-9, -1, 1, 9)) * 365 * 86400
    return step(self, batch)
def save(self, *args, save=Checkpoints.save, **kwargs):
    save(self, *args, **kwargs)
    self.wait()  # orbax takes a jump within a save for a timeout: the next test
Trainer.step, Checkpoints.save = step, save
"""


@pytest.mark.slow
def test_a_clock_that_jumps_by_years(world, forker, tmp_path):
    run = tmp_path / "run"
    for steps_made in (10, 20):  # a start and a resumption
        code, said = forker.run(
            tmp_path / "log", flags(world, run, TRAIN_STEPS=steps_made), JUMPING_CLOCK
        )
        assert code == 0, said
    assert_as_undisturbed(world, run)
    assert steps(run) == steps(world.source)
    rates = [
        row["examples_per_second"]
        for row in read_metrics(run / "metrics.jsonl")
        if row["kind"] == "train"
    ]
    assert all(0 < rate < 1e6 for rate in rates)
    times = [row["time"] for row in read_metrics(run / "metrics.jsonl")]
    assert max(times) - min(times) > 1e8  # it did jump


@pytest.mark.slow
def test_a_clock_that_jumps_within_a_save(world, forker, tmp_path):
    run = tmp_path / "run"
    at_once = JUMPING_CLOCK.replace("    self.wait()", "    ahead[0] += 10**9")
    code, said = forker.run(tmp_path / "log", flags(world, run), at_once)
    assert code == 1 and len(said) == 1, "\n".join(said)
    assert said[0].startswith(f"error: A checkpoint could not be written to {run}/checkpoints: ")
    assert forker.run(tmp_path / "log", flags(world, run))[0] == 0
    assert_as_undisturbed(world, run)


TOGETHER = textwrap.dedent("""
    import sys, time
    import jax
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    from pemt_jax.parallel.stop_signals import StopSignals
    with StopSignals() as signals:
        for step in range(1, 2000):
            time.sleep(0.02 * (1 + int(sys.argv[2])))
            jax.experimental.multihost_utils.sync_global_devices("step")
            if signals.reached(step):
                print(step, int(signals.received), flush=True)
                break
            if step == 5:
                print("ready", flush=True)
""")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_processes_stop_together_at_one_step(world, number):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, place, str(i)],
            text=True,
            env=world.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]
    try:
        for process in processes:
            while (line := process.stdout.readline()) != "ready\n":
                assert line, process.communicate()  # gloo greets first
        processes[1].send_signal(number)
        (one, _), (other, error) = (process.communicate(timeout=100) for process in processes)
    finally:
        for process in processes:
            process.kill()
    (step, _), (same, received) = one.split(), other.split()
    assert step == same and int(step) > 5, error
    assert int(received) == number
