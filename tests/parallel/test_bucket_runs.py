"""Two processes whose base, library and MODEL_DIR are in a bucket: the same run as on a disk."""

import os
import signal
import time

import pytest
from bucket import bucket_folder_fixture, storage_fixture  # noqa: F401
from local_job import QUICK, Job, losses, sentences, train_flags
from tiny_system import leaves, world_fixture  # noqa: F401

from pemt_jax import convert
from pemt_jax.common import storage

STAGE_1 = {"METHOD": "pemt_source", "EXPERTS": None}
STAGE_2 = {"EXPERTS": "('tiny_train_only',)"}


@pytest.mark.slow
def test_both_stages_in_a_bucket_resume_to_the_bits_of_a_disk(world, tmp_path, bucket_folder):
    base = bucket_folder / "base"
    assert not convert.main(["--from", str(world.base), "--to", str(base), "--format", "t5x"])
    places = {
        "disk": {"LIBRARY": tmp_path / "library"},
        "bucket": {"LIBRARY": bucket_folder / "library", "INITIAL_CHECKPOINT_PATH": base},
    }
    for number, stage in enumerate((STAGE_1, STAGE_2)):
        disk, remote = tmp_path / f"{number}", bucket_folder / f"{number}"
        macros = QUICK | stage
        job = Job(world, 2, *train_flags(world, disk, **macros, **places["disk"]))
        code, stderr = job.finish()
        assert code == 0, stderr
        flags = train_flags(world, remote, **macros, **places["bucket"])
        job = Job(world, 2, *flags)
        deadline = time.monotonic() + 400
        while len(losses(remote)) < 5 and job.process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(job.pid(1 - number), signal.SIGKILL)
        code, stderr = job.finish()
        assert code != 0 and not (remote / "artefact").is_dir(), stderr
        code, stderr = Job(world, 2, *flags).finish()
        assert code == 0, stderr
        assert leaves(remote, 20) == leaves(disk, 20)
        assert losses(remote) == losses(disk) and len(losses(remote)) == 20
        for name in storage.files_in(disk / "artefact"):
            if name != "card.json":  # it names folders
                assert (remote / "artefact" / name).read_bytes() == (
                    disk / "artefact" / name
                ).read_bytes()
    names = ["tiny_train_only/card.json", "tiny_train_only/weights.safetensors"]
    assert storage.files_in(bucket_folder / "library") == names


@pytest.mark.slow
def test_processes_that_do_not_see_one_folder_say_which(world, tmp_path):
    for index in (0, 1):
        (tmp_path / str(index)).mkdir()
    script = (
        "import os, sys; from pemt_jax import train; from pemt_jax.cli import command as cli; "
        f"os.chdir(os.path.join({str(tmp_path)!r}, os.environ['JAX_PROCESS_ID'])); "
        "sys.exit(cli.run(train.train, sys.argv[1:]))"
    )
    flags = world.train_flags(storage.path("run"), LIBRARY=tmp_path / "library")
    code, stderr = Job(world, 2, "-c", script, *flags).finish()
    assert code == 2
    assert set(sentences(stderr)) == {
        "error: Process 1 does not see the MODEL_DIR run that process 0 sees, expected storage "
        "that all processes share."
    }, stderr
    assert not (tmp_path / "0" / "run").exists() and not (tmp_path / "library").exists()
