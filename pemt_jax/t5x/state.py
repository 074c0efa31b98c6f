"""What T5X's checkpoints start from, and what is written beside them.

T5X calls four things of ours, all of them through its public configuration:
- `StateInitializer` (train's train_state_initializer_cls) makes the first state. The values of the
  base and the experts go from the host to their place on the mesh; as results of a compiled
  function they would be constants of its program.
- `Publish` (SaveCheckpointConfig.state_transformation_fns) is given every state that T5X saves.
  It writes what is trained as artefact_STEP and artefact, which the commands of this package read;
  after the last step an expert enters the library, and methods full and decoder leave a base. It
  can leave the frozen parameters out of T5X's checkpoint.
- `FillFrozen` (RestoreCheckpointConfig.state_transformation_fns) puts them back in.
- `train_data` (train's get_dataset_fn) makes the batches, whose position is in the checkpoint.
"""

# T5X is not on PyPI, so its types are not known where types are checked.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import tensorflow as tf
from clu.data.dataset_iterator import TfDatasetIterator
from etils import epath
from flax import core as flax_core
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from pemt_jax.library.artefact import read_artefact, write_artefact
from pemt_jax.model.methods import split
from pemt_jax.runs.publish import ARTEFACT, publish
from pemt_jax.t5x.bridge import PemtT5X  # first: it says how to install T5X

from t5x import train_state, utils  # isort: skip


class StateInitializer(utils.TrainStateInitializer):
    """T5X's initializer, with the values of the built model."""

    def __init__(self, optimizer_def, init_fn, input_shapes, partitioner, input_types=None):
        super().__init__(optimizer_def, init_fn, input_shapes, partitioner, input_types)
        self._built = init_fn.__self__.built
        self._optimizer = optimizer_def
        self._mesh_partitioner = partitioner

    def from_scratch(self, init_rng):
        """Return the first state on the mesh; `init_rng` changes nothing."""
        axes, made = self.train_state_axes, self._built

        def place(value, spec):
            sharding = NamedSharding(self._mesh_partitioner.mesh, spec)
            return jax.make_array_from_callback(value.shape, sharding, value.__getitem__)

        def create(params):
            variables = flax_core.freeze({"params": params, "params_axes": made.params_axes})
            if self._optimizer is None:
                return train_state.InferenceState.create(variables)
            return train_state.FlaxOptimTrainState.create(self._optimizer, variables)

        params = jax.tree.map(place, flax_core.freeze(made.nested()), axes.params)
        create = self._mesh_partitioner.partition(
            create, in_axis_resources=(axes.params,), out_axis_resources=axes
        )
        return create(params)


class Publish:
    """Writes what is trained whenever T5X saves a checkpoint.

    Args:
      model: the model of the run, with its `config`.
      save_frozen: whether T5X's checkpoint has the frozen parameters too. Without them it is as
        small as the artefact and its optimizer state, and can only be restored with `FillFrozen`.
    """

    def __init__(self, model: PemtT5X, save_frozen: bool = True):
        self.model, self.save_frozen = model, save_frozen

    def __call__(self, state_dict: Mapping, parameter_infos: Mapping) -> tuple[Mapping, Mapping]:
        """Publish `state_dict` and return what T5X saves of both."""
        trainable, frozen = split(state_dict["target"], self.model.built.method)
        step = int(utils.get_local_data(state_dict["state"]["step"]))
        if step > 0:
            self.publish(step, trainable)
        if self.save_frozen or not frozen:
            return state_dict, parameter_infos
        infos, _ = split(parameter_infos["target"], self.model.built.method)
        nested = lambda flat: traverse_util.unflatten_dict(flat, sep="/")  # noqa: E731
        return (
            {**state_dict, "target": nested(trainable)},
            {**parameter_infos, "target": nested(infos)},
        )

    def publish(self, step: int, trainable: Mapping) -> None:
        """Write artefact_STEP and artefact; after the last step an expert to the library."""
        config, built = self.model.config, self.model.built
        assert config is not None, "a model that trains"
        last = step >= config.steps
        if built.method.base and not last:
            return
        if jax.process_count() > 1:
            trainable = multihost_utils.process_allgather(trainable, tiled=True)
        if jax.process_index() != 0:
            return
        values = {path: np.asarray(value, np.float32) for path, value in trainable.items()}
        config = config if last else config.replace(expert_name=None)
        folder = publish(config, values, built, {"step": step})
        if folder.name == ARTEFACT:
            write_artefact(folder.with_name(f"{ARTEFACT}_{step}"), *read_artefact(folder))


class FillFrozen:
    """Completes a checkpoint that has no frozen parameters, from the model's base and experts."""

    def __init__(self, model: PemtT5X):
        self.model = model

    def __call__(
        self, state_dict: Mapping, target_state_dict: Mapping, *, is_resuming: bool = False
    ) -> Mapping:
        """Return `state_dict` with the frozen parameters that it lacks."""
        del target_state_dict, is_resuming
        _, frozen = split(self.model.built.nested(), self.model.built.method)
        saved = traverse_util.flatten_dict(state_dict["target"], sep="/")
        whole = traverse_util.unflatten_dict({**frozen, **saved}, sep="/")
        return {**state_dict, "target": whole}


class FromTheStart(TfDatasetIterator):
    """Batches that begin anew where a run goes on from step 0.

    T5X fetches the first batch before it saves checkpoint_0, which then says that it was used.
    """

    def restore(self, filename: epath.Path) -> None:
        """Go to the position in a file of a checkpoint, which T5X names by a string."""
        if "checkpoint_0" not in Path(filename).parts:
            super().restore(filename)


def train_data(*args, **kwargs):
    """T5X's utils.get_dataset; the batches of tf.data as `FromTheStart`."""
    data = utils.get_dataset(*args, **kwargs)
    return FromTheStart(data, checkpoint=True) if isinstance(data, tf.data.Dataset) else data
