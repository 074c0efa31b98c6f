"""A MODEL_DIR belongs to one run: what is not its own is refused before training, and stays."""

import os
import shutil

import pytest
from tiny_system import snapshot, world_fixture  # noqa: F401

from pemt_jax.common.errors import UsageError
from pemt_jax.common.writing import lease
from pemt_jax.library import expert as expert_library
from pemt_jax.runs import task_run


@pytest.mark.parametrize("name", ["config.gin", "metrics.jsonl"])
@pytest.mark.parametrize("content", ["my own\n", '{"step": 1}\n'])
def test_a_users_file_under_a_name_of_ours(world, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=f"{name} was not written by a run"):
        world.train(tmp_path, steps=1, method="pemt_source")
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == content


def test_a_pipe_under_a_name_of_ours(world, tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UsageError, match="is no plain file"):
        world.train(tmp_path, steps=1, method="pemt_source")


@pytest.mark.parametrize("inside", ["", "deeper/run"])
@pytest.mark.parametrize("what", ["expert", "base", "checkpoint", "checkpoints"])
def test_a_folder_that_is_something_else(world, tmp_path, what, inside):
    source = {
        "expert": world.library / "tiny_mood",
        "base": world.base,
        "checkpoint": world.source / "checkpoints" / "20",
        "checkpoints": world.source / "checkpoints",
    }[what]
    place = tmp_path / "x"
    shutil.copytree(source, place)
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match="MODEL_DIR .* expected a place outside of it"):
        world.train(place / inside, steps=1, method="pemt_source")
    assert snapshot(tmp_path) == before


def test_a_second_run_in_a_folder_is_told_who_has_it(world, tmp_path):
    with lease.held(tmp_path / "run.lock", "The run"):
        before = snapshot(tmp_path)
        with pytest.raises(UsageError, match=f"is in use by process {os.getpid()} on"):
            world.train(tmp_path, steps=1, method="adapter")
        assert snapshot(tmp_path) == before
    world.train(tmp_path, steps=1, method="adapter")
    assert not (tmp_path / "run.lock").exists()


def test_an_expert_of_the_name_that_appears_during_training_is_not_replaced(
    world, tmp_path, monkeypatch
):
    library, publish = tmp_path / "library", task_run.publish

    def other_run_is_faster(*arguments):
        shutil.copytree(world.library / "tiny_mood", library / "tiny_mood")
        return publish(*arguments)

    monkeypatch.setattr(task_run, "publish", other_run_is_faster)
    with pytest.raises(UsageError, match="holds an expert 'tiny_mood' made by"):
        world.train(tmp_path / "run", steps=1, method="pemt_source", library=str(library))
    theirs = expert_library.load_expert(world.library, "tiny_mood").sha256
    assert expert_library.load_expert(library, "tiny_mood").sha256 == theirs
    assert not (tmp_path / "run" / "artefact").exists()
