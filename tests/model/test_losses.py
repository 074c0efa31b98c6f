"""Cross entropy and the task sparsity loss against NumPy, and their corners."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import jit

from pemt_jax.model.losses import expert_cosines, task_sparsity_loss, token_cross_entropy

SHAPES = [(1, 1, 3, 1, 1), (2, 3, 5, 4, 2), (3, 1, 2, 2, 4)]  # B, L, D, E, R; R may exceed D


def draw(random, *shape):
    return random.normal(size=shape).astype(np.float32)


def numpy_cosines(z_BLD, channels_BLER, lora_b_ERD):
    """cos(z, e_i) with every e_i computed in float64; 0 where a norm is 0."""
    z = np.asarray(z_BLD, np.float64)[:, :, None]
    outputs_BLED = np.einsum("bler,erd->bled", np.asarray(channels_BLER, np.float64), lora_b_ERD)
    norms = np.linalg.norm(z, axis=-1) * np.linalg.norm(outputs_BLED, axis=-1)
    return np.sum(z * outputs_BLED, axis=-1) / np.where(norms > 0, norms, 1)


@functools.cache
def cosines():
    return jit(expert_cosines)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 9999),
    size=st.sampled_from([1e-6, 1.0, 1e3]),
    other=st.sampled_from([1e-3, 1.0, 1e6]),
)
def test_rank_space_cosines_equal_naive_cosines(shape, seed, size, other):
    B, L, D, E, R = shape
    random = np.random.default_rng(seed)
    z, channels, lora_b = draw(random, B, L, D), draw(random, B, L, E, R), draw(random, E, R, D)
    found = np.asarray(cosines()(z * np.float32(size), channels * np.float32(other), lora_b))
    assert np.all(np.abs(found) <= 1 + 1e-3)
    # |e|^2 from the Gram matrix loses what cancels in e = a B: compare where little does.
    outputs = np.linalg.norm(np.einsum("bler,erd->bled", channels, lora_b), axis=-1)
    parts = np.linalg.norm(channels, axis=-1) * np.linalg.norm(lora_b, axis=(1, 2))[None, None]
    well = outputs > 0.1 * parts
    np.testing.assert_allclose(found[well], numpy_cosines(z, channels, lora_b)[well], atol=2e-5)


def with_zero(part, random):
    """z, channels and bank of which `part` is zero; expert 1 only where it is an expert's."""
    z, channels, lora_b = draw(random, 2, 3, 5), draw(random, 2, 3, 4, 2), draw(random, 4, 2, 5)
    if part == "z":
        z[:] = 0
    if part in ("lora_a", "expert"):
        channels[:, :, 1] = 0
    if part in ("lora_b", "expert"):
        lora_b[1] = 0
    if part == "all":
        z[:], channels[:], lora_b[:] = 0, 0, 0
    return z, channels, lora_b


@pytest.mark.parametrize("part", ["z", "lora_a", "lora_b", "expert", "all"])
def test_a_zero_vector_has_cosine_0_and_gradient_0(part):
    z, channels, lora_b = with_zero(part, np.random.default_rng(0))
    found = np.asarray(cosines()(z, channels, lora_b))
    np.testing.assert_allclose(found, numpy_cosines(z, channels, lora_b), atol=1e-5)
    experts = slice(None) if part in ("z", "all") else slice(1, 2)
    assert not found[:, :, experts].any()

    gradients = zero_gradients()(
        z, channels, lora_b, np.arange(4) == 1 if part not in ("z", "all") else np.ones(4, bool)
    )
    for gradient in gradients:
        assert not np.any(gradient)  # a NaN counts as any


@functools.cache
def zero_gradients():
    return jit(
        jax.grad(
            lambda z, channels, lora_b, which_E: jnp.sum(
                jnp.where(which_E[None, None], expert_cosines(z, channels, lora_b), 0.0)
            ),
            (0, 1, 2),
        )
    )


@pytest.mark.parametrize("part", ["nothing", "lora_b", "expert"])
def test_gradient_of_the_cosines_equals_that_of_the_naive_ones(part):
    z, channels, lora_b = with_zero(part, np.random.default_rng(1))

    def naive(z, channels, lora_b):
        outputs = jnp.einsum("bler,erd->bled", channels, lora_b)
        outputs = jnp.where(which[None, None, :, None], outputs, 1.0)
        norms = jnp.linalg.norm(z, axis=-1)[..., None] * jnp.linalg.norm(outputs, axis=-1)
        return jnp.sum(
            jnp.where(which[None, None], jnp.einsum("bld,bled->ble", z, outputs), 0.0) / norms
        )

    which = np.arange(4) != (1 if part != "nothing" else -1)
    expected = jit(jax.grad(naive, (0, 1)))(z, channels, lora_b)
    found = zero_gradients()(z, channels, lora_b, np.ones(4, bool))
    for gradient, naive_gradient in zip(found, expected, strict=False):
        np.testing.assert_allclose(gradient, naive_gradient, rtol=1e-4, atol=1e-5)


def test_cosines_of_bfloat16_are_computed_in_float32():
    random = np.random.default_rng(2)
    arrays = [
        draw(random, *shape).astype("bfloat16") for shape in [(2, 3, 5), (2, 3, 4, 2), (4, 2, 5)]
    ]
    found = expert_cosines(*map(jnp.asarray, arrays))
    assert found.dtype == np.float32
    expected = numpy_cosines(*(array.astype(np.float64) for array in arrays))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_task_sparsity_loss_is_a_product_of_means_over_what_counts():
    random = np.random.default_rng(3)
    B, L, E = 4, 3, 2
    cosines_BLE, gate_BE = random.uniform(-1, 1, (B, L, E)), random.dirichlet(np.ones(E), B)
    weights_BL = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]])
    mean_cosine = sum(cosines_BLE[b, t] for b in range(B) for t in range(L) if weights_BL[b, t]) / 6
    expected = np.sum(gate_BE[[0, 1, 3]].mean(axis=0) * (1 - mean_cosine))
    found = task_sparsity_loss(
        cosines_BLE.astype(np.float32), gate_BE.astype(np.float32), weights_BL.astype(np.float32)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_task_sparsity_loss_of_nothing_that_counts_is_finite():
    assert np.isfinite(
        task_sparsity_loss(
            np.ones((2, 3, 2), np.float32),
            np.ones((2, 2), np.float32),
            np.zeros((2, 3), np.float32),
        )
    )


# Logits whose target has probability 1/2 at even and 1/4 at odd positions.
HALF, QUARTER = np.log([2.0, 1, 1]), np.log([1.0, 1, 2])
LOGITS = np.array([[HALF, QUARTER, HALF], [QUARTER, QUARTER, HALF]], np.float32)
TARGETS = np.zeros((2, 3), np.int32)
LN2 = np.log(2)


@pytest.mark.parametrize(
    "weights, tokens, sequences",
    [
        ([[1, 1, 1], [1, 0, 0]], (1 + 2 + 1 + 2) / 4, (4 / 3 + 2) / 2),
        ([[1, 1, 0], [1, 1, 0]], (1 + 2 + 2 + 2) / 4, (3 / 2 + 2) / 2),
        ([[1, 0, 1], [0, 0, 0]], 1, 1),  # a row that only fills the batch is no example
        ([[0, 0, 0], [0, 0, 0]], 0, 0),
    ],
)
def test_cross_entropy_by_hand(weights, tokens, sequences):
    for normalization, expected in (("tokens", tokens), ("sequences", sequences)):
        loss, entropy_BT = token_cross_entropy(LOGITS, TARGETS, np.array(weights), normalization)
        np.testing.assert_allclose(loss, expected * LN2, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(entropy_BT, LN2 * np.array([[1, 2, 1], [2, 2, 1]]), rtol=1e-6)


def test_cross_entropy_of_bfloat16_logits_is_float32():
    loss, entropy_BT = token_cross_entropy(
        jnp.asarray(LOGITS, jnp.bfloat16), TARGETS, np.ones((2, 3))
    )
    assert loss.dtype == entropy_BT.dtype == np.float32
