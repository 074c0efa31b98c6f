"""The Python API: fifteen lines from rows to predictions, and the same run as the command's."""

import json
import subprocess
import sys

import pytest
from tiny_system import BUCKETS, leaves, rows, world_fixture  # noqa: F401

import pemt_jax as pemt
from pemt_jax.common.errors import UsageError


def examples(what, split):
    return [{"text": text, "label": label} for text, label in rows(what, split)]


@pytest.mark.slow
def test_fifteen_lines_from_rows_to_predictions(world, tmp_path):
    splits = {split: examples("mood", split) for split in ("train", "validation", "test")}
    common = dict(initial_checkpoint_path=str(world.base), log_every=50)
    words = ("positive", "negative")
    # The lines that the README shows:
    mood = pemt.task("api_mood", splits, "{text}", words, "Say the mood of a text.")
    library = pemt.Library(tmp_path / "library")
    expert = pemt.train_expert(mood, library, tmp_path / "expert", train_steps=4, **common)
    model = pemt.adapt(mood, library, ["api_mood"], tmp_path / "target", train_steps=4, **common)
    metrics = model.evaluate("test")
    (found,) = model.predict(["mood: the good film number 3"])

    assert list(library) == ["api_mood"] and library["api_mood"].sha256 == expert.sha256
    assert 0 <= metrics["accuracy"] <= 100 and metrics["gate/api_mood"] == 1
    assert found.gate == {"api_mood": 1.0} and found.log_probability <= 0
    assert pemt.open_model(tmp_path / "target").predict([found.input]) == [found]


def test_a_run_from_python_is_the_run_of_the_command(world, tmp_path):
    flags = world.train_flags(tmp_path / "command", TRAIN_STEPS=2)
    assert world.command("train", *flags) == 0
    config = pemt.TrainConfig.of(
        model_dir=str(tmp_path / "python"),
        mixture_or_task_name="tiny_mood",
        task_feature_lengths={"inputs": 16, "targets": 4},
        train_steps=2,
        batch_size=8,
        buckets=BUCKETS,
        method="pemt_source",
        initial_checkpoint_path=str(world.base),
        library=str(tmp_path / "own"),
        options=pemt.PemtConfig(expert_rank=4, adapter_dim=4),
        optimizer=pemt.Optimizer(schedule=0.01),
        eval_every=10,
        eval_batch_size=8,
        log_every=1,
    )
    pemt.train_run(config)
    assert leaves(tmp_path / "python", 2) == leaves(tmp_path / "command", 2)
    identities = [
        json.loads((tmp_path / who / "checkpoints/2/manifest/metadata").read_text())["identity"]
        for who in ("python", "command")
    ]
    assert identities[0] == identities[1]
    # The file that it wrote continues it from the command line.
    again = ["--gin_file=" + str(tmp_path / "python" / "config.gin"), "--gin.TRAIN_STEPS=3"]
    tasks = tmp_path / "tasks.gin"
    tasks.write_text("from __gin__ import dynamic_registration\nimport tiny_system\n")
    assert world.command("train", *again, f"--gin_file={tasks}") == 0


def test_a_wrong_option_is_named_with_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="no 'batch_siez' .nearest: 'batch_size'"):
        pemt.train_expert("x", pemt.Library(tmp_path), tmp_path, train_steps=1, batch_siez=3)


def test_importing_the_package_loads_neither_jax_nor_tensorflow():
    code = (
        "import sys, pemt_jax; dir(pemt_jax); "
        "print({'jax', 'tensorflow', 'seqio', 'flax'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_every_public_name_is_there():
    assert set(pemt.__all__) <= set(dir(pemt))
    assert all(getattr(pemt, name) is not None for name in pemt.__all__ if name != "task")
