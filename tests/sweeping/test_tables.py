"""Every installed table is a sweep whose commands the training command understands."""

import json
import subprocess
import sys
from pathlib import Path

import gin
import pytest
import seqio

from pemt_jax import configs, tasks  # noqa: F401
from pemt_jax.cli import command as cli
from pemt_jax.sweep import sweep
from pemt_jax.sweeping.forgetting import base_job
from pemt_jax.sweeping.gin_files import gin_text
from pemt_jax.sweeping.methods import METHODS, NONE
from pemt_jax.sweeping.pages.published import published
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


def test_the_table_of_methods_goes_on_with_the_runs_of_the_study(tmp_path):
    study, every = (planned(tmp_path, f"--gin_file=tables/{n}.gin") for n in ("study", "methods"))
    assert {job.folder for job in study.jobs} < {job.folder for job in every.jobs}
    assert [source.folder for source in study.sources] == [s.folder for s in every.sources]
    for cell in study.cells:  # with the same candidates, so that a choice stays what it is
        others = next(runs for other, runs in every.runs.items() if other.key == cell.key)
        assert {run.name for run in study.runs[cell]} == {run.name for run in others}


@pytest.mark.slow
@pytest.mark.walk
@pytest.mark.parametrize("name", ["targets.gin", "glue_superglue.gin"])
def test_a_new_process_takes_the_draw_of_a_table(name, tmp_path):
    """Here the tasks have been imported, which register what the draw binds."""
    made = planned(tmp_path, f"--gin_file=tables/{name}", "--gin.SHOTS=(8,)", "--gin.PACK=1")
    code = (
        "import json, sys\n"
        "from pemt_jax.cli import command\n"
        "from pemt_jax.train import train\n"
        "assert 'pemt_jax.tasks' not in sys.modules\n"
        "command.arguments_of(train, json.load(sys.stdin))\n"
        "import gin\n"
        "print(gin.query_parameter('FewShot.seed'))\n"
    )
    asked = [sys.executable, "-P", "-c", code]
    files = {job.runs[0].cell.method.files: job for job in made.jobs}
    for job in files.values():
        said = subprocess.run(asked, input=json.dumps(job.command), capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
        assert said.stdout.split()[-1] == str(job.runs[0].seed)


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
