"""The building blocks of T5: norm, dense, dropout, embedding, relative position bias.

Raffel et al., 2020 (arXiv 1910.10683). T5 differs from the original transformer in its norm (no
mean, no bias, before the sublayer), in attention without 1/sqrt(K), and in representing positions
by a bias on bucketed distances. Parameters are created by `param_with_axes` under T5X's names, so
that T5X reads their logical axes and its checkpoints load without renaming.
"""

import contextlib
import contextvars
import hashlib
from collections.abc import Callable
from typing import cast

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core.scope import LazyRng
from flax.linen.partitioning import param_with_axes
from jax import Array

# exp(-1e10) is 0 in both float32 and bfloat16. It is finite, so that a query with nothing to attend
# to gives numbers instead of NaN.
MASKED = -1e10

fan_in_normal = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


def attend_where(allowed: Array) -> Array:
    """Additive attention bias: 0 where allowed, a large negative number elsewhere."""
    return jnp.where(allowed, 0.0, MASKED)


# (number of the layer that is traced, number of layers) while a scanned layer is.
_SCANNED: contextvars.ContextVar[tuple[Array, int] | None] = contextvars.ContextVar(
    "scanned", default=None
)


@contextlib.contextmanager
def scanned_layer(number: Array, layers: int):
    """What is traced inside stands for each of `layers` layers, and is that of `number`."""
    token = _SCANNED.set((number, layers))
    try:
        yield
    finally:
        _SCANNED.reset(token)


class Dropout(nn.Dropout):
    """`nn.Dropout`, which draws in a scanned layer what it draws in the same layer unrolled.

    Flax folds a hash of the module's path into the key, "decoder/layers_3/mlp/Dropout_0" and the
    number of the draw. In a scanned layer, whose path is that of layer 0, the hashes for the paths
    of all layers are constants of the program, from which the layer takes its own.
    """

    @nn.nowrap
    def make_rng(self, name: str = "params") -> Array:
        scanned = _SCANNED.get()
        if scanned is None:
            return super().make_rng(name)
        (number, layers), scope = scanned, self.scope
        assert scope is not None  # flax calls it within a module
        scope.rng_counters[name] += 1
        rng, draw = cast(LazyRng, scope.rngs[name]), scope.rng_counters[name]
        hashes = [
            _hash([f"layers_{i}" if part == "layers_0" else part for part in (*rng.suffix, draw)])
            for i in range(layers)
        ]
        return jax.random.fold_in(rng.rng, jnp.asarray(hashes, jnp.uint32)[number])


def _hash(path: list[str | int]) -> int:
    """The number that `flax.core.scope` folds into a key for a path and the number of a draw."""
    digest = hashlib.sha1()
    for part in path:
        if flax.config.flax_fix_rng_separator:
            digest.update(b"\00")
        size = (part.bit_length() + 7) // 8 if isinstance(part, int) else 0
        digest.update(part.encode() if isinstance(part, str) else part.to_bytes(size, "big"))
    return int.from_bytes(digest.digest()[:4], "big")


class RMSNorm(nn.Module):
    """scale * x / sqrt(mean(x^2) + 1e-6) over the last axis, computed in float32."""

    dtype: jnp.dtype = jnp.float32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        x_BLD = x_BLD.astype(jnp.float32)
        mean_square_BL1 = jnp.mean(jnp.square(x_BLD), axis=-1, keepdims=True)
        scale_D = param_with_axes(
            "scale", nn.initializers.ones, (x_BLD.shape[-1],), jnp.float32, axes=("embed",)
        )
        y_BLD = x_BLD * jax.lax.rsqrt(mean_square_BL1 + self.epsilon)
        return (y_BLD * scale_D[None, None, :]).astype(self.dtype)


class Dense(nn.Module):
    """x W over the last axis of x [B, L, in], with a kernel [in, out] that has two logical axes.

    T5 has no biases; the target adapter does.
    """

    features: int
    axes: tuple[str, str]
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = fan_in_normal
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = param_with_axes(
            "kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32, axes=self.axes
        )
        y = jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            bias = param_with_axes(
                "bias", nn.initializers.zeros, (self.features,), jnp.float32, axes=self.axes[1:]
            )
            y = y + bias.astype(self.dtype)[None, None, :]
        return y


class Vector(nn.Module):
    """A trained vector [1, 1, X], for all positions alike, which starts with one number."""

    axis: str
    initial: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, width: int) -> Array:
        init = nn.initializers.constant(self.initial)
        vector_X = param_with_axes("vector", init, (width,), jnp.float32, axes=(self.axis,))
        return vector_X.astype(self.dtype)[None, None]


class Embed(nn.Module):
    """Token embedding [V, D], which also computes the logits of models that tie them to it."""

    num_embeddings: int
    features: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.embedding = param_with_axes(
            "embedding",
            nn.initializers.normal(stddev=1.0),
            (self.num_embeddings, self.features),
            jnp.float32,
            axes=("vocab", "embed"),
        )

    def __call__(self, tokens_BL: Array) -> Array:
        return jnp.asarray(self.embedding, self.dtype)[tokens_BL]

    def attend(self, x_BLD: Array) -> Array:
        """Return logits [B, L, V], the products with the embeddings, accumulated in float32."""
        table_VD = jnp.asarray(self.embedding, self.dtype)
        return jnp.dot(x_BLD, table_VD.T, preferred_element_type=jnp.float32)


def relative_position_bucket(
    distance: Array | np.ndarray, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
    """Return the bucket of each distance (key position minus query position).

    Half of the buckets of each direction hold a single distance, the others grow logarithmically
    up to `max_distance`. The logarithm is computed in float32 and truncated, as in T5's TensorFlow
    and PyTorch code; in float64 some distances would fall into the next bucket.
    """
    distance = np.asarray(distance)
    bucket = np.zeros(distance.shape, np.int32)
    if bidirectional:
        num_buckets //= 2
        bucket += (distance > 0).astype(np.int32) * num_buckets
        distance = np.abs(distance)
    else:
        distance = -np.minimum(distance, 0)
    max_exact = num_buckets // 2
    logarithm = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(max_exact))
    scale = np.float32(np.log(max_distance / max_exact))
    large = max_exact + (logarithm / scale * np.float32(num_buckets - max_exact)).astype(np.int32)
    large = np.minimum(large, num_buckets - 1)
    return bucket + np.where(distance < max_exact, distance, large).astype(np.int32)


class RelativePositionBias(nn.Module):
    """Bias [1, H, Q, K] added to attention scores, from one table for all layers of a stack."""

    num_heads: int
    num_buckets: int
    max_distance: int
    bidirectional: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, query_length: int, key_length: int) -> Array:
        table = param_with_axes(
            "rel_embedding",
            nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
            (self.num_heads, self.num_buckets),
            jnp.float32,
            axes=("heads", "relpos_buckets"),
        )
        distance = np.arange(key_length)[None, :] - np.arange(query_length)[:, None]
        buckets = relative_position_bucket(
            distance, self.bidirectional, self.num_buckets, self.max_distance
        )
        return jnp.asarray(table, self.dtype)[None, :, buckets]
