"""Several real processes of this machine as one run; the processes of a pod are no different."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from local_job import LOST, Job, losses, train_flags
from tiny_system import EXPERTS, leaves, world_fixture  # noqa: F401

from pemt_jax.common.weights import load_weights
from pemt_jax.training.metrics_log import read_metrics


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
