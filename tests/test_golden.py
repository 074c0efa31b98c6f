"""What version 0.1 (commit 9ae7fb2) wrote is read: runs, experts, a library, checkpoints.

tests/data/golden_0_1.tar.gz holds a base, a library of two experts, the stage-1 run of one, a
finished stage-2 run, the same run stopped at step 10 of 20, and what that version's `evaluate` and
`predict` said of the finished one. It trained with one dropout mask per position, the default then.
"""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tiny_system import EXPERTS, leaves, world_fixture  # noqa: F401

from pemt_jax import evaluate, predict
from pemt_jax.checkpoints.manager import Checkpoints
from pemt_jax.common.hashing import fingerprint
from pemt_jax.interop.base import load_base
from pemt_jax.library.artefact import read_artefact
from pemt_jax.library.expert import expert_names, load_expert
from pemt_jax.run_config import MINI_T5

ARCHIVE = Path(__file__).parent / "data" / "golden_0_1.tar.gz"


@pytest.fixture
def golden(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    # The base's vocabulary is the packaged one, left out of the archive.
    shutil.copy(Path(MINI_T5) / "spiece.model", tmp_path / "pretrained" / "base")
    return tmp_path


def moved(golden, run):
    """Flags that say where the folders of the archive are now."""
    return [
        f"--gin.MODEL_DIR={golden / 'runs' / run}",
        f"--gin.INITIAL_CHECKPOINT_PATH={golden / 'pretrained' / 'base'}",
        f"--gin.LIBRARY={golden / 'library'}",
    ]


def test_the_library_and_a_run_of_stage_1_are_whole(golden):
    _, base = load_base(golden / "pretrained" / "base")
    assert expert_names(golden / "library") == sorted(EXPERTS)
    for name in EXPERTS:
        expert = load_expert(golden / "library", name, fingerprint(base))
        assert expert.rank == 4 and expert.versions["pemt_jax"] == "0.1.0"
    arrays, card = read_artefact(golden / "stage1" / "tiny_mood" / "artefact")
    assert card.task == "tiny_mood" and all(np.isfinite(x).all() for x in arrays.values())


def test_a_finished_run_has_the_metrics_and_predictions_it_had(golden):
    expected = json.loads((golden / "expected.json").read_text())["evaluation"]
    where = dict(
        model_dir=str(golden / "runs" / "target"),
        initial_checkpoint_path=str(golden / "pretrained" / "base"),
        library=str(golden / "library"),
    )
    for split, metrics in expected.items():
        found = evaluate.evaluate(**where, split=split, batch_size=8)
        assert found.keys() == metrics.keys()
        for name, value in metrics.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    out = golden / "again.jsonl"
    predict.predict(**where, input_file=str(golden / "in.txt"), output_file=str(out))
    before, after = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (golden / "predictions.jsonl", out)
    )
    assert len(after) == 8
    for old, new in zip(before, after, strict=True):
        assert new["prediction"] == old["prediction"] and new.keys() == old.keys()
        np.testing.assert_allclose(new["log_probability"], old["log_probability"], rtol=1e-5)
    # That version's `predict` said the encoder's mean gate. Now it is that of its `evaluate`.
    for name in EXPERTS:
        gate = np.mean([row["gate"][name] for row in after])
        np.testing.assert_allclose(gate, expected["test"][f"gate/{name}"], rtol=1e-5)


def test_its_config_file_is_still_a_gin_file(world, golden, capsys):
    run = golden / "runs" / "target"
    flags = [f"--gin_file={run / 'config.gin'}", *moved(golden, "target"), "--gin.BATCH_SIZE=8"]
    assert world.command("evaluate", *flags) == 0
    expected = json.loads((golden / "expected.json").read_text())["evaluation"]["test"]
    assert json.loads(capsys.readouterr().out)["accuracy"] == expected["accuracy"]


@pytest.mark.slow
def test_a_stopped_run_is_resumed_to_the_numbers_of_the_one_that_never_stopped(world, golden):
    flags = [
        f"--gin_file={world.gin_file}",
        *moved(golden, "stopped"),
        "--gin.MIXTURE_OR_TASK_NAME=tiny_mood",
        "--gin.METHOD=pemt_target",
        f"--gin.EXPERTS={EXPERTS}",
    ]
    # One mask for all positions is the default now, and another run.
    assert world.command("train", *flags) == 2
    # That version had a ladder of lengths for every run, which the run goes on with by default.
    flags += ["--gin.train.train.broadcast_dropout=False", "--gin.train.train.buckets=None"]
    assert world.command("train", *flags) == 0
    one, other = (
        Checkpoints(golden / "runs" / run / "checkpoints", None) for run in ("target", "stopped")
    )
    with one, other:
        assert other.latest_step() == 20 == one.latest_step()
        like = {
            path.removeprefix("trainable/"): np.zeros(leaf["shape"], leaf["dtype"])
            for path, leaf in leaves(golden / "runs" / "target", 20).items()
            if path.startswith("trainable/")
        }
        expected, found = (kept.restore_trainable(20, like) for kept in (one, other))
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, atol=1e-5, err_msg=path)
