"""PROFILE_STEPS writes a JAX profile, and the log has the learning rate."""

import numpy as np
import pytest
from tiny_system import world_fixture  # noqa: F401

from pemt_jax.optimizers import Optimizer, Schedule
from pemt_jax.training.metrics_log import read_metrics


def test_a_profile_of_some_steps_is_written_beside_the_run(world, tmp_path):
    flags = world.train_flags(tmp_path / "run", TRAIN_STEPS=6, PROFILE_STEPS=2)
    assert world.command("train", *flags) == 0
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_a_run_that_ends_while_it_is_profiled_writes_the_profile_too(world, tmp_path):
    flags = world.train_flags(tmp_path / "run", TRAIN_STEPS=3, PROFILE_STEPS=50)
    assert world.command("train", *flags) == 0
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_the_log_has_the_rate_of_the_last_update(world, tmp_path):
    schedule = Schedule("linear", 0.01, warmup_steps=2, train_steps=6)
    world.train(
        tmp_path / "run",
        steps=6,
        method="pemt_source",
        optimizer=Optimizer(schedule=schedule),
        library=str(tmp_path / "library"),
    )
    rows = [
        row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"
    ]
    expected = [0, 0.005, 0.01, 0.0075, 0.005, 0.0025]
    np.testing.assert_allclose([row["learning_rate"] for row in rows], expected, rtol=1e-6)
