"""The step of many tasks: each task's numbers are those of a run of its own."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_model
from flax.traverse_util import flatten_dict

from pemt_jax import optimizers
from pemt_jax.model import methods
from pemt_jax.model.pemt_model import PemtModel
from pemt_jax.parallel import partitioning
from pemt_jax.training.multitask import batches as many_batches
from pemt_jax.training.multitask.trainer import MultitaskTrainer, TaskView, task_mesh
from pemt_jax.training.trainer import Trainer

T5 = dataclasses.replace(tiny_model.T5, dropout_rate=0.1)
NO_DROPOUT = tiny_model.T5
STAGES = {
    "stage 1": (tiny_model.SOURCE, "pemt_source"),
    "stage 2": (tiny_model.TARGET, "pemt_target"),
}
STEPS = 4


@functools.cache
def optimizer(train_steps=10):
    return optimizers.make_optimizer(
        schedule=optimizers.make_schedule(learning_rate=0.01, train_steps=train_steps)
    )


@pytest.fixture(autouse=True)
def quick_compilation():
    """Compiling takes most of the time; the slow test below has the optimised code."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def parts(pemt, method, seed, t5=T5):
    """(trainable, frozen) of a task; what is frozen is the same for every seed."""
    frozen = methods.split(tiny_model.random_params(t5, pemt), methods.get_method(method))[1]
    own = tiny_model.random_params(t5, pemt, seed)
    return methods.split(own, methods.get_method(method))[0], frozen


def batch_of(task, step, S=6, T=4):
    return tiny_model.make_batch([S - 1, 2], [3, T - 1], S, T, seed=100 * task + step)


class Source(list):
    batch_size = 2

    def batch(self, step, local_rows):
        return {name: values[local_rows] for name, values in self[step].items()}


def stacked(batches, slots, prompt_lengths=None, local_rows=None):
    sources, tasks = [Source([batch]) for batch in batches], len(batches)
    return many_batches.MultitaskSource(
        sources,
        [1] * tasks,
        slots,
        prompt_lengths or [4] * tasks,
        local_rows or [np.arange(2)] * tasks,
    )[0]


def single(pemt, method, task, steps=STEPS, t5=T5, train_steps=10, batches=None, frozen=None):
    """The trainer of one task alone after `steps`, and its losses."""
    trainable, own = parts(pemt, method, task, t5)
    frozen = frozen or own
    trainer = Trainer(
        PemtModel(t5, pemt).loss_fn, trainable, frozen, optimizer(train_steps), seed=7
    )
    losses = [
        float(trainer.step((batches or batch_of)(task, step))["loss"].compute())
        for step in range(steps)
    ]
    return trainer, losses


def many(pemt, method, tasks, t5=T5, train_steps=10, **options):
    trainables, frozens = zip(
        *(parts(pemt, method, task, t5) for task in range(tasks)), strict=True
    )
    return MultitaskTrainer(
        PemtModel(t5, pemt).loss_fn,
        trainables,
        frozens[0],
        optimizer(train_steps),
        2,
        seed=7,
        **options,
    )


def run(trainer, tasks, steps=STEPS, active=lambda task, step: True):
    """Losses [steps][tasks] of steps of all tasks, nan where one was not active."""
    losses = []
    for step in range(steps):
        mask = [active(task, step) for task in range(tasks)]
        metrics = trainer.step(
            stacked([batch_of(task, step) for task in range(tasks)], trainer.slots), mask
        )
        total, count = metrics["loss"].total, metrics["loss"].count
        losses.append([float(total[i] / count[i]) if mask[i] else np.nan for i in range(tasks)])
    return losses


def assert_equal(found, expected, exact=True, atol=0.0):
    found, expected = jax.device_get((found, expected))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if exact:
            assert a.shape == b.shape and a.tobytes() == b.tobytes()
        else:
            np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_map_gives_the_bits_of_single_runs(stage):
    pemt, method = STAGES[stage]
    trainer = many(pemt, method, 3, train_steps=(10, 20, 10))
    losses = np.array(run(trainer, 3))
    for task, steps in enumerate((10, 20, 10)):
        alone, expected = single(pemt, method, task, train_steps=steps)
        assert losses[:, task].tolist() == expected
        assert_equal(TaskView(trainer, task).state, alone.state)
        assert_equal(TaskView(trainer, task).params(), alone.params())


@pytest.mark.slow
def test_map_gives_the_bits_of_single_runs_in_optimised_code():
    jax.config.update("jax_disable_most_optimizations", False)
    for stage in STAGES:
        test_map_gives_the_bits_of_single_runs(stage)


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("stage 1", marks=(pytest.mark.slow, pytest.mark.walk)),
        pytest.param("stage 2", marks=pytest.mark.slow),
    ],
)
def test_vmap_agrees_with_single_runs(stage):
    pemt, method = STAGES[stage]
    trainer = many(pemt, method, 2, train_steps=(10, 20), task_loop="vmap")
    losses = np.array(run(trainer, 2))
    for task, steps in enumerate((10, 20)):
        alone, expected = single(pemt, method, task, train_steps=steps)
        np.testing.assert_allclose(losses[:, task], expected, rtol=1e-5)
        assert_equal(TaskView(trainer, task).state.trainable, alone.state.trainable, False, 1e-4)


@pytest.mark.parametrize("task_loop", ["map", "vmap"])
def test_a_task_that_is_not_active_stays_as_it_is_and_reports_nothing(task_loop):
    pemt, method = STAGES["stage 1"]
    trainer = many(pemt, method, 2, task_loop=task_loop)
    before = jax.device_get(TaskView(trainer, 1).state)
    run(trainer, 2, active=lambda task, step: task == 0)
    assert_equal(TaskView(trainer, 1).state, before)
    assert int(TaskView(trainer, 0).state.step) == STEPS
    poison = stacked([batch_of(0, 9)] * 2, trainer.slots)
    metrics = jax.device_get(trainer.step(poison, [False, False]))
    assert metrics["loss"].count.tolist() == [0, 0]
    assert metrics["first_bad_step"].step.tolist() == [-1, -1]


def test_a_task_that_is_not_active_is_not_computed():
    """Everything that multiplies matrices is inside one branch of the cond on `active`."""
    pemt, method = STAGES["stage 1"]
    trainer = many(pemt, method, 2)
    batch = stacked([batch_of(0, 0)] * 2, trainer.slots)
    jaxpr = jax.make_jaxpr(trainer._step)(
        trainer.state, trainer.frozen, batch, np.ones(2, bool), trainer._tasks, trainer._key
    )
    conds = [e for e in tiny_model.equations(jaxpr.jaxpr) if e.primitive.name == "cond"]

    def count(jaxpr):
        return sum(
            e.primitive.name == "dot_general"  # noqa: E731
            for e in tiny_model.equations(jaxpr)
        )

    (outer,) = [e for e in conds if any(count(b.jaxpr) for b in e.params["branches"])]
    branches = sorted(count(branch.jaxpr) for branch in outer.params["branches"])
    assert branches[0] == 0 and branches[1] == count(jaxpr.jaxpr) > 10


@pytest.mark.slow
def test_prompts_of_unequal_lengths_and_batches_padded_agree_with_single_runs():
    pemt, method = STAGES["stage 2"]
    short = dataclasses.replace(pemt, prompt_length=2)
    (first, frozen), (second, _) = (
        parts(p, method, task, NO_DROPOUT) for task, p in enumerate((short, pemt))
    )
    trainer = MultitaskTrainer(
        PemtModel(NO_DROPOUT, pemt).loss_fn, [first, second], frozen, optimizer(), 2, seed=7
    )
    shapes = ((6, 4), (8, 5))
    for step in range(STEPS):
        batches = [batch_of(task, step, *shape) for task, shape in enumerate(shapes)]
        batch = stacked(batches, trainer.slots, (2, 4))
        assert batch["encoder_input_tokens"].shape == (2, 2, 8)
        assert batch["encoder_prompt_weights"][:, 0].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
        trainer.step(batch, [True, True])
    for task, (options, shape) in enumerate(zip((short, pemt), shapes, strict=True)):
        alone, _ = single(
            options,
            method,
            task,
            t5=NO_DROPOUT,
            frozen=frozen,
            batches=lambda task, step, shape=shape: batch_of(task, step, *shape),
        )
        state = TaskView(trainer, task).state
        assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, alone.state)
        assert_equal(state.trainable, alone.state.trainable, False, 1e-4)
    np.testing.assert_array_equal(trainer.state.trainable["prompt/embedding"][0, :2], 0)


def test_rows_that_other_processes_read_are_left_empty():
    batches = [batch_of(0, 0), batch_of(1, 0, S=9)]
    whole, own, others = (
        stacked(batches, 2, [3, 4], rows)
        for rows in (
            None,
            [np.array([0, 1]), np.array([], int)],
            [np.array([], int), np.array([0, 1, 2, 3])],
        )
    )
    assert whole["encoder_input_tokens"].shape == (2, 2, 9)
    for name, values in whole.items():
        if name == many_batches.PROMPT_WEIGHTS:
            assert (own[name] == values).all() and (others[name] == values).all()
        else:
            assert (own[name][0] == values[0]).all() and not own[name][1].any()
            assert (others[name][1] == values[1]).all() and not others[name][0].any()
    second = stacked(batches, 2, [3, 4], [np.array([1]), np.array([1])])
    tokens = "encoder_input_tokens"
    assert (second[tokens][:, 1] == whole[tokens][:, 1]).all() and not second[tokens][:, 0].any()


def test_a_state_is_restored_into_its_slot_padded_as_it_was():
    pemt, method = STAGES["stage 1"]
    short = dataclasses.replace(pemt, prompt_length=2)
    (first, frozen), (second, _) = parts(short, method, 0), parts(pemt, method, 1)
    trainer = MultitaskTrainer(PemtModel(T5, pemt).loss_fn, [first, second], frozen, optimizer(), 2)
    changed = jax.tree.map(lambda x: x + 1, TaskView(trainer, 0).state)
    other = TaskView(trainer, 1).state

    class Kept:
        def restore(self, step, like):
            assert step == 5 and jax.tree.map(np.shape, like) == jax.tree.map(np.shape, changed)
            return changed

    TaskView(trainer, 0).restore(Kept(), 5)
    assert_equal(TaskView(trainer, 0).state, changed)
    assert_equal(TaskView(trainer, 1).state, other)
    np.testing.assert_array_equal(trainer.state.trainable["prompt/embedding"][0, :2], 0)


def test_no_two_tasks_share_what_is_trained_and_all_share_what_is_frozen():
    pemt, method = STAGES["stage 2"]
    trainer = many(pemt, method, 3)
    frozen = flatten_dict(tiny_model.random_params(T5, pemt), sep="/")
    for path, value in trainer.frozen.items():
        assert value.shape == frozen[path].shape  # no task axis
    for path, value in trainer.state.trainable.items():
        assert value.shape == (3, *frozen[path].shape)


@pytest.mark.parametrize(
    ("devices", "model", "tasks", "batch_size", "expected"),
    [
        (6, 1, 6, 8, (6, 1)),
        (8, 1, 6, 8, (2, 4)),
        (6, 1, 4, 16, (2, 3)),
        (4, 1, 6, 8, (2, 2)),
        (8, 2, 6, 8, (2, 2)),
        (1, 1, 6, 8, (1, 1)),
        (8, 1, 8, 8, (8, 1)),
        (2, 1, 6, 7, (2, 1)),
    ],
)
def test_tasks_are_dealt_to_the_groups_with_the_least_work(
    devices, model, tasks, batch_size, expected, monkeypatch
):
    class Device(int):
        device_kind, platform, process_index = "fake", "cpu", 0

    mesh = partitioning.Mesh(
        np.array([Device(i) for i in range(devices)], object).reshape(-1, model), ("data", "model")
    )
    found = task_mesh(mesh, tasks, batch_size)
    assert found.axis_names == ("task", "data", "model")
    assert found.devices.shape == (*expected, model)
    assert sorted(found.devices.ravel()) == list(range(devices))


FULLY_SHARDED = """
import sys
sys.path.insert(0, sys.argv[1])
import tiny_model
from pemt_jax import optimizers
from pemt_jax.config import PemtConfig
from pemt_jax.model import methods
from pemt_jax.model.pemt_model import PemtModel
from pemt_jax.parallel import partitioning
from pemt_jax.training.multitask.trainer import MultitaskTrainer
import jax

model = PemtModel(tiny_model.T5, PemtConfig())
features = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
shapes = dict.fromkeys(features, (1, 1))
axes = model.get_initial_variables(jax.random.key(0), shapes)["params_axes"]
params, frozen = methods.split(tiny_model.random_params(tiny_model.T5, PemtConfig()),
                               methods.get_method("full"))
for fully_sharded in (False, True):
    trainer = MultitaskTrainer(
        model.loss_fn, [params, params], frozen, optimizers.make_optimizer(), 4,
        mesh=partitioning.make_mesh(), params_axes=axes, fully_sharded=fully_sharded)
    spec = trainer.shardings.trainable["encoder/layers_0/mlp/wi/kernel"].spec
    print(trainer.mesh.shape["task"], trainer.mesh.shape["data"], "data" in spec)
"""


@pytest.mark.slow
def test_trained_matrices_of_a_job_are_sharded_over_the_data_too():
    done = subprocess.run(
        [sys.executable, "-c", FULLY_SHARDED, Path(__file__).parents[1]],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
    )
    assert done.stdout.splitlines() == ["2 2 False", "2 2 True"], done.stderr
