"""One update of the trainable parameters, compiled for a mesh.

The step updates the trainable parameters and the optimizer state in place and only reads the frozen
parameters, which have no gradients, optimizer slots or checkpoint entries. The random numbers of
step n come from fold_in(key(seed), n), so that a resumed run equals an uninterrupted one bit for
bit.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pemt_jax.model.methods import merge
from pemt_jax.optimizers import Transformation
from pemt_jax.parallel import partitioning
from pemt_jax.parallel.activation_constraints import constrained
from pemt_jax.training.nonfinite import first_bad_leaf

Params = dict[str, jax.Array]
Batch = Mapping[str, np.ndarray]
LossFn = Callable[[dict, Mapping[str, jax.Array], jax.Array | None], tuple[jax.Array, dict]]


@flax.struct.dataclass
class TrainState:
    """What a step changes: the number of updates, flat trainable parameters, optimizer state."""

    # Any: trees of shapes and of shardings have this structure too.
    step: Any
    trainable: dict[str, Any]
    opt_state: Any


@flax.struct.dataclass
class FirstBadStep(clu.metrics.Metric):
    """The first step with a loss or norm that was not finite; `step` is -1 if there is none.

    The norm of the update is checked too, because an optimizer can overflow on a finite gradient.
    `leaf` is the step's `first_bad_leaf`.
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
    loss_fn: LossFn, optimizer: Transformation
) -> Callable[[TrainState, Params, Mapping[str, jax.Array], jax.Array], tuple[TrainState, dict]]:
    """Return step(state, frozen, batch, key) -> (state, metrics), not jitted.

    The loss is differentiated with respect to `state.trainable` only. `metrics` contains `loss` and
    `gradient_norm` (before clipping) of the step, the model's metrics, and `first_bad_step`. The
    run's key is an argument so that runs with different seeds can share one compiled step.
    """

    def train_step(state: TrainState, frozen: Params, batch, key) -> tuple[TrainState, dict]:
        rng = jax.random.fold_in(key, state.step)

        def loss_of(trainable):
            return loss_fn(merge(trainable, frozen), batch, rng)

        (loss, reported), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.trainable)
        gradient_norm = optax.global_norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
        trainable = cast(dict, optax.apply_updates(state.trainable, updates))
        average = clu.metrics.Average.from_model_output
        metrics = {
            "loss": average(loss),
            "gradient_norm": average(gradient_norm),
            **reported,
            "first_bad_step": FirstBadStep.of(
                state.step,
                first_bad_leaf(gradients, updates),
                loss=loss,
                gradient_norm=gradient_norm,
                update_norm=optax.global_norm(updates),
            ),
        }
        return TrainState(state.step + 1, trainable, opt_state), metrics

    return train_step


def shapes_of(batch: Batch) -> tuple:
    """Return the shapes for which a step on the batch is compiled."""
    return tuple(sorted((name, value.shape) for name, value in batch.items()))


def state_shardings(
    trainable: Params,
    optimizer: Transformation,
    trainable_shardings: Mapping[str, NamedSharding],
    mesh: Mesh,
) -> TrainState:
    """Return a TrainState of shardings; `trainable` contains arrays or their shapes."""
    opt_shapes = jax.eval_shape(optimizer.init, trainable)
    return TrainState(
        NamedSharding(mesh, PartitionSpec()),
        dict(trainable_shardings),
        partitioning.optimizer_shardings(opt_shapes, trainable_shardings, mesh),
    )


def jit_train_step(
    loss_fn: LossFn,
    optimizer: Transformation,
    state_shardings: TrainState,
    frozen_shardings: Mapping[str, NamedSharding],
    mesh: Mesh,
    params_axes: Mapping | None = None,
) -> Callable:
    """Return the function of `make_train_step`, jitted for a mesh; it donates the state."""
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
    """Merge two dicts of clu metrics without copying them to the host."""
    return {name: total[name].merge(metric) for name, metric in new.items()}


def compute_metrics(metrics: Mapping[str, clu.metrics.Metric]) -> dict[str, float]:
    """Return the values of metrics as floats on the host."""
    values = jax.device_get({name: metric.compute() for name, metric in metrics.items()})
    return {name: float(value) for name, value in values.items()}
