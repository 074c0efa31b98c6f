"""One step that updates many tasks over one shared frozen backbone.

Trainable parameters, optimizer state and batches carry a leading task axis; the frozen parameters
(backbone, and in stage 2 the banks of experts and source prompts) are there once. The mesh of the
run gets a `task` axis, split off from `data`, over which the task axis is sharded: six tasks on six
devices train on one each. The tasks of one device are updated

- one after the other ("map"), where a task that has ended costs nothing: the bits are those of the
  task trained alone on batches of the same padded shape;
- or all at once ("vmap"), the wider work that may suit an accelerator; a task that has ended is
  computed and thrown away.

Outside this module a task's state is that of a run of its own (train_step.TrainState, without task
axis or padding), and so are its checkpoints.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import clu.metrics
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pemt_jax.checkpoints.manager import Checkpoints
from pemt_jax.model.methods import merge
from pemt_jax.optimizers import Transformation, with_task
from pemt_jax.parallel import partitioning, processes
from pemt_jax.parallel.activation_constraints import constrained
from pemt_jax.parallel.stacked_layers import stack_on_devices
from pemt_jax.training.multitask.batches import PROMPT_WEIGHTS
from pemt_jax.training.multitask.stacking import TaskTakers, like, longest, padded, written
from pemt_jax.training.step import (
    Batch,
    LossFn,
    Params,
    TrainState,
    make_train_step,
    shapes_of,
    state_shardings,
)


def task_mesh(mesh: Mesh, tasks: int, batch_size: int) -> Mesh:
    """`mesh` with a leading axis `task`, split off from its axis `data`.

    Of the numbers of groups that divide the data devices, the one with the least rows a device; of
    equal ones the most groups, which have the least to say to each other.
    """
    axis = mesh.axis_names.index("data")
    devices = mesh.devices.shape[axis]
    others = partitioning.padded_rows(1, mesh) // devices  # over which a batch is sharded too

    def work(groups: int) -> tuple[int, int]:
        rows = -(-batch_size // (devices // groups * others))
        return -(-tasks // groups) * rows, -groups

    groups = min((n for n in range(1, devices + 1) if devices % n == 0), key=work)
    shape = list(mesh.devices.shape)
    shape[axis : axis + 1] = [groups, devices // groups]
    split = np.moveaxis(mesh.devices.reshape(shape), axis, 0)
    return Mesh(
        split, ("task", *mesh.axis_names), axis_types=(jax.sharding.AxisType.Auto,) * split.ndim
    )


class MultitaskTrainer:
    """States and compiled step of many tasks; one compilation a batch shape.

    Args:
        loss_fn: of a model with the longest of the prompts.
        trainables: of each task, flat {path: array}; a prompt may be shorter than others.
        frozen: flat {path: array}, of all tasks.
        optimizer: of all tasks; where their schedules differ, `task` (a number) chooses among them
            (optimizers.make_optimizer with a schedule a task).
        batch_size: rows of a task's batch.
        seed, mesh, params_axes, prng, fully_sharded: as of train_step.Trainer; every task
            has the random numbers that it has alone.
        task_loop: "map" or "vmap".
        scan_layers: as of Trainer.
    """

    def __init__(
        self,
        loss_fn: LossFn,
        trainables: Sequence[Params],
        frozen: Params,
        optimizer: Transformation,
        batch_size: int,
        seed: int = 0,
        mesh: Mesh | None = None,
        params_axes: Mapping | None = None,
        prng: str = "threefry2x32",
        fully_sharded: bool = False,
        task_loop: str = "map",
        scan_layers: bool = False,
    ):
        self.seed = seed
        whole = mesh or partitioning.make_mesh()
        self.mesh = task_mesh(whole, len(trainables), batch_size)
        groups = self.mesh.shape["task"]
        self.slots = -(-len(trainables) // groups) * groups
        self._replicated = NamedSharding(self.mesh, PartitionSpec())
        self._key = jax.jit(
            lambda: jax.random.key(seed, impl=prng), out_shardings=self._replicated
        )()
        self._per_slot = NamedSharding(self.mesh, PartitionSpec("task"))
        tasks = np.minimum(np.arange(self.slots, dtype=np.int32), len(trainables) - 1)
        self._tasks = partitioning.place(tasks, self._per_slot)
        axes = params_axes or {}
        self._axes, self._whole = axes, whole
        # Frozen parameters are sharded as in a run alone, whose evaluation reads the same arrays.
        self.frozen = partitioning.place(
            dict(frozen), partitioning.parameter_shardings(frozen, axes, whole, fully_sharded)
        )
        if scan_layers:
            self.frozen = stack_on_devices(self.frozen)
        states = [self._initial(trainable, optimizer, fully_sharded) for trainable in trainables]
        self._alone = [jax.tree.map(like, state) for state in states]
        self._shapes_of_all = jax.tree.map(longest, *states)
        # Each leaf is sharded as in a run alone, behind the task axis.
        self.shardings = jax.tree.map(
            lambda x: NamedSharding(self.mesh, PartitionSpec("task", *x.sharding.spec)), states[0]
        )
        self.state = partitioning.place(self._stacked(states), self.shardings)
        self._take = TaskTakers()
        self._write = jax.jit(written, donate_argnums=0, out_shardings=self.shardings)
        rows = partitioning.batch_axes(self.mesh)
        self._batch_sharding = NamedSharding(self.mesh, PartitionSpec("task", rows))
        self._step = jax.jit(
            self._make_step(loss_fn, optimizer, task_loop),
            donate_argnums=0,
            in_shardings=(
                self.shardings,
                None,
                self._batch_sharding,
                self._per_slot,
                self._per_slot,
                self._replicated,
            ),
            out_shardings=(self.shardings, self._replicated),
        )
        self._shapes: set = set()

    def compiles(self, batch: Batch) -> bool:
        """Return whether the next step on a batch of this shape has to be compiled first."""
        return shapes_of(batch) not in self._shapes

    def step(self, batch: Batch, active: Sequence[bool]) -> dict[str, clu.metrics.Metric]:
        """Update the tasks that are active; return metrics [slots], neutral where one is not.

        `batch` is {feature: [slots, B, ...]}, see batches.py; of several processes each needs
        only its `local_rows`.
        """
        self._shapes.add(shapes_of(batch))
        made = np.array([*active, *[False] * self.slots][: self.slots])
        rows = batch["encoder_input_tokens"].shape[1]
        missing = partitioning.padded_rows(rows, self.mesh) - rows
        filled = {name: np.pad(x, ((0, 0), (0, missing), (0, 0))) for name, x in batch.items()}
        if PROMPT_WEIGHTS in batch:  # rows that only fill the batch have a prompt too
            filled[PROMPT_WEIGHTS] = np.pad(
                batch[PROMPT_WEIGHTS], ((0, 0), (0, missing), (0, 0)), mode="edge"
            )
        placed = partitioning.place(filled, dict.fromkeys(batch, self._batch_sharding))
        made = partitioning.place(made, self._per_slot)
        self.state, metrics = self._step(
            self.state, self.frozen, placed, made, self._tasks, self._key
        )
        return metrics

    def local_rows(self, slot: int, batch_size: int) -> np.ndarray:
        """Which rows of a slot's batch, filled up for the mesh, are on this process, in order."""
        total = partitioning.padded_rows(batch_size, self.mesh)
        held = self._batch_sharding.addressable_devices_indices_map((self.slots, total)).values()
        slices = [index for index in held if index is not None]
        rows = [
            np.arange(total)[index] for slots, index in slices if slot in range(self.slots)[slots]
        ]
        return np.unique(np.concatenate([np.zeros(0, int), *rows]))

    def _initial(
        self, trainable: Params, optimizer: Transformation, fully_sharded: bool
    ) -> TrainState:
        """The state of a run of its own, on the mesh without tasks."""
        shardings = partitioning.parameter_shardings(
            trainable, self._axes, self._whole, fully_sharded
        )
        init = jax.jit(
            lambda params: TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params)),
            out_shardings=state_shardings(trainable, optimizer, shardings, self._whole),
        )
        return init(partitioning.place(dict(trainable), shardings))

    def _stacked(self, states: Sequence[TrainState]) -> TrainState:
        """Host arrays [slots, ...], padded on the left; slots without a task are zero."""
        states = [processes.to_host(state) for state in states]

        def stack(like, *leaves):
            stacked = np.zeros((self.slots, *like.shape), like.dtype)
            for slot, leaf in enumerate(leaves):
                stacked[slot] = padded(leaf, like.shape)
            return stacked

        return jax.tree.map(stack, self._shapes_of_all, *states)

    def _make_step(self, loss_fn: LossFn, optimizer, task_loop: str):
        if self.mesh.shape["task"] == 1:  # else XLA shards activations like their inputs
            loss_fn = constrained(loss_fn, self.mesh, self._axes)
        optimizer = with_task(optimizer)

        def update_one(state, frozen, batch, active, task, key):
            own = optax.GradientTransformation(
                optimizer.init, functools.partial(optimizer.update, task=task)
            )
            update = make_train_step(loss_fn, own)
            made = functools.partial(update, state, frozen, batch, key)
            neutral = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(made)[1])
            neutral["first_bad_step"] = neutral["first_bad_step"].replace(
                step=jnp.full((), -1, state.step.dtype)
            )
            return jax.lax.cond(active, made, lambda: (state, neutral))

        def step(state, frozen, batch, active, tasks, key):
            def one(slot):
                state, batch, active, task = slot
                return update_one(state, frozen, batch, active, task, key)

            over = jax.vmap(one) if task_loop == "vmap" else functools.partial(jax.lax.map, one)
            return over((state, batch, active, tasks))

        if self.mesh.shape["task"] == 1:
            return step
        tasks, everywhere = PartitionSpec("task"), PartitionSpec()
        return jax.shard_map(
            step,
            mesh=self.mesh,
            axis_names={"task"},
            check_vma=False,
            in_specs=(tasks, everywhere, tasks, tasks, tasks, everywhere),
            out_specs=tasks,
        )


@dataclasses.dataclass(frozen=True)
class TaskView:
    """One task of a MultitaskTrainer, as a run of its own sees its trainer."""

    trainer: MultitaskTrainer
    task: int

    @property
    def seed(self) -> int:
        return self.trainer.seed

    @property
    def frozen(self) -> Params:
        return self.trainer.frozen

    @property
    def state(self) -> TrainState:
        """The state as it would be in a run of its own; a copy."""
        return self.trainer._take(self._alone)(self.trainer.state, self.task)

    @property
    def trainable_like(self) -> dict[str, jax.ShapeDtypeStruct]:
        return self._alone.trainable

    def params(self) -> dict:
        """The nested parameters of the task's own model; trained ones are a copy."""
        take = self.trainer._take(self.trainable_like)
        return merge(take(self.trainer.state.trainable, self.task), self.frozen)

    def restore(self, checkpoints: Checkpoints, step: int) -> None:
        """Replace the state by that of the task's checkpoint."""
        alone = processes.to_host(checkpoints.restore(step, self._alone))
        like = self.trainer._shapes_of_all
        whole = jax.tree.map(lambda x, all_: padded(x, all_.shape), alone, like)
        self.trainer.state = self.trainer._write(self.trainer.state, whole, self.task)

    @property
    def _alone(self) -> TrainState:
        """Shapes and shardings of the state of a run of its own."""
        return self.trainer._alone[self.task]
