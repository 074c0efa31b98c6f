"""Jobs of many tasks, whole: each task's files are those of a run of its own."""

import json
import re

import numpy as np
import pytest
from tiny_system import EXPERTS, leaves, snapshot, stop, world_fixture  # noqa: F401

from pemt_jax import optimizers
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.weights import load_weights
from pemt_jax.library import artefact
from pemt_jax.library import expert as library
from pemt_jax.parallel.stop_signals import Stopped
from pemt_jax.training import run
from pemt_jax.training.metrics_log import read_metrics
from pemt_jax.training.multitask import job as many_job
from pemt_jax.training.multitask.trainer import MultitaskTrainer

TASKS = ("tiny_mood", "tiny_topic")
PROMPT = "Say what it is."  # of one length, so that shapes are those of runs alone


def numbers(folder):
    return [
        {name: value for name, value in row.items() if name not in ("time", "examples_per_second")}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def assert_same_run(one, other, step=20):
    assert leaves(one, step) == leaves(other, step)
    assert numbers(one) == numbers(other)
    assert (one / "artefact" / "weights.safetensors").read_bytes() == (
        other / "artefact" / "weights.safetensors"
    ).read_bytes()


def options(world, tmp_path, method="pemt_source"):
    common = dict(method=method, prompt_text=PROMPT)
    if method == "pemt_target":
        return common | dict(library=str(world.library), experts=EXPERTS)
    return common | dict(library=str(tmp_path / "library"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pemt_source", "pemt_target"])
def test_a_job_leaves_what_single_runs_would_bit_for_bit(world, tmp_path, method):
    assert world.library
    many = options(world, tmp_path / "many", method)
    metrics = world.train(tmp_path / "job", TASKS, (20, 10), **many)
    for task, steps in zip(TASKS, (20, 10), strict=True):
        alone = world.train(tmp_path / task, task, steps, **options(world, tmp_path, method))
        assert_same_run(tmp_path / task, tmp_path / "job" / task, steps)
        assert {name: metrics[f"{task}/{name}"] for name in alone} == alone
        card, own = (
            artefact.read_card(folder / "artefact")
            for folder in (tmp_path / task, tmp_path / "job" / task)
        )
        assert (card.sha256, card.metrics, card.description) == (
            own.sha256,
            own.metrics,
            own.description,
        )
        if method == "pemt_source":
            one, two = (
                library.load_expert(tmp_path / place / "library", task) for place in (".", "many")
            )
            assert one.sha256 == two.sha256
    assert (tmp_path / "job" / "config.gin").is_file()


class StoppedAt:
    """Raises SIGTERM after so many steps of the job, once."""

    def __init__(self, monkeypatch, steps, action=stop):
        self.active = []
        watcher = self

        class Watched(MultitaskTrainer):
            def step(self, batch, active):
                metrics = super().step(batch, active)
                watcher.active.append(tuple(active))
                if len(watcher.active) == steps:
                    action(self)
                return metrics

        monkeypatch.setattr(many_job, "MultitaskTrainer", Watched)


@pytest.mark.slow
def test_a_stopped_job_resumes_to_the_same_bits_also_when_one_task_has_ended(
    world, tmp_path, monkeypatch
):
    common = dict(method="pemt_source", save_every=5)
    world.train(tmp_path / "straight", TASKS, (10, 20), library=str(tmp_path / "a"), **common)
    StoppedAt(monkeypatch, 13)
    resumed = dict(library=str(tmp_path / "b"), **common)
    with pytest.raises(Stopped, match=r"SIGTERM after steps 13 of 20 \(tiny_topic\), which are "):
        world.train(tmp_path / "resumed", TASKS, (10, 20), **resumed)
    assert (tmp_path / "resumed" / "tiny_mood" / "artefact").is_dir()  # published when it ended
    assert not (tmp_path / "resumed" / "tiny_topic" / "artefact").exists()
    watched = StoppedAt(monkeypatch, None)
    world.train(tmp_path / "resumed", TASKS, (10, 20), **resumed)
    assert watched.active == [(False, True)] * 7
    for task, steps in zip(TASKS, (10, 20), strict=True):
        assert leaves(tmp_path / "straight" / task, steps) == leaves(
            tmp_path / "resumed" / task, steps
        )
    before = snapshot(tmp_path / "resumed" / "tiny_topic" / "checkpoints")
    world.train(tmp_path / "resumed", TASKS, (10, 20), **resumed)  # nothing is left to do
    assert snapshot(tmp_path / "resumed" / "tiny_topic" / "checkpoints") == before


@pytest.mark.slow
def test_tasks_left_at_different_steps_meet_again_with_the_same_bits(world, tmp_path, monkeypatch):
    """As a kill between the savings of two tasks leaves them."""
    common = dict(method="pemt_source", save_every=5)
    world.train(tmp_path / "straight", TASKS, 20, library=str(tmp_path / "a"), **common)
    save = run.Run.save

    class Killed(BaseException):
        pass

    def first_only(loop, metrics=None):
        if loop.result.step == 10 and loop.log.path.parent.name == TASKS[1]:
            raise Killed
        save(loop, metrics)

    monkeypatch.setattr(run.Run, "save", first_only)
    with pytest.raises(Killed):
        world.train(tmp_path / "killed", TASKS, 20, library=str(tmp_path / "b"), **common)
    monkeypatch.setattr(run.Run, "save", save)
    watched = StoppedAt(monkeypatch, None)
    world.train(tmp_path / "killed", TASKS, 20, library=str(tmp_path / "b"), **common)
    assert watched.active == [(False, True)] * 5 + [(True, True)] * 10
    for task in TASKS:
        assert_same_run(tmp_path / "straight" / task, tmp_path / "killed" / task)


@pytest.mark.slow
def test_a_task_that_gets_no_better_stops_and_the_others_go_on(world, tmp_path, monkeypatch):
    scores = iter([3.0, 1.0, 2.0, 2.0, 3.0, 4.0])  # mood, topic, mood, topic, topic, topic

    def evaluate(loop):
        score = next(scores)
        loop.validation = lambda params: {loop.best_metric: score}
        real(loop)

    real = run.Run.evaluate
    monkeypatch.setattr(run.Run, "evaluate", evaluate)
    metrics = world.train(
        tmp_path / "job", TASKS, 20, eval_every=5, patience=1, **options(world, tmp_path)
    )
    assert [row["step"] for row in numbers(tmp_path / "job" / "tiny_mood")][-1] == 10
    assert [row["step"] for row in numbers(tmp_path / "job" / "tiny_topic")][-1] == 20
    assert metrics["tiny_mood/average"] == 3.0  # its best, of step 5
    assert metrics["tiny_topic/average"] == 4.0


@pytest.mark.slow
def test_a_task_that_is_not_finite_stops_alone(world, tmp_path, monkeypatch):
    def poison(trainer):
        prompt = trainer.state.trainable["prompt/embedding"]
        trainer.state.trainable["prompt/embedding"] = prompt.at[0].set(np.nan)

    StoppedAt(monkeypatch, 7, poison)
    message = r"tiny_mood: Step 7 had loss nan, .*checkpoint is step 5.* 1 of 2 tasks have ended"
    with pytest.raises(PemtError, match=message):
        world.train(tmp_path / "job", TASKS, 20, save_every=5, **options(world, tmp_path))
    assert not (tmp_path / "job" / "tiny_mood" / "artefact").exists()
    world.train(
        tmp_path / "alone", "tiny_topic", 20, save_every=5, **options(world, tmp_path / "other")
    )
    assert_same_run(tmp_path / "alone", tmp_path / "job" / "tiny_topic")


@pytest.mark.parametrize(
    ("names", "steps", "more", "message"),
    [
        (TASKS[:1] * 2, 20, {}, "names 'tiny_mood' twice, expected each once"),
        ((), 20, {}, "names no task, expected at least one"),
        (("tiny_mood", "tiny_topik"), 20, {}, "'tiny_topik'.*nearest.*tiny_topic"),
        (
            TASKS,
            (1, 2, 3),
            {},
            "Found 3 TRAIN_STEPS for 2 tasks, expected one for all or one per task",
        ),
        ("tiny_mood", (1, 2), {}, r"TRAIN_STEPS \(1, 2\) for one task, expected one number"),
        (TASKS, 20, {"expert_name": "x"}, "EXPERT_NAME 'x' for 2 tasks, expected none"),
        (TASKS, 20, {"task_loop": "mpa"}, r"Found TASK_LOOP 'mpa', .*nearest: 'map'"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(world, tmp_path, names, steps, more, message):
    given = options(world, tmp_path)
    with pytest.raises(UsageError, match=message):
        world.train(tmp_path / "job", names, steps, **given | more)
    assert not (tmp_path / "job").exists()


def test_an_optimizer_that_would_see_the_padding_of_prompts_is_refused():
    prompts = {"short": np.ones((2, 4), np.float32), "long": np.ones((5, 4), np.float32)}
    many_job.check_padding(optimizers.make_optimizer("adamw"), prompts)
    for name in ("adamw_rms", "adafactor"):
        with pytest.raises(UsageError, match="prompt of 'short' has 2 tokens and the longest 5"):
            many_job.check_padding(optimizers.make_optimizer(name), prompts)


@pytest.mark.slow
def test_the_command_trains_two_tasks_with_steps_of_their_own(world, tmp_path, capsys):
    """As a user calls it, with a schedule that ends at each task's own steps."""
    gin = re.sub(r"(?m)^optimizers.make_optimizer.schedule.*$", "", world.gin_file.read_text())
    (tmp_path / "many.gin").write_text(
        gin
        + """
optimizers.make_optimizer.schedule = @optimizers.make_schedule()
optimizers.make_schedule.train_steps = %TRAIN_STEPS
optimizers.make_schedule.learning_rate = %LEARNING_RATE
"""
    )
    flags = world.train_flags(
        tmp_path / "job",
        MIXTURE_OR_TASK_NAME=str(TASKS),
        TRAIN_STEPS="(10, 20)",
        PROMPT_TEXT=PROMPT,
    )
    flags[0] = f"--gin_file={tmp_path}/many.gin"
    assert world.command("train", *flags) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "job/tiny_mood/artefact: pemt_source on tiny_mood, step 10" in out
    flags = world.train_flags(
        tmp_path / "alone",
        MIXTURE_OR_TASK_NAME="tiny_topic",
        TRAIN_STEPS=20,
        PROMPT_TEXT=PROMPT,
        LIBRARY=tmp_path / "other",
    )
    flags[0] = f"--gin_file={tmp_path}/many.gin"
    assert world.command("train", *flags) == 0
    assert_same_run(tmp_path / "alone", tmp_path / "job" / "tiny_topic")
    capsys.readouterr()
    evaluated = world.command(
        "evaluate", f"--gin.MODEL_DIR={tmp_path}/job/tiny_mood", "--gin.BATCH_SIZE=8"
    )
    assert evaluated == 0 and "accuracy" in json.loads(capsys.readouterr().out)


SIX = ("tiny_mood", "tiny_topic", "tiny_text", "tiny_train_only", "tiny_both", "tiny_half")
SIX_DEVICES = """
import sys
from pathlib import Path

import tiny_system
from pemt_jax.training.multitask import job as many_job

shapes = []


class Watched(many_job.MultitaskTrainer):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        shapes.append((dict(self.mesh.shape), self.slots))


many_job.MultitaskTrainer = Watched
world, out = tiny_system.World(Path(sys.argv[1])), Path(sys.argv[2])
tasks, model = tuple(sys.argv[3].split(",")), int(sys.argv[4])
world.train(out / "job", tasks, 10, method="pemt_source", prompt_text="Say what it is.",
            library=str(out / "library"), model_parallel=model)
print(shapes)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "model", "mesh"),
    [
        (6, 1, "{'task': 6, 'data': 1, 'model': 1}, 6"),  # an expert a device
        (4, 1, "{'task': 2, 'data': 2, 'model': 1}, 6"),  # three in turn on each of two groups
        (4, 2, "{'task': 2, 'data': 1, 'model': 2}, 6"),
    ],
)
def test_six_tasks_on_many_devices_agree_with_one_device(world, tmp_path, devices, model, mesh):
    assert world.base
    done = world.python(
        "-c", SIX_DEVICES, world.folder, tmp_path / "six", ",".join(SIX), model, devices=devices
    )
    assert done.returncode == 0, done.stderr
    assert mesh in done.stdout
    world.train(
        tmp_path / "one",
        SIX,
        10,
        method="pemt_source",
        prompt_text=PROMPT,
        library=str(tmp_path / "library"),
    )
    for task in SIX:
        one, six = tmp_path / "one" / task, tmp_path / "six" / "job" / task
        for row, other in zip(numbers(one), numbers(six), strict=True):
            assert row.keys() == other.keys()
            np.testing.assert_allclose(other["loss"], row["loss"], rtol=1e-5)
        values, others = (
            load_weights(run / "artefact" / "weights.safetensors") for run in (one, six)
        )
        for path, value in values.items():
            np.testing.assert_allclose(others[path], value, rtol=0, atol=1e-4, err_msg=path)
