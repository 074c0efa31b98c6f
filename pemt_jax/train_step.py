"""One update of the trainable parameters, compiled for a mesh.

The step takes the trainable parameters and the optimizer state, which it gives back changed in the
same memory, and the frozen parameters, which it only reads: no gradient, optimizer slot or
checkpoint entry exists for them. The random numbers of step n come from fold_in(key(seed), n), so
that a run which stops and resumes is the run that never stopped, bit for bit.
"""

from collections.abc import Callable, Mapping

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pemt_jax import partitioning
from pemt_jax.activations import constrained
from pemt_jax.checkpoints import Checkpoints
from pemt_jax.errors import UsageError
from pemt_jax.finiteness import first_bad_leaf
from pemt_jax.methods import merge

Params = dict[str, jax.Array]
Batch = Mapping[str, np.ndarray]
LossFn = Callable[[dict, Mapping[str, jax.Array], jax.Array | None], tuple[jax.Array, dict]]


@flax.struct.dataclass
class TrainState:
    """What a run changes: `step` updates made, flat trainable parameters, optimizer state."""

    step: jax.Array
    trainable: Params
    opt_state: optax.OptState


@flax.struct.dataclass
class FirstBadStep(clu.metrics.Metric):
    """The first step with a loss or norm that was not finite; `step` is -1 for none.

    `leaf` is its first_bad_leaf (pemt_jax.finiteness).

    The update counts too: an optimizer can overflow on a finite gradient.
    """

    step: jax.Array
    loss: jax.Array
    gradient_norm: jax.Array
    update_norm: jax.Array
    leaf: jax.Array

    @classmethod
    def of(cls, step: jax.Array, leaf: jax.Array, **values: jax.Array) -> "FirstBadStep":
        finite = jnp.isfinite(jnp.stack(list(values.values()))).all()
        return cls(jnp.where(finite, -1, step), leaf=leaf, **values)

    def merge(self, other: "FirstBadStep") -> "FirstBadStep":
        return jax.tree.map(lambda a, b: jnp.where(self.step >= 0, a, b), self, other)


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Params, Mapping[str, jax.Array], jax.Array], tuple[TrainState, dict]]:
    """Return step(state, frozen, batch, key) -> (state, metrics); not yet jitted.

    The run's key is an argument, so that runs which differ by seed share one compiled step.

    The loss is differentiated with respect to `state.trainable` only. metrics holds `loss` and
    `gradient_norm` (before clipping) of the step, what the model reports, and `first_bad_step`.
    """

    def train_step(state: TrainState, frozen: Params, batch, key) -> tuple[TrainState, dict]:
        rng = jax.random.fold_in(key, state.step)

        def loss_of(trainable):
            return loss_fn(merge(trainable, frozen), batch, rng)

        (loss, reported), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.trainable)
        gradient_norm = optax.global_norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        average = clu.metrics.Average.from_model_output
        metrics = {
            "loss": average(loss),
            "gradient_norm": average(gradient_norm),
            **reported,
            "first_bad_step": FirstBadStep.of(
                state.step, first_bad_leaf(gradients, updates), loss=loss,
                gradient_norm=gradient_norm, update_norm=optax.global_norm(updates),
            ),  # fmt: skip
        }
        return TrainState(state.step + 1, trainable, opt_state), metrics

    return train_step


def state_shardings(
    trainable: Params,
    optimizer: optax.GradientTransformation,
    trainable_shardings: Mapping[str, NamedSharding],
    mesh: Mesh,
) -> TrainState:
    """Return a TrainState of shardings; `trainable` may hold arrays or their shapes."""
    opt_shapes = jax.eval_shape(optimizer.init, trainable)
    return TrainState(
        NamedSharding(mesh, PartitionSpec()),
        dict(trainable_shardings),
        partitioning.optimizer_shardings(opt_shapes, trainable_shardings, mesh),
    )


def jit_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    state_shardings: TrainState,
    frozen_shardings: Mapping[str, NamedSharding],
    mesh: Mesh,
    params_axes: Mapping | None = None,
) -> Callable:
    """Return `make_train_step`'s function, jitted for a mesh; it reuses the state's memory."""
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        make_train_step(constrained(loss_fn, mesh, params_axes), optimizer),
        donate_argnums=0,
        in_shardings=(
            state_shardings,
            frozen_shardings,
            partitioning.batch_sharding(mesh),
            replicated,
        ),
        out_shardings=(state_shardings, replicated),
    )


@jax.jit
def merge_metrics(total: dict, new: dict) -> dict:
    """Merge two dicts of clu metrics on the device."""
    return {name: total[name].merge(metric) for name, metric in new.items()}


def compute_metrics(metrics: Mapping[str, clu.metrics.Metric]) -> dict[str, float]:
    """Bring merged metrics to the host as floats."""
    values = jax.device_get({name: metric.compute() for name, metric in metrics.items()})
    return {name: float(value) for name, value in values.items()}


class Trainer:
    """State and compiled step of one run on a mesh; one compilation a batch shape.

    Args:
        loss_fn: PemtModel.loss_fn: (params, batch, rng) -> (loss, {name: clu metric}).
        trainable: flat {path: array}; copied, for the step reuses the memory of its own arrays.
        frozen: flat {path: array}, never changed; may be bfloat16.
        optimizer: given the trainable parameters only.
        seed: of dropout.
        mesh: see partitioning.make_mesh; all devices as data when None.
        params_axes: the model's logical axes, or None to replicate every parameter.
        prng: "threefry2x32", the same bits on every machine and mesh; or "rbg", quicker dropout
            on accelerators, with bits that depend on both.
        fully_sharded: whether the backbone's matrices are split over data as well.
    """

    def __init__(
        self,
        loss_fn: LossFn,
        trainable: Params,
        frozen: Params,
        optimizer: optax.GradientTransformation,
        seed: int = 0,
        mesh: Mesh | None = None,
        params_axes: Mapping | None = None,
        prng: str = "threefry2x32",
        fully_sharded: bool = False,
    ):
        if not trainable:
            raise UsageError("The method trains no parameter, expected at least one.")
        self.mesh = mesh or partitioning.make_mesh()
        self.seed = seed
        replicated = NamedSharding(self.mesh, PartitionSpec())
        self._key = jax.jit(
            lambda: jax.random.key(seed, impl=prng), out_shardings=replicated
        )()
        trainable_shardings, frozen_shardings = (
            partitioning.parameter_shardings(params, params_axes or {}, self.mesh, fully_sharded)
            for params in (trainable, frozen)
        )
        self.state_shardings = state_shardings(
            trainable, optimizer, trainable_shardings, self.mesh
        )
        self.frozen = partitioning.place(dict(frozen), frozen_shardings)
        # The step donates its state, so the caller's arrays must not be the state's memory.
        init = jax.jit(
            lambda params: TrainState(
                jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params), optimizer.init(params)
            ),
            out_shardings=self.state_shardings,
        )
        self.state = init(partitioning.place(dict(trainable), trainable_shardings))
        self._step = jit_train_step(
            loss_fn, optimizer, self.state_shardings, frozen_shardings, self.mesh, params_axes
        )
        self._shapes: set = set()

    def compiles(self, batch: Batch) -> bool:
        """Return whether the next step on this batch has to be compiled first."""
        return _shape(batch) not in self._shapes

    def step(self, batch: Batch) -> dict[str, clu.metrics.Metric]:
        """Make one update in place and return the step's metrics, on the device."""
        self._shapes.add(_shape(batch))
        placed = partitioning.place_batch(batch, self.mesh)
        self.state, metrics = self._step(self.state, self.frozen, placed, self._key)
        return metrics

    def params(self) -> dict:
        """Return the model's nested parameters as they are now, valid until the next step."""
        return merge(self.state.trainable, self.frozen)

    def restore(self, checkpoints: Checkpoints, step: int) -> None:
        """Replace the state by that of a checkpoint, on this trainer's mesh."""
        self.state = checkpoints.restore(step, self.state)


def _shape(batch: Batch) -> tuple:
    return tuple(sorted((name, value.shape) for name, value in batch.items()))
