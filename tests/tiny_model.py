"""A PEMT model small enough to compile in seconds, random parameters and batches for it."""

import dataclasses
import functools

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.model.pemt_model import PemtModel

T5 = T5Config(
    vocab_size=11,
    emb_dim=8,
    num_heads=2,
    head_dim=3,
    mlp_dim=10,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.0,
)
T5_1_1 = dataclasses.replace(
    T5, num_decoder_layers=2, mlp_activations=("gelu", "linear"), logits_via_embedding=False
)
SOURCE = PemtConfig(prompt_length=4, source_expert=True, expert_rank=2)
TARGET = PemtConfig(
    prompt_length=4,
    source_prompt_lengths=(3, 5),
    expert_names=("nli", "qa"),
    expert_rank=2,
    adapter_dim=3,
)
REFERENCE = dataclasses.replace(TARGET, tsl_counts_padding=True, decoder_attends_padding=True)

# What runs for microseconds is not worth optimising: this halves the time to compile.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def initial_shapes(t5: T5Config, pemt: PemtConfig) -> dict:
    """{"params", "params_axes"} of a model without one number computed."""
    shapes = {
        "encoder_input_tokens": (1, 2),
        "decoder_input_tokens": (1, 3),
        "decoder_target_tokens": (1, 3),
    }
    return jax.eval_shape(
        lambda: PemtModel(t5, pemt).get_initial_variables(jax.random.key(0), shapes)
    )


def random_params(t5: T5Config, pemt: PemtConfig, seed: int = 0) -> dict:
    """Nested parameters of which none is zero; norms near one, the rest near unit gain."""
    random = np.random.default_rng(seed)
    params = {}
    for path, like in sorted(flatten_dict(initial_shapes(t5, pemt)["params"], sep="/").items()):
        values = random.normal(size=like.shape)
        if path.endswith("norm/scale"):
            values = 1 + 0.1 * values
        elif not path.endswith("embedding"):
            values /= np.sqrt(like.shape[-2]) if len(like.shape) > 1 else 4
        params[path] = values.astype(np.float32)
    return unflatten_dict(params, sep="/")


def make_batch(input_lengths, target_lengths, S: int, T: int, seed: int = 0) -> dict:
    """One row per length; targets end in 1; a row with lengths 0 only fills the batch."""
    random = np.random.default_rng(seed)
    inputs = np.zeros((len(input_lengths), S), np.int32)
    targets = np.zeros((len(target_lengths), T), np.int32)
    for row, (source, target) in enumerate(zip(input_lengths, target_lengths, strict=True)):
        inputs[row, :source] = random.integers(2, T5.vocab_size, source)
        targets[row, :target] = random.integers(2, T5.vocab_size, target)
        targets[row, max(target - 1, 0) : target] = 1
    return batch_of(inputs, targets)


def batch_of(inputs_BS: np.ndarray, targets_BT: np.ndarray) -> dict:
    shifted_BT = np.concatenate([np.zeros_like(targets_BT[:, :1]), targets_BT[:, :-1]], axis=1)
    return {
        "encoder_input_tokens": inputs_BS,
        "decoder_input_tokens": shifted_BT,
        "decoder_target_tokens": targets_BT,
        "decoder_loss_weights": (targets_BT > 0).astype(np.int32),
    }


def rows(batch: dict, index) -> dict:
    return {name: array[np.asarray(index)] for name, array in batch.items()}


def widen(batch: dict, more_inputs: int, more_targets: int) -> dict:
    """The same batch with more columns of padding."""
    return {
        name: np.pad(array, ((0, 0), (0, more_inputs if "encoder" in name else more_targets)))
        for name, array in batch.items()
    }


@functools.cache
def compiled(t5: T5Config, pemt: PemtConfig, what: str):
    """A jitted function of a model, compiled once for all tests of a process.

    "apply": (params, batch, rng) -> logits, collected; "loss": (params, batch, rng) -> loss,
    metrics; "gradients": (params, batch) -> (loss, metrics), gradients.
    """
    model = PemtModel(t5, pemt)
    if what == "gradients":
        return jit(
            jax.value_and_grad(
                lambda params, batch: model.loss_fn(params, batch, None), has_aux=True
            )
        )
    return jit({"apply": model.apply, "loss": model.loss_fn}[what])


def computed(metrics: dict) -> dict[str, float]:
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def equations(jaxpr):
    """All equations of a jaxpr, those of the jaxprs inside them too."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(inner, "eqns"):
                yield from equations(inner)
