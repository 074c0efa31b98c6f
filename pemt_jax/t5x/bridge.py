"""PemtModel as a model of T5X, for `python -m t5x.train`, `t5x.eval` and `t5x.infer`.

T5X is not on PyPI: only the first three modules need it, and no other folder imports any of these.
The gin files in configs/t5x bind what they hold.

    bridge        the model and its partial training
    model         new_model, built as pemt_jax.train does it, and trained_model
    state         initial values, artefacts beside T5X's checkpoints, small checkpoints, data
    run_folder    whose run is in MODEL_DIR
    gin_checks    a wrong configuration, or a failure, in one sentence

T5X differentiates all parameters. Frozen ones are cut off by stop_gradient, so that XLA computes no
gradient of them, and optax's multi_transform gives them neither state nor update; T5X's own
MultiOptimizer would do that too but cannot be resumed with orbax 0.12.
"""

# T5X is not on PyPI, so its types are not known where types are checked.
# pyright: reportAttributeAccessIssue=false

import dataclasses

import flax.linen.partitioning as flax_partitioning
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import core as flax_core

from pemt_jax.common.errors import UsageError
from pemt_jax.model.methods import merge, split
from pemt_jax.parallel.partitioning import LOGICAL_AXIS_RULES
from pemt_jax.run_config import TrainConfig
from pemt_jax.runs.build_model import BuiltModel
from pemt_jax.t5x import gin_checks

try:
    from t5x import models, optimizers, partitioning
except ImportError as error:
    raise UsageError(
        f"The T5X driver needs T5X, which cannot be imported here ({error}); expected T5X and what "
        "it needs, installed by the three lines in pemt_jax/t5x/README.md."
    ) from error

gin_checks.install()

Optimizer = optax.GradientTransformation | optimizers.OptimizerDef


class PemtT5X(models.BaseTransformerModel):
    """An assembled PemtModel that speaks T5X's protocol.

    Attributes:
      built: the model and its initial values.
      config: of a run that trains; None of one that does not.
      num_decodes, alpha: beams and their length penalty in predictions; 1 for greedy search.
    """

    def __init__(
        self,
        built: BuiltModel,
        optimizer: Optimizer | None = None,
        config: TrainConfig | None = None,
        num_decodes: int = 1,
        alpha: float = 0.6,
    ):
        # T5X asks for the values several times, some of them while it compiles.
        params = {path: np.asarray(value) for path, value in built.params.items()}
        self.built, self.config = dataclasses.replace(built, params=params), config
        self.num_decodes, self.alpha = num_decodes, alpha
        self._batch_size: int | None = None  # of an update, once T5X has said it
        self._model = built.model
        self.FEATURE_CONVERTER_CLS = self._model.FEATURE_CONVERTER_CLS
        super().__init__(
            module=self._model.module,
            input_vocabulary=self._model.input_vocabulary,
            output_vocabulary=self._model.output_vocabulary,
            optimizer_def=None if optimizer is None else partial_optimizer(optimizer, built),
        )

    def get_initial_variables(self, rng, input_shapes, input_types=None) -> dict:
        """Return the assembly's values, {"params", "params_axes"}; no argument changes them.

        Compiled, they are constants of the program: state.StateInitializer places a large
        model's values on the devices instead.
        """
        if any(name.endswith("_segment_ids") for name in input_shapes):
            raise UsageError(
                "Found a packed data set, expected pack=False: the rows of a packed "
                "batch would share one prompt and one gate."
            )
        self._batch_size = input_shapes["encoder_input_tokens"][0]
        return {"params": self.built.nested(), "params_axes": self.built.params_axes}

    def loss_fn(self, params, batch, dropout_rng):
        """PemtModel.loss_fn, constant in the frozen parameters.

        T5X adds up the gradients of microbatches, and ours are those of a mean: the loss of a part
        of the batch counts as much as the part, which makes the sum the mean over all parts. Each
        of them is normalised by its own target tokens.
        """
        trainable, frozen = split(params, self.built.method)
        params = merge(trainable, jax.lax.stop_gradient(frozen))
        loss, metrics = self._model.loss_fn(params, batch, dropout_rng)
        rows = batch["encoder_input_tokens"].shape[0]
        return loss * (rows / (self._batch_size or rows)), metrics

    def predict_batch_with_aux(
        self,
        params,
        batch,
        rng=None,
        decoder_params=None,
        return_all_decodes: bool = False,
        num_decodes: int | None = None,
    ):
        """PemtModel.predict_batch_with_aux; a row with text is decoded without targets too."""
        real_B1 = jnp.any(batch["encoder_input_tokens"] != 0, axis=1, keepdims=True)
        weights_BT = jnp.broadcast_to(real_B1, batch["decoder_target_tokens"].shape)
        return self._model.predict_batch_with_aux(
            params,
            {**batch, "decoder_loss_weights": weights_BT},
            rng,
            {"alpha": self.alpha} | dict(decoder_params or {}),
            return_all_decodes,
            num_decodes or self.num_decodes,
        )

    def score_batch(self, params, batch, return_intermediates: bool = False):
        """PemtModel.score_batch."""
        return self._model.score_batch(params, batch, return_intermediates)

    def _compute_logits(self, params, batch, dropout_rng=None):
        return self._model.apply(params, batch, dropout_rng)[0]


def partial_optimizer(optimizer: Optimizer, built: BuiltModel) -> optimizers.OptimizerDef:
    """Return `optimizer` for T5X, with neither state nor update for frozen parameters.

    Raises:
      UsageError: T5X cannot place its state, or it is T5X's own and the method freezes something.
    """
    trainable, frozen = split(built.nested(), built.method)
    if isinstance(optimizer, optimizers.OptimizerDef):
        if frozen:
            raise UsageError(
                f"Method {built.method.name!r} freezes parameters, which "
                f"{type(optimizer).__name__} of T5X would train; expected an optax "
                "optimizer, as optimizers.make_optimizer makes."
            )
        return optimizer

    def labels(params):  # of the same kind of tree as the parameters
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "train" if "/".join(key.key for key in path) in trainable else "freeze",
            params,
        )

    whole = optax.multi_transform({"train": optimizer, "freeze": optax.set_to_zero()}, labels)
    state = jax.eval_shape(whole.init, flax_core.freeze(built.nested()))
    try:
        optimizers.OptaxStatePartitionRules.derive_optax_logical_axes(
            state, flax_partitioning.get_axis_names(flax_core.freeze(built.params_axes))
        )
    except ValueError as error:
        raise UsageError(
            f"T5X cannot train with this optimizer ({error}), expected 'adamw' or "
            "another of optimizers.make_optimizer."
        ) from error
    return optimizers.OptaxWrapper(whole)


def logical_axis_rules() -> list[tuple[str, str | None]]:
    """Rules for the logical axes that T5X's standard rules do not have.

    T5X's mesh is data x model: what we split over an axis of experts is whole on each device there.
    """
    known = {axis for axis, _ in partitioning.standard_logical_axis_rules()}
    return [
        (axis, mesh_axis if mesh_axis in ("data", "model") else None)
        for axis, mesh_axis in LOGICAL_AXIS_RULES.items()
        if axis not in known
    ]
