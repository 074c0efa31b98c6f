"""PemtModel as a model of T5X, for `python -m t5x.train`, `t5x.eval` and `t5x.infer`.

T5X is not on PyPI, so this module is the only one, with t5x_state, that imports it, and nothing
of the package imports this one. The gin files in configs/t5x bind what is here:

    new_model()             a model to train, put together as pemt_jax.train does it
    trained_model()         the model of a run that has been published, for eval and infer
    logical_axis_rules()    PEMT's logical axes, for T5X's partitioner
    t5x_state               initial values, artefacts beside checkpoints, small checkpoints

T5X differentiates all parameters. Frozen ones are cut off by stop_gradient, so that XLA computes no
gradient of them, and optax's multi_transform gives them neither state nor update; T5X's own
MultiOptimizer would do that too but cannot be resumed with orbax 0.12.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import flax.linen.partitioning as flax_partitioning
import jax
import jax.numpy as jnp
import optax
from flax import core as flax_core

from pemt_jax import library as expert_library
from pemt_jax import runs, tasks
from pemt_jax.artefact import CARD, read_card
from pemt_jax.assembly import MINI_T5, Assembly, assemble
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.errors import PemtError, UsageError
from pemt_jax.methods import get_method, merge, split
from pemt_jax.partitioning import LOGICAL_AXIS_RULES
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY, prefer

try:
    from t5x import models, optimizers, partitioning
except ImportError as error:
    raise UsageError(
        f"The T5X driver needs T5X, which cannot be imported here ({error}); expected T5X and what "
        "it needs, installed by the three lines in the README's section 'Under T5X'."
    ) from error

Optimizer = optax.GradientTransformation | optimizers.OptimizerDef
FREE = {"dropout_rate", "broadcast_dropout", "dtype"}  # of T5Config: not the shape


@dataclasses.dataclass(frozen=True)
class Publication:
    """Where what a run trains is published, and under which names; see runs.publish."""

    folder: Path
    task: str
    task_feature_lengths: Mapping[str, int]
    train_steps: int
    base: str | None
    library: str
    expert_name: str | None
    base_dtype: str


class PemtT5X(models.BaseTransformerModel):
    """An assembled PemtModel that speaks T5X's protocol.

    Attributes:
      assembly: the model and its initial values.
      publication: of a run that trains; None of one that does not.
      num_decodes, alpha: beams and their length penalty in predictions; 1 for greedy search.
    """

    def __init__(self, assembly: Assembly, optimizer: Optimizer | None = None,
                 publication: Publication | None = None, num_decodes: int = 1,
                 alpha: float = 0.6):  # fmt: skip
        self.assembly, self.publication = assembly, publication
        self.num_decodes, self.alpha = num_decodes, alpha
        self._model = assembly.model
        self.FEATURE_CONVERTER_CLS = self._model.FEATURE_CONVERTER_CLS
        super().__init__(
            module=self._model.module,
            input_vocabulary=self._model.input_vocabulary,
            output_vocabulary=self._model.output_vocabulary,
            optimizer_def=None if optimizer is None else partial_optimizer(optimizer, assembly),
        )

    def get_initial_variables(self, rng, input_shapes, input_types=None) -> dict:
        """Return the assembly's values, {"params", "params_axes"}; the arguments change nothing.

        Compiled, they are constants of the program: t5x_state.StateInitializer places a large
        model's values on the devices instead.
        """
        if any(name.endswith("_segment_ids") for name in input_shapes):
            raise UsageError("Found a packed data set, expected pack=False: the rows of a packed "
                             "batch would share one prompt and one gate.")
        return {"params": self.assembly.nested(), "params_axes": self.assembly.params_axes}

    def loss_fn(self, params, batch, dropout_rng):
        """PemtModel.loss_fn, constant in the frozen parameters."""
        trainable, frozen = split(params, self.assembly.method)
        params = merge(trainable, jax.lax.stop_gradient(frozen))
        return self._model.loss_fn(params, batch, dropout_rng)

    def predict_batch_with_aux(self, params, batch, rng=None, decoder_params=None,
                               return_all_decodes: bool = False,
                               num_decodes: int | None = None):  # fmt: skip
        """PemtModel.predict_batch_with_aux; a row with text is decoded without targets too."""
        real_B1 = jnp.any(batch["encoder_input_tokens"] != 0, axis=1, keepdims=True)
        weights_BT = jnp.broadcast_to(real_B1, batch["decoder_target_tokens"].shape)
        return self._model.predict_batch_with_aux(
            params, {**batch, "decoder_loss_weights": weights_BT}, rng,
            {"alpha": self.alpha} | dict(decoder_params or {}), return_all_decodes,
            num_decodes or self.num_decodes,
        )  # fmt: skip

    def score_batch(self, params, batch, return_intermediates: bool = False):
        """PemtModel.score_batch."""
        return self._model.score_batch(params, batch, return_intermediates)

    def _compute_logits(self, params, batch, dropout_rng=None):
        return self._model.apply(params, batch, dropout_rng)[0]


def new_model(
    method: str,
    mixture_or_task_name: str,
    task_feature_lengths: Mapping[str, int],
    model_dir: str,
    train_steps: int,
    optimizer: Optimizer,
    initial_checkpoint_path: str | None = MINI_T5,
    t5: object | None = None,
    options: PemtConfig | None = None,
    prompt_text: str | None = None,
    library: str | None = None,
    experts: Sequence[str] = (),
    initial_expert: str | None = None,
    expert_name: str | None = None,
    dropout_rate: float | None = None,
    broadcast_dropout: bool | None = None,
    dtype: str | None = None,
    embedding_rows: int | None = None,
    base_dtype: str = "float32",
    max_decode_length: int | None = None,
    seed: int = 0,
) -> PemtT5X:
    """Return a model for t5x.train; the arguments are those of pemt_jax.train.train, except:

    Args:
      model_dir: a local folder for artefacts; T5X may have its checkpoints elsewhere.
      train_steps: after so many an expert enters the library.
      optimizer: an optax optimizer; for method full also one of T5X.
      t5: a T5Config, ours or T5X's: the shape of a new backbone or, where there is a base, the
        shape that it must have.

    Raises:
      UsageError, PemtError: something named does not exist or does not fit; `model_dir` holds
        another run.
    """
    library = library or str(expert_library.default_library())
    if "://" in model_dir:
        raise UsageError(f"Artefacts cannot be written to {model_dir}, expected a local folder: "
                         "set ARTEFACT_DIR.")
    if method == "pemt_source":
        expert_name = expert_name or mixture_or_task_name
    Path(model_dir).mkdir(parents=True, exist_ok=True)
    runs.check_publishable(Path(model_dir), method, initial_checkpoint_path, library, expert_name,
                           (base_dtype,))
    if prompt_text is None and get_method(method).prompt:
        prompt_text = tasks.description(mixture_or_task_name)
    shape = None if t5 is None else shape_of(t5)
    if shape is not None:
        dtype = dtype or shape.dtype
        dropout_rate = shape.dropout_rate if dropout_rate is None else dropout_rate
    prefer(initial_checkpoint_path and Path(initial_checkpoint_path) / "spiece.model")
    made = assemble(
        method, DEFAULT_VOCABULARY, base=initial_checkpoint_path,
        t5=None if initial_checkpoint_path else shape, options=options, prompt_text=prompt_text,
        library=library, experts=experts, initial_expert=initial_expert, dropout_rate=dropout_rate,
        broadcast_dropout=broadcast_dropout, dtype=dtype, embedding_rows=embedding_rows,
        max_decode_length=max_decode_length, seed=seed,
    )  # fmt: skip
    if shape is not None:
        check_shape(made.model.t5, shape, initial_checkpoint_path)
    check_same_run(Path(model_dir), made)
    publication = Publication(Path(model_dir), mixture_or_task_name, dict(task_feature_lengths),
                              train_steps, initial_checkpoint_path, library, expert_name,
                              base_dtype)
    return PemtT5X(made, optimizer, publication)


def trained_model(
    model_dir: str,
    initial_checkpoint_path: str | None = None,
    library: str | None = None,
    vocabulary: str | None = None,
    num_decodes: int = 1,
    alpha: float = 0.6,
) -> PemtT5X:
    """Return the model of a published run for t5x.eval and t5x.infer; see runs.open_run."""
    made, _ = runs.open_run(model_dir, DEFAULT_VOCABULARY, initial_checkpoint_path, library,
                            vocabulary)
    return PemtT5X(made, num_decodes=num_decodes, alpha=alpha)


def partial_optimizer(optimizer: Optimizer, assembly: Assembly) -> optimizers.OptimizerDef:
    """Return `optimizer` for T5X, with neither state nor update for frozen parameters.

    Raises:
      UsageError: T5X cannot place its state, or it is T5X's own and the method freezes something.
    """
    trainable, frozen = split(assembly.nested(), assembly.method)
    if isinstance(optimizer, optimizers.OptimizerDef):
        if frozen:
            raise UsageError(f"Method {assembly.method.name!r} freezes parameters, which "
                             f"{type(optimizer).__name__} of T5X would train; expected an optax "
                             "optimizer, as optimizers.make_optimizer makes.")
        return optimizer

    def labels(params):  # of the same kind of tree as the parameters
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "train" if "/".join(key.key for key in path) in trainable else "freeze",
            params,
        )

    whole = optax.multi_transform({"train": optimizer, "freeze": optax.set_to_zero()}, labels)
    state = jax.eval_shape(whole.init, flax_core.freeze(assembly.nested()))
    try:
        optimizers.OptaxStatePartitionRules.derive_optax_logical_axes(
            state, flax_partitioning.get_axis_names(flax_core.freeze(assembly.params_axes)))
    except ValueError as error:
        raise UsageError(f"T5X cannot train with this optimizer ({error}), expected 'adamw' or "
                         "another of optimizers.make_optimizer.") from error
    return optimizers.OptaxWrapper(whole)


def logical_axis_rules() -> list[tuple[str, str | None]]:
    """Rules for the logical axes that T5X's standard rules do not have."""
    known = {axis for axis, _ in partitioning.standard_logical_axis_rules()}
    return [rule for rule in LOGICAL_AXIS_RULES.items() if rule[0] not in known]


def shape_of(t5: object) -> T5Config:
    """Return our configuration of a T5, from our own or from T5X's network.T5Config."""
    names = [field.name for field in dataclasses.fields(T5Config) if hasattr(t5, field.name)]
    values = {name: getattr(t5, name) for name in names}
    return T5Config(**values | {"dtype": jnp.dtype(values["dtype"]).name})


def check_shape(found: T5Config, expected: T5Config, base: str | None) -> None:
    """Raise UsageError when the base has another shape than the gin file of its size says."""
    for name, value in dataclasses.asdict(expected).items():
        if name not in FREE and getattr(found, name) != value:
            raise UsageError(f"The base {base} has {name} = {getattr(found, name)!r}, expected "
                             f"{value!r} as the T5Config says.")


def check_same_run(folder: Path, made: Assembly) -> None:
    """Raise PemtError when `folder` was published by a run of another method, base or experts."""
    if not (folder / runs.ARTEFACT / CARD).is_file():
        return
    card = read_card(folder / runs.ARTEFACT)
    found = {"method": card.method, "base": card.base_fingerprint, "prompt_text": card.description,
             "experts": [{"name": name, "sha256": sha256} for name, sha256 in card.experts]}
    for name, value in found.items():
        if value != made.identity[name]:
            raise PemtError(f"{folder} holds a run with {name} {value!r}, expected "
                            f"{made.identity[name]!r} or another MODEL_DIR.")
