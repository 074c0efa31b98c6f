"""A model of three matrices with PemtModel's loss protocol, for tests of what trains a model."""

import clu.metrics
import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.run_config import LoopConfig
from pemt_jax.training.loop import SingleStepper, run_loop
from pemt_jax.training.run import Run, TrainResult

VOCAB, WIDTH, HIDDEN = 16, 8, 8
AXES = {
    "token_embedder/embedding": ("vocab", "embed"),
    "encoder/mlp/kernel": ("embed", "mlp"),
    "decoder/logits_dense/kernel": ("mlp", "vocab"),
}


def parameters() -> tuple[dict, dict]:
    """(trainable, frozen), flat host arrays."""
    random = np.random.default_rng(0)
    draw = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    trainable = {
        "token_embedder/embedding": draw(VOCAB, WIDTH),
        "encoder/mlp/kernel": draw(WIDTH, HIDDEN),
    }
    return trainable, {"decoder/logits_dense/kernel": draw(HIDDEN, VOCAB)}


def loss_fn(params, batch, rng):
    hidden = params["token_embedder"]["embedding"][batch["encoder_input_tokens"]].mean(axis=1)
    if rng is not None:
        hidden = hidden * jax.random.bernoulli(rng, 0.9, hidden.shape)
    hidden = jnp.tanh(hidden @ params["encoder"]["mlp"]["kernel"])
    log_probs = jax.nn.log_softmax(hidden @ params["decoder"]["logits_dense"]["kernel"])
    weights = batch["decoder_loss_weights"]
    losses = -jnp.take_along_axis(log_probs, batch["decoder_target_tokens"], axis=-1) * weights
    total, count = losses.sum(), weights.sum()
    return total / count, {"cross_entropy": clu.metrics.Average(total=total, count=count)}


def batch_at(step: int, rows: int = 8) -> dict[str, np.ndarray]:
    """A function of the step alone; even and odd steps have different input lengths."""
    random = np.random.default_rng(step)
    tokens = lambda length: random.integers(1, VOCAB, (rows, length)).astype(np.int32)  # noqa: E731
    inputs, targets = tokens(4 + 4 * (step % 2)), tokens(3)
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.zeros_like(targets),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones_like(targets),
    }


def batches(start: int):
    step = start
    while True:
        yield batch_at(step)
        step += 1


def validation(params) -> dict[str, float]:
    return {"loss": float(loss_fn(params, batch_at(10_000), None)[0])}


def train(
    trainer, batches, train_steps, *, log_every=20, eval_every=None, save_every=None, **of_run
) -> TrainResult:
    """Train one run, from its latest checkpoint when there is one; the options are Run's."""
    run = Run(trainer, train_steps, **of_run)
    settings = LoopConfig(
        train_steps, log_every=log_every, eval_every=eval_every, save_every=save_every
    )
    run_loop(SingleStepper(trainer, batches), [run], settings, "")
    return run.result
