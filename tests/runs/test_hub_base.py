"""A base by its name on the hub, through the commands: what is recorded, resumed, opened again."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny_system
from hub_server import forget, hub_fixture, point_at  # noqa: F401  (a fixture)
from safetensors.numpy import load
from tiny_adapter import adapter_files
from tiny_system import world_fixture  # noqa: F401  (a fixture)

from pemt_jax.checkpoints.newest import stored_identity
from pemt_jax.cli.library_command import main as library_command
from pemt_jax.common.errors import UsageError
from pemt_jax.common.safetensors_file import open_weights
from pemt_jax.convert import main as convert_command
from pemt_jax.interop.base import load_base
from pemt_jax.library.artefact import read_card
from pemt_jax.library.expert import load_expert
from pemt_jax.planning.from_config import job_of_training
from pemt_jax.run_config import MINI_T5, TrainConfig

SHORT = {"method": "pemt_source", "eval_every": None}


@pytest.fixture
def base(tmp_path):
    """A tiny T5 with the mini T5's vocabulary, as a folder to commit."""
    folder = tiny_system.random_base(tmp_path / "random")
    shutil.copy(f"{MINI_T5}/spiece.model", folder)
    return folder


def another(folder, to):
    """The base after some training."""
    shutil.copytree(folder, to)
    tiny_system.random_base(to, seed=1)
    return to


@pytest.fixture
def train(world, tmp_path):
    """Train for some steps by World.train, with a library of the test's own."""

    def run(model_dir, task="tiny_mood", steps=2, **options):
        options = {"library": str(tmp_path / "library")} | options
        expert = {} if task != "tiny_mood" else {"expert_name": model_dir.name}
        return world.train(model_dir, task, steps, **SHORT | expert | options)

    return run


def card_of(model_dir):
    return read_card(model_dir / "artefact")


@pytest.mark.slow
def test_train_in_a_process_of_its_own(world, hub, base, tmp_path):
    commit = hub.commit("tiny/t5", base)
    flags = world.train_flags(
        tmp_path / "run", INITIAL_CHECKPOINT_PATH="tiny/t5@main", TRAIN_STEPS=1
    )
    done = subprocess.run(
        [sys.executable, "-m", "pemt_jax.train", *flags, "--log", "info"],
        cwd=tmp_path,
        env=world.environment() | hub.environment(tmp_path / "cache"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert f"tiny/t5@main of the Hugging Face hub is tiny/t5@{commit}" in done.stderr
    assert sorted(file for _, file in hub.downloads) == [
        "config.json",
        "model.safetensors",
        "spiece.model",
    ]
    card = card_of(tmp_path / "run")
    assert card.base_name == "tiny/t5" and card.config["base"] == f"tiny/t5@{commit}"
    assert read_card(tmp_path / "library" / "tiny_mood").config["base"] == f"tiny/t5@{commit}"


@pytest.mark.slow
def test_a_run_goes_on_with_the_commit_it_began_with(train, hub, base, tmp_path):
    run = tmp_path / "run"
    old = hub.commit("tiny/t5", base)
    train(run, initial_checkpoint_path="tiny/t5")
    new = hub.commit("tiny/t5", another(base, tmp_path / "later"))
    forget()
    train(run, steps=4, initial_checkpoint_path="tiny/t5")
    assert card_of(run).config["base"] == f"tiny/t5@{old}"
    assert ("tiny/t5", "model.safetensors") in hub.downloads and len(hub.downloads) == 3
    with pytest.raises(UsageError, match="another run, whose base is '.*', expected '.*' or"):
        train(run, steps=6, initial_checkpoint_path="tiny/t5@main")
    # The same weights from a folder, or at another commit, are the same base.
    train(run, steps=5, initial_checkpoint_path=str(base))
    same = hub.commit("tiny/t5", base, branch="same")
    train(run, steps=6, initial_checkpoint_path="tiny/t5@same")
    assert card_of(run).config["base"] == f"tiny/t5@{same}"
    train(tmp_path / "fresh", initial_checkpoint_path="tiny/t5")
    assert card_of(tmp_path / "fresh").config["base"] == f"tiny/t5@{new}"


@pytest.mark.slow
def test_a_job_of_several_tasks_has_one_commit(train, hub, base, tmp_path):
    commit = hub.commit("tiny/t5", base)
    tasks = ("tiny_mood", "tiny_topic")
    train(tmp_path, tasks, initial_checkpoint_path="tiny/t5")
    assert {card_of(tmp_path / task).config["base"] for task in tasks} == {f"tiny/t5@{commit}"}


def test_a_finished_run_is_opened_by_its_commit_without_a_network(
    world, train, hub, base, tmp_path, monkeypatch, capsys
):
    hub.commit("tiny/t5", base)
    train(tmp_path / "run", initial_checkpoint_path="tiny/t5")
    hub.commit("tiny/t5", another(base, tmp_path / "later"))
    forget()
    point_at(monkeypatch, "http://127.0.0.1:9")
    flags = [f"--gin.MODEL_DIR={tmp_path / 'run'}", "--gin.SPLIT=test"]
    assert world.command("evaluate", *flags) == 0, capsys.readouterr().err


def test_a_local_run_has_nothing_of_the_hub(train, base, tmp_path):
    train(tmp_path / "run", initial_checkpoint_path=str(base))
    identity = stored_identity(tmp_path / "run" / "checkpoints")
    assert identity["base"] and "base_revision" not in identity
    assert card_of(tmp_path / "run").base_name == base.name
    assert card_of(tmp_path / "run").config["base"] == str(base)


def imported(hub, base, tmp_path) -> tuple[str, str]:
    """Import an adapter as `mood`, it and its base by their names; return both commits."""
    commits = hub.commit("lorahub/mood", adapter_files(tiny_system.T5)), hub.commit("tiny/t5", base)
    command = ["import", "lorahub/mood", "--format", "peft", "--base", "tiny/t5", "--name", "mood"]
    command += ["--prompt", "Say the mood.", "--library", str(tmp_path / "ours")]
    assert library_command(command) == 0
    return commits


def test_an_adapter_and_its_base_are_imported_by_name(hub, base, tmp_path, capsys):
    adapter, of_base = imported(hub, base, tmp_path)
    card = read_card(tmp_path / "ours" / "mood")
    assert card.config["source"] == f"lorahub/mood@{adapter}"
    assert card.config["base"] == f"tiny/t5@{of_base}" and card.base_name == "tiny/t5"
    tensors = load(adapter_files(tiny_system.T5)["adapter_model.safetensors"])
    pairs = load_expert(tmp_path / "ours", "mood").lora
    assert 2 * len(pairs) == len(tensors)
    name = "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight"
    np.testing.assert_array_equal(pairs["encoder/layers_0/attention/query"][0], tensors[name].T)
    command = ["import", "lorahub/mod", "--format", "peft", "--name", "mod"]
    assert library_command([*command, "--library", str(tmp_path / "ours")]) == 1
    assert "neither a local folder lorahub/mod nor a repository" in capsys.readouterr().err


def test_convert_merge_and_plan_take_a_name(hub, base, tmp_path, capsys):
    _, commit = imported(hub, base, tmp_path)
    flags = ["--from", "tiny/t5", "--to", str(tmp_path / "t5x"), "--format", "t5x"]
    assert convert_command(flags) == 0, capsys.readouterr().err
    for name, array in load_base(base)[1].items():
        np.testing.assert_array_equal(load_base(tmp_path / "t5x")[1][name], array)
    assert (tmp_path / "t5x" / "spiece.model").is_file()
    flags = ["--base", "tiny/t5", "--to", str(tmp_path / "merged")]
    command = ["merge", "mood", *flags, "--library", str(tmp_path / "ours")]
    assert library_command(command) == 0, capsys.readouterr().err
    assert open_weights(tmp_path / "merged" / "model.safetensors")
    readme = (tmp_path / "merged" / "README.md").read_text()
    assert 'base_model: "tiny/t5"' in readme and commit in readme
    config = TrainConfig.of(
        model_dir=str(tmp_path / "run"),
        mixture_or_task_name="tiny_mood",
        task_feature_lengths=tiny_system.LENGTHS,
        train_steps=1,
        batch_size=8,
        initial_checkpoint_path="tiny/t5",
        method="pemt_source",
    )
    assert job_of_training(config).t5 == tiny_system.T5
    assert hub.downloads.count(("tiny/t5", "model.safetensors")) == 1
