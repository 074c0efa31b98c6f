"""The feed-forward sublayer, the part of a layer that PEMT changes, against NumPy."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_model import SOURCE, T5, T5_1_1, TARGET, jit, random_params

from pemt_jax.config import PemtConfig
from pemt_jax.model.feed_forward import FeedForward


def numpy_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("t5", [T5, T5_1_1], ids=["relu", "gated gelu"])
@pytest.mark.parametrize("stage", ["source", "target"])
def test_feed_forward_equals_numpy(t5, stage):
    """Source expert and mixture sit on the same activation as wo, the adapter after both."""
    pemt = SOURCE if stage == "source" else TARGET
    p = random_params(t5, pemt)["encoder"]["layers_0"]["mlp"]
    x = np.random.default_rng(0).normal(size=(2, 7, t5.emb_dim)).astype(np.float32)
    z, variables = jit(
        lambda x: FeedForward(t5, pemt, in_encoder=True).apply(
            {"params": p}, x, None, np.ones((2, 7)), deterministic=True, mutable=["pemt"]
        )
    )(x)

    if t5 is T5:
        u = np.maximum(x @ p["wi"]["kernel"], 0)
    else:
        u = numpy_gelu(x @ p["wi_0"]["kernel"]) * (x @ p["wi_1"]["kernel"])
    y = u @ p["wo"]["kernel"]
    if stage == "source":
        y += u @ p["expert"]["lora_a"] @ p["expert"]["lora_b"]
    else:
        a_EFR = np.moveaxis(p["experts"]["lora_a"], 1, 0)
        outputs = [u @ a @ b for a, b in zip(a_EFR, p["experts"]["lora_b"], strict=True)]
        scores = np.exp(u[:, : pemt.prompt_length].mean(axis=1) @ p["gate"]["kernel"])
        gate = scores / scores.sum(axis=-1, keepdims=True)
        y += sum(gate[:, i, None, None] * e for i, e in enumerate(outputs))
        hidden = numpy_gelu(y @ p["adapter"]["down"]["kernel"] + p["adapter"]["down"]["bias"])
        y += hidden @ p["adapter"]["up"]["kernel"] + p["adapter"]["up"]["bias"]
        # The sparsity loss compares the layer's output, after the adapter, with ungated experts.
        cosines = [
            np.mean(np.sum(y * e, -1) / np.linalg.norm(y, axis=-1) / np.linalg.norm(e, axis=-1))
            for e in outputs
        ]
        np.testing.assert_allclose(variables["pemt"]["gate"], gate, rtol=1e-4)
        np.testing.assert_allclose(
            variables["pemt"]["tsl"], gate.mean(0) @ (1 - np.array(cosines)), rtol=1e-4
        )
    np.testing.assert_allclose(z, y, rtol=1e-4, atol=1e-5)


def test_encoder_gate_reads_its_activation_at_the_prompt_only():
    p = random_params(T5, TARGET)["encoder"]["layers_0"]["mlp"]
    layer = jit(
        lambda x: FeedForward(T5, TARGET, in_encoder=True).apply(
            {"params": p}, x, None, np.ones((2, 7)), deterministic=True, mutable=["pemt"]
        )[1]["pemt"]["gate"]
    )
    x = np.random.default_rng(0).normal(size=(2, 7, T5.emb_dim)).astype(np.float32)
    P, text, prompt = TARGET.prompt_length, x.copy(), x.copy()
    text[:, P:] += 1
    prompt[:, P - 1] *= 3
    np.testing.assert_array_equal(layer(text), layer(x))
    assert np.abs(layer(prompt) - layer(x)).min() > 1e-5


@pytest.mark.parametrize(
    ("options", "one_mask"),
    [({}, True), ({"broadcast_dropout": True}, True), ({"broadcast_dropout": False}, False)],
    ids=["default", "broadcast", "per position"],
)
def test_dropout_draws_one_mask_per_example_unless_told_otherwise(options, one_mask):
    t5 = dataclasses.replace(T5, dropout_rate=0.5, **options)
    p = random_params(T5, PemtConfig())["encoder"]["layers_0"]["mlp"]
    layer = jit(
        lambda x, key: FeedForward(t5, PemtConfig(), in_encoder=True).apply(
            {"params": p}, x, None, None, deterministic=False, rngs={"dropout": key}
        )
    )
    row = np.random.default_rng(0).normal(size=(2, 1, T5.emb_dim)).astype(np.float32)
    z = layer(np.repeat(row, 7, axis=1), jax.random.key(0))
    same = np.abs(z - z[:, :1]).max() < 1e-6
    assert same == one_mask
    assert np.abs(z[0] - layer(row, jax.random.key(1))[0]).max() > 1e-3
