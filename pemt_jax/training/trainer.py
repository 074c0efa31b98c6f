"""The state of a run on its mesh, and the compiled step that changes it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import clu.metrics
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pemt_jax.common.errors import UsageError
from pemt_jax.common.layer_stacks import stack_layers
from pemt_jax.model.methods import merge
from pemt_jax.optimizers import Transformation
from pemt_jax.parallel import partitioning
from pemt_jax.parallel.stacked_layers import stack_on_devices, stacked_sharding
from pemt_jax.training.step import (
    Batch,
    LossFn,
    Params,
    TrainState,
    jit_train_step,
    shapes_of,
    state_shardings,
)

if TYPE_CHECKING:  # orbax, which the step itself does not need
    from pemt_jax.checkpoints.manager import Checkpoints


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
        release: empty the dicts `trainable` and `frozen`, so that no more than one array of
            `frozen` is in the host's memory and on the devices at once.
        scan_layers: whether the model scans its layers: `frozen` is then stacked.
    """

    def __init__(
        self,
        loss_fn: LossFn,
        trainable: Params,
        frozen: Params,
        optimizer: Transformation,
        seed: int = 0,
        mesh: Mesh | None = None,
        params_axes: Mapping | None = None,
        prng: str = "threefry2x32",
        fully_sharded: bool = False,
        release: bool = False,
        scan_layers: bool = False,
    ):
        if not trainable:
            raise UsageError("The method trains no parameter, expected at least one.")
        self.mesh = mesh or partitioning.make_mesh()
        self.seed = seed
        replicated = NamedSharding(self.mesh, PartitionSpec())
        self._key = jax.jit(lambda: jax.random.key(seed, impl=prng), out_shardings=replicated)()
        trainable_shardings, frozen_shardings = (
            partitioning.parameter_shardings(params, params_axes or {}, self.mesh, fully_sharded)
            for params in (trainable, frozen)
        )
        self.state_shardings = state_shardings(trainable, optimizer, trainable_shardings, self.mesh)
        # The step donates its state, so the caller's arrays must not be the state's memory.
        init = jax.jit(
            lambda params: TrainState(
                jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params), optimizer.init(params)
            ),
            out_shardings=self.state_shardings,
        )
        self.state = init(partitioning.place(dict(trainable), trainable_shardings))
        if release:  # before the larger part comes
            trainable.clear()
        self.frozen = {}
        for path in list(frozen):
            value = frozen.pop(path) if release else frozen[path]
            self.frozen[path] = partitioning.place(value, frozen_shardings[path])
        if scan_layers:
            self.frozen = stack_on_devices(self.frozen)
            frozen_shardings = stack_layers(frozen_shardings, lambda x: stacked_sharding(x[0]))
        self._step = jit_train_step(
            loss_fn, optimizer, self.state_shardings, frozen_shardings, self.mesh, params_axes
        )
        self._shapes: set = set()

    def compiles(self, batch: Batch) -> bool:
        """Return whether the next step on this batch has to be compiled first."""
        return shapes_of(batch) not in self._shapes

    def step(self, batch: Batch) -> dict[str, clu.metrics.Metric]:
        """Make one update in place and return the step's metrics, on the device."""
        self._shapes.add(shapes_of(batch))
        placed = partitioning.place_batch(batch, self.mesh)
        self.state, metrics = self._step(self.state, self.frozen, placed, self._key)
        return metrics

    def params(self) -> dict:
        """Return the model's nested parameters as they are now, valid until the next step."""
        return merge(self.state.trainable, self.frozen)

    @property
    def trainable_like(self) -> Params:
        """The trained parameters, for their shapes and shardings."""
        return self.state.trainable

    def examples(self, batch: Batch) -> int:
        """How many examples a batch has over all processes: those with a target that counts."""
        weights = batch.get("decoder_loss_weights")
        if weights is None:
            return len(next(iter(batch.values())))
        real = int(np.any(weights > 0, axis=-1).sum())
        return round(real / partitioning.row_share(self.mesh))

    def restore(self, checkpoints: "Checkpoints", step: int) -> None:
        """Replace the state by that of a checkpoint, on this trainer's mesh."""
        self.state = checkpoints.restore(step, self.state)
