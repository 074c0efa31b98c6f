"""T5's attention sublayer, each of whose four linear layers can have experts.

T5 differs from the original transformer in attention without 1/sqrt(K) (Raffel et al., 2020, arXiv
1910.10683). Experts on queries, keys, values and the output are those of experts.py, under one gate
per sublayer; without any, this is T5's attention and nothing else.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint
from jax import Array

from pemt_jax.config import PemtConfig
from pemt_jax.model.experts import SublayerExperts
from pemt_jax.model.layers import Dense, Dropout, Vector


class Attention(nn.Module):
    """Multi-head attention softmax(q k^T + bias) v with float32 softmax and a decoding cache.

    The cache (collection "cache": keys and values [B, T, H, K], and an index) is created by a call
    with inputs of the full length T. Each later call writes one position.
    """

    num_heads: int
    head_dim: int
    dropout_rate: float
    dtype: jnp.dtype = jnp.float32
    dropout_dims: tuple[int, ...] = ()
    pemt: PemtConfig = PemtConfig()  # noqa: RUF009  (frozen)
    stack: str = "encoder"

    @nn.compact
    def __call__(
        self,
        query_BLD: Array,
        memory_BMD: Array,
        bias_BHLM: Array,
        prompt_states_BPD: Array | None = None,
        token_weights_BL: Array | None = None,
        prompt_weights_BP: Array | None = None,
        gate_kernel_DE: Array | None = None,
        *,
        deterministic: bool,
        decode: bool = False,
    ) -> Array:
        """Attend from the query's positions to the memory's.

        Args:
          query_BLD: activations of the attending positions.
          memory_BMD: activations of the positions attended to.
          bias_BHLM: relative positions and mask, broadcastable to the scores.
          prompt_states_BPD, token_weights_BL, prompt_weights_BP, gate_kernel_DE: as in
            `FeedForward`; used where there are experts.
          deterministic: whether to apply no dropout.
          decode: whether to use the cache; once it exists, the query has length 1.
        """
        width = self.num_heads * self.head_dim
        experts = SublayerExperts(self.pemt, f"{self.stack}/{self.name}", self.dtype)
        if self.pemt.num_experts and experts.on("query", "key", "value", "out"):
            states = query_BLD[:, : self.pemt.prompt_length]
            if self.stack == "decoder":
                assert prompt_states_BPD is not None
                states = prompt_states_BPD
            experts.read_gate(states, "embed", prompt_weights_BP, gate_kernel_DE)

        def project(name: str, x_BLD: Array) -> Array:
            # T5 folds 1/sqrt(K) into the query kernel's initial values and does not scale scores.
            scale = 1.0 / self.head_dim if name == "query" else 1.0
            init = nn.initializers.variance_scaling(scale, "fan_in", "normal")
            axes = ("embed", "joined_kv")
            y = Dense(width, axes, self.dtype, init, name=name)(x_BLD)
            y = experts.add(name, x_BLD, y, axes)
            if self.pemt.vectors == "ia3" and name != "query":
                y *= Vector("joined_kv", 1.0, self.dtype, name=f"{name}_scale")(width)
            y = y.reshape(*y.shape[:-1], self.num_heads, self.head_dim)
            return with_logical_constraint(y, ("batch", "length", "heads", "kv"))

        query_BLHK = project("query", query_BLD)
        key_BMHK, value_BMHK = project("key", memory_BMD), project("value", memory_BMD)
        if decode:
            key_BMHK, value_BMHK, bias_BHLM = self._cached(key_BMHK, value_BMHK, bias_BHLM)
        scores_BHLM = jnp.einsum("blhk,bmhk->bhlm", query_BLHK, key_BMHK).astype(jnp.float32)
        y_BLHK = self._weighted(
            scores_BHLM + bias_BHLM.astype(jnp.float32), value_BMHK, deterministic
        )
        y = y_BLHK.reshape(*y_BLHK.shape[:-2], width)
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        axes = ("joined_kv", "embed")
        z_BLD = Dense(query_BLD.shape[-1], axes, self.dtype, init, name="out")(y)
        z_BLD = experts.add("out", y, z_BLD, axes)
        if self.pemt.vectors == "bias":
            z_BLD += Vector("embed", 0.0, self.dtype, name="bias")(z_BLD.shape[-1])
        experts.store(self, z_BLD, token_weights_BL)
        return z_BLD

    def _weighted(self, scores_BHLM: Array, value_BMHK: Array, deterministic: bool) -> Array:
        """Return Drop(softmax(scores)) values, with the division of the softmax done last.

        A training step thus stores the exponentials of the scores and nothing else of their size.
        Dividing after the sum over values, and applying a mask shared by all queries to the values
        instead of the weights, computes the same sums in a different order.
        """
        dropout = Dropout(self.dropout_rate, self.dropout_dims, deterministic=deterministic)
        largest = jax.lax.stop_gradient(jnp.max(scores_BHLM, axis=-1, keepdims=True))
        exponentials_BHLM = jnp.exp(scores_BHLM - largest)
        total_BHL = jnp.sum(exponentials_BHLM, axis=-1)
        exponentials_BHLM = exponentials_BHLM.astype(self.dtype)
        # The scales stay float32: rounding them to bfloat16 would bias whole rows.
        if self.dropout_dims and not deterministic:
            kept_BH1M = dropout(jnp.ones_like(scores_BHLM[:, :, :1]))
            kept_BMH1 = kept_BH1M[:, :, 0].transpose(0, 2, 1)[..., None]
            value_BMHK = (value_BMHK * kept_BMH1).astype(self.dtype)
        else:
            exponentials_BHLM = dropout(exponentials_BHLM)
        y_BLHK = jnp.einsum("bhlm,bmhk->blhk", exponentials_BHLM, value_BMHK)
        return (y_BLHK / total_BHL.transpose(0, 2, 1)[..., None]).astype(self.dtype)

    def _cached(self, key_BMHK: Array, value_BMHK: Array, bias_BHLM: Array):
        """Write this position to the cache; return all keys, all values, this row of the bias."""
        filling = self.has_variable("cache", "cached_key")
        keys = self.variable("cache", "cached_key", jnp.zeros_like, key_BMHK)
        values = self.variable("cache", "cached_value", jnp.zeros_like, value_BMHK)
        index = self.variable("cache", "cache_index", lambda: jnp.zeros((), jnp.int32))
        if not filling:
            return key_BMHK, value_BMHK, bias_BHLM
        position = index.value
        start = (0, position, 0, 0)
        keys.value = jax.lax.dynamic_update_slice(keys.value, key_BMHK, start)
        values.value = jax.lax.dynamic_update_slice(values.value, value_BMHK, start)
        index.value = position + 1
        row_BH1M = jax.lax.dynamic_slice_in_dim(bias_BHLM, position, 1, axis=2)
        return keys.value, values.value, row_BH1M
