"""The building blocks of T5 against NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import equations, jit

from pemt_jax.model.attention import Attention
from pemt_jax.model.layers import (
    MASKED,
    Dense,
    Embed,
    RelativePositionBias,
    RMSNorm,
    relative_position_bucket,
)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def float32_bucket(distance, bidirectional, buckets=32, maximum=128):
    """T5's formula for one distance (key minus query), every step in float32."""
    f, first, back = np.float32, 0, -distance
    if bidirectional:
        buckets //= 2
        first = buckets if back < 0 else 0
        back = abs(back)
    back, half = max(back, 0), buckets // 2
    if back < half:
        return first + back
    share = f(np.log(f(back) / f(half))) / f(math.log(maximum / half)) * f(buckets - half)
    return first + min(half + int(share), buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_equal_the_float32_formula_to_1000_both_ways(bidirectional):
    distances = np.arange(-1000, 1001)
    expected = [float32_bucket(int(d), bidirectional) for d in distances]
    buckets = relative_position_bucket(distances, bidirectional, 32, 128)
    np.testing.assert_array_equal(buckets, expected)


@settings(max_examples=50, deadline=None)
@given(
    distance=st.integers(-5000, 5000),
    bidirectional=st.booleans(),
    buckets=st.sampled_from([8, 16, 32, 64]),
    maximum=st.sampled_from([40, 128, 1000]),
)
def test_buckets_equal_the_float32_formula_for_other_tables(
    distance, bidirectional, buckets, maximum
):
    found = relative_position_bucket(np.array(distance), bidirectional, buckets, maximum)
    assert found == float32_bucket(distance, bidirectional, buckets, maximum)


@pytest.mark.parametrize("bidirectional, half, maximum", [(True, 8, 128), (False, 16, 128)])
def test_logarithmic_buckets_begin_where_whole_numbers_say(bidirectional, half, maximum):
    # half + k is reached at half * (maximum / half)^(k / half): a comparison of whole numbers.
    for back in range(half, 1000):
        starts = [back**half >= half**half * (maximum // half) ** k for k in range(half)]
        expected = half + sum(starts) - 1
        assert relative_position_bucket(-back, bidirectional, 32, 128) == expected, back


def test_edges_of_the_buckets():
    encoder = lambda d: int(relative_position_bucket(d, True, 32, 128))  # noqa: E731
    decoder = lambda d: int(relative_position_bucket(d, False, 32, 128))  # noqa: E731
    assert [encoder(d) for d in (0, -1, 1, -7, 7, -8, 8)] == [0, 1, 17, 7, 23, 8, 24]
    assert [encoder(d) for d in (-16, -32, -64)] == [10, 12, 14]  # powers of two: exact logarithms
    assert [encoder(d) for d in (-127, -128, -129, 128)] == [15, 15, 15, 31]
    assert [decoder(d) for d in (1, 500, 0, -1, -15, -16, -17)] == [0, 0, 0, 1, 15, 16, 16]
    assert [decoder(d) for d in (-127, -128, -1000)] == [31, 31, 31]


def test_position_bias_is_the_table_at_the_bucket():
    module = RelativePositionBias(3, 32, 128, bidirectional=True)
    table_HN = draw(0, 3, 32)
    bias = module.apply({"params": {"rel_embedding": table_HN}}, 6, 9)
    assert bias.shape == (1, 3, 6, 9)
    for query in range(6):
        for key in range(9):
            bucket = float32_bucket(key - query, True)
            np.testing.assert_array_equal(bias[0, :, query, key], table_HN[:, bucket])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rms_norm_computes_in_float32(dtype):
    x_BLD = (100 * draw(0, 2, 3, 512)).astype(dtype)
    scale_D = 1 + draw(1, 512)
    x64 = np.asarray(x_BLD, np.float64)
    expected = scale_D * x64 / np.sqrt(np.mean(x64**2, axis=-1, keepdims=True) + 1e-6)
    y_BLD = RMSNorm(dtype).apply({"params": {"scale": scale_D}}, jnp.asarray(x_BLD))
    assert y_BLD.dtype == dtype
    # In bfloat16 only the result may be rounded, once: half a unit in the last of 8 bits.
    tolerance = 2.0**-8 + 1e-6 if dtype == jnp.bfloat16 else 1e-6
    np.testing.assert_allclose(np.asarray(y_BLD, np.float64), expected, rtol=tolerance)


def test_rms_norm_of_zeros_is_zero_with_finite_gradient():
    def norm(x_BLD):
        return RMSNorm().apply({"params": {"scale": np.ones(4, np.float32)}}, x_BLD).sum()

    total, gradient = jit(jax.value_and_grad(norm))(np.zeros((1, 1, 4), np.float32))
    assert total == 0 and np.all(np.isfinite(gradient))


def test_embedding_gives_rows_and_tied_logits():
    table_VD = draw(0, 7, 5)
    module, variables = Embed(7, 5), {"params": {"embedding": table_VD}}
    tokens_BL = np.array([[0, 6, 3], [2, 2, 1]])
    np.testing.assert_array_equal(module.apply(variables, tokens_BL), table_VD[tokens_BL])
    x_BLD = draw(1, 2, 3, 5)
    logits = module.apply(variables, x_BLD, method="attend")
    np.testing.assert_allclose(logits, x_BLD @ table_VD.T, rtol=1e-5, atol=1e-6)


def test_dense_has_a_bias_only_where_asked_for():
    x_BLD, kernel, bias = draw(0, 2, 3, 5), draw(1, 5, 4), draw(2, 4)
    plain = Dense(4, ("embed", "mlp")).apply({"params": {"kernel": kernel}}, x_BLD)
    np.testing.assert_allclose(plain, x_BLD @ kernel, rtol=1e-5, atol=1e-6)
    biased = Dense(4, ("embed", "mlp"), use_bias=True)
    y = biased.apply({"params": {"kernel": kernel, "bias": bias}}, x_BLD)
    np.testing.assert_allclose(y, x_BLD @ kernel + bias, rtol=1e-5, atol=1e-6)


H, K, D = 2, 3, 5
KERNELS = {
    name: {"kernel": draw(i, *((H * K, D) if name == "out" else (D, H * K)))}
    for i, name in enumerate(["query", "key", "value", "out"])
}


def numpy_attention(query_BLD, memory_BMD, bias_BHLM):
    """softmax(q k^T + bias) v in float64, one head at a time, no 1/sqrt(K)."""
    heads = []
    for h in range(H):
        columns = slice(h * K, h * K + K)
        q, k, v = (
            x.astype(np.float64) @ KERNELS[name]["kernel"][:, columns]
            for x, name in [(query_BLD, "query"), (memory_BMD, "key"), (memory_BMD, "value")]
        )
        scores = q @ k.swapaxes(1, 2) + bias_BHLM[:, h]
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ v)
    return np.concatenate(heads, -1) @ KERNELS["out"]["kernel"]


def attend_in(dtype, query, memory, bias):
    return Attention(H, K, 0.0, dtype).apply(
        {"params": KERNELS}, query, memory, bias, deterministic=True
    )


attend = jit(functools.partial(attend_in, jnp.float32))


def test_attention_equals_numpy_without_a_scale():
    query_BLD, memory_BMD, bias_BHLM = draw(5, 2, 4, D), draw(6, 2, 7, D), draw(7, 2, H, 4, 7)
    np.testing.assert_allclose(
        attend(query_BLD, memory_BMD, bias_BHLM),
        numpy_attention(query_BLD, memory_BMD, bias_BHLM),
        rtol=1e-4,
        atol=1e-5,
    )


def test_masked_memory_has_no_influence_and_a_row_of_it_no_nan():
    query_BLD, memory_BMD = draw(5, 2, 4, D), draw(6, 2, 7, D)
    bias = np.zeros((2, 1, 1, 7), np.float32)
    bias[0, ..., 4:] = MASKED
    bias[1] = MASKED
    other = memory_BMD.copy()
    other[0, 4:] += 100
    y = attend(query_BLD, memory_BMD, bias)
    np.testing.assert_array_equal(y[0], attend(query_BLD, other, bias)[0])
    assert np.all(np.isfinite(y))


def test_softmax_is_float32_whatever_the_compute_dtype():
    arguments = jnp.zeros((1, 4, D)), jnp.zeros((1, 7, D)), jnp.zeros((1, H, 4, 7))
    jaxpr = jax.make_jaxpr(functools.partial(attend_in, jnp.bfloat16))(*arguments)
    dtypes = {
        name: {e.invars[0].aval.dtype for e in equations(jaxpr) if e.primitive.name == name}
        for name in ("exp", "dot_general")
    }
    assert dtypes == {"exp": {jnp.dtype("float32")}, "dot_general": {jnp.dtype("bfloat16")}}


@pytest.mark.parametrize("dims", [(-2,), ()], ids=["of all queries", "of each query"])
def test_dropout_zeroes_softmax_weights_and_scales_the_rest(dims):
    """One head of width M whose values are the memory's positions gives back its weights."""
    M, L, rate = 16, 5, 0.5
    memory_BMD = np.eye(M, dtype=np.float32)[None]
    query_BLD = draw(10, 1, L, M)
    kernels = {name: {"kernel": draw(11 + i, M, M)} for i, name in enumerate(("query", "key"))}
    kernels |= {name: {"kernel": np.eye(M, dtype=np.float32)} for name in ("value", "out")}

    def weights(deterministic):
        return Attention(1, M, rate, dropout_dims=dims).apply(
            {"params": kernels},
            query_BLD,
            memory_BMD,
            np.zeros((1, 1, 1, M), np.float32),
            deterministic=deterministic,
            rngs={"dropout": jax.random.key(3)},
        )[0]

    whole, dropped = weights(True), weights(False)
    np.testing.assert_allclose(whole.sum(axis=-1), 1, rtol=1e-5)
    kept = np.asarray(dropped != 0)
    np.testing.assert_allclose(dropped, np.where(kept, whole / (1 - rate), 0), rtol=1e-5)
    assert 0 < kept.sum() < kept.size
    assert np.all(kept == kept[:1]) == bool(dims)


def test_cached_attention_equals_causal_attention_row_by_row():
    T = 5
    x_BTD = draw(8, 2, T, D)
    bias = draw(9, 1, H, T, T) + np.where(np.tril(np.ones((T, T), bool)), 0, MASKED)[None, None]
    bias = bias.astype(np.float32)
    module = Attention(H, K, 0.0)
    step = jit(
        lambda cache, x: module.apply(
            {"params": KERNELS, **cache},
            x,
            x,
            bias,
            deterministic=True,
            decode=True,
            mutable=["cache"],
        )
    )
    _, shapes = jax.eval_shape(
        lambda x: module.apply(
            {"params": KERNELS}, x, x, bias, deterministic=True, decode=True, mutable=["cache"]
        ),
        x_BTD,
    )
    cache = jax.tree.map(lambda like: np.zeros(like.shape, like.dtype), shapes)
    outputs = []
    for t in range(T):
        y_B1D, cache = step(cache, x_BTD[:, t : t + 1])
        outputs.append(y_B1D)
    np.testing.assert_allclose(
        np.concatenate(outputs, axis=1), attend(x_BTD, x_BTD, bias), rtol=1e-4, atol=1e-5
    )
    assert cache["cache"]["cache_index"] == T
