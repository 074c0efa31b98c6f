"""Sentence distillation: the encoder learns what a sentence encoder says of each sentence.

The student's vector z of a sentence is the mean over its tokens of the encoder's output, times a
head [D, 384] that is dropped afterwards. Embedding, encoder and head are trained so that z has the
direction of the teacher's y (sentence_data.py); the decoder is frozen:

    loss = mean_i (1 - cos(z_i, y_i)) + CONTRAST * mean_i (-log softmax_j(SCALE * cos(z_i, y_j))[i])

The first term is distillation of sentence embeddings (Reimers and Gurevych, 2020, arXiv 2004.09813,
with the cosine instead of the squared error); the second asks which sentence of the batch it was.

The outputs of the encoder's sublayers are damped at the start, so that the student begins near the
mean of its word vectors. The head begins at random, nearly orthogonal, and so leaves it to the
encoder to take the teacher's geometry; README.md says what a fitted one gave.
"""

import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pemt_jax.model.network import Transformer
from pemt_jax.model.pemt_model import PemtModel, average, row_weights

CONTRAST, SCALE = 0.05, 20.0
HEAD = "distillation/head"
SUBLAYER_OUTPUT = re.compile(r"encoder/.*/(out|wo)/kernel")


def mean_output(model: PemtModel, params: Mapping, batch: Mapping) -> jax.Array:
    """The mean over tokens of the encoder's output, [B, D]; 0 for rows that only fill the batch."""
    tokens_BS = batch["encoder_input_tokens"]
    output_BSD = model.module.apply(
        {"params": params}, tokens_BS, row_weights(batch), method=Transformer.encode
    )
    present_BS1 = (tokens_BS > 0)[..., None]
    return jnp.sum(output_BSD * present_BS1, axis=1) / jnp.maximum(present_BS1.sum(axis=1), 1)


def make_loss_fn(model: PemtModel) -> Callable:
    """Return (params, batch, rng) -> (loss, metrics), see the module; there is no dropout."""

    def loss_fn(params, batch, rng):
        del rng
        z_BK = mean_output(model, params, batch) @ params["distillation"]["head"]
        z_BK = z_BK / optax.safe_norm(z_BK, 1e-6, axis=-1, keepdims=True)
        cosine_BB = z_BK @ batch["teacher"].T
        cosine_B = jnp.diagonal(cosine_BB)
        rows_B = row_weights(batch)
        rows = jnp.maximum(rows_B.sum(), 1.0)
        scores_BB = jnp.where(rows_B[None] > 0, SCALE * cosine_BB, -1e9)
        which_B = optax.softmax_cross_entropy_with_integer_labels(
            scores_BB, jnp.arange(len(cosine_B))
        )
        cosine, which = (jnp.sum(x_B * rows_B) for x_B in (cosine_B, which_B))
        loss = 1 - cosine / rows + CONTRAST * which / rows
        return loss, {"cosine": average(cosine, rows), "contrast": average(which, rows)}

    return loss_fn


def starting_parameters(
    flat: Mapping[str, np.ndarray], damping: float, width: int, seed: int
) -> tuple[dict, dict]:
    """Return (trainable, frozen) by path.

    Trainable are the embedding, the encoder with damped sublayer outputs, and a random head to the
    teacher's `width`; frozen is the decoder.
    """
    frozen = {path: value for path, value in flat.items() if path.startswith("decoder/")}
    trainable = {
        path: value * np.float32(damping) if SUBLAYER_OUTPUT.fullmatch(path) else value
        for path, value in flat.items()
        if path not in frozen
    }
    rows = flat["token_embedder/embedding"].shape[1]
    head = np.random.default_rng(seed).normal(scale=rows**-0.5, size=(rows, width))
    return {**trainable, HEAD: head.astype(np.float32)}, frozen
