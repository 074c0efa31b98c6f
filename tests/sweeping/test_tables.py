"""Every installed table is a sweep whose commands the training command understands."""

from pathlib import Path

import gin
import pytest
import seqio

from pemt_jax import configs, tasks  # noqa: F401
from pemt_jax.cli import command as cli
from pemt_jax.sweep import sweep
from pemt_jax.sweeping.forgetting import base_job
from pemt_jax.sweeping.methods import METHODS, NONE
from pemt_jax.sweeping.pages.published import published
from pemt_jax.sweeping.plan import gin_text
from pemt_jax.sweeping.running import Sweep
from pemt_jax.sweeping.table import SweepConfig
from pemt_jax.train import train

TABLES = sorted(path.name for path in Path(configs.__file__).parent.glob("tables/*.gin"))


@pytest.fixture(autouse=True)
def clean_gin():
    yield
    gin.clear_config()


def planned(tmp_path, *flags):
    found = cli.arguments_of(sweep, [*flags, f"--gin.FOLDER={tmp_path}"])
    return Sweep(SweepConfig.of(**found))


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_a_sweep_of_tasks_that_exist(name, tmp_path):
    made = planned(tmp_path, f"--gin_file=tables/{name}")
    config = made.config
    names = {run.task for runs in made.runs.values() for run in runs}
    names |= {*config.experts.sources, *config.table.tasks}
    assert names <= {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    assert (config.table.published is None) or published(config.table.published).rows
    for source in made.sources:
        assert cli.arguments_of(train, source.command)["library"]


@pytest.mark.parametrize("name", TABLES)
def test_the_training_command_takes_the_flags_of_the_base(name, tmp_path):
    made = planned(tmp_path, f"--gin_file=tables/{name}")
    flags = base_job(made.config).command
    found = cli.arguments_of(train, flags)
    assert (found["method"], found["train_steps"]) == ("norms", 1)
    assert found["initial_checkpoint_path"] == made.config.table.base
    assert not found.get("experts") and "--gin.LEARNING_RATE=0.0" in flags


@pytest.mark.parametrize("name", METHODS)
def test_the_training_command_takes_the_flags_of_a_method(name, tmp_path):
    flags = [f"--gin.METHODS=({name!r},)", "--gin.SHOTS=(8, 'full')", "--gin.PACK=1"]
    made = planned(tmp_path, "--gin_file=tables/study.gin", *flags)
    found = cli.arguments_of(train, made.jobs[-1].command)
    assert found["mixture_or_task_name"] == made.jobs[-1].runs[0].task
    assert found["initial_checkpoint_path"] == "mini_t5"
    assert found.get("seed") in made.config.table.seeds
    assert bool(found.get("experts") or found.get("initial_expert")) == (
        METHODS[name].experts != NONE
    )
    for file in METHODS[name].files:
        assert gin_text(file)
