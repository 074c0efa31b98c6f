"""One layer of T5, and the stack of layers that is its encoder or its decoder.

Its sublayers have experts where a `PemtConfig` asks for them (experts.py); the decoder's gates read
the encoder's output at the prompt.

With `T5Config.scan_layers` a stack is one loop over its layers (`jax.lax.scan`), whose body is
compiled once. Nobody outside sees it, but for the cache: parameters may be given per layer or
stacked (common/layer_stacks.py), and gates and losses are those of `layers_0`, `layers_1`, ...
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.core.scope import LazyRng
from flax.linen.spmd import with_logical_constraint
from jax import Array

from pemt_jax.common.layer_stacks import stack_layers
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.model.attention import Attention
from pemt_jax.model.feed_forward import FeedForward
from pemt_jax.model.gate import GateKernel
from pemt_jax.model.layers import Dense, Dropout, RelativePositionBias, RMSNorm, scanned_layer


def position_bias(t5: T5Config, in_encoder: bool) -> RelativePositionBias:
    """Return the module of the relative position bias of a stack, or of one of its layers."""
    return RelativePositionBias(
        t5.num_heads,
        t5.relpos_buckets,
        t5.relpos_max_distance,
        in_encoder,
        t5.compute_dtype,
        name="relpos_bias",
    )


class Layer(nn.Module):
    """One layer of either stack: self attention, cross attention in the decoder, feed-forward.

    Each is applied as x + Drop(sublayer(norm(x))).
    """

    t5: T5Config
    pemt: PemtConfig
    in_encoder: bool

    @nn.compact
    def __call__(
        self,
        x_BLD: Array,
        self_bias: Array,
        encoded_BMD: Array | None,
        cross_bias: Array | None,
        token_weights_BL: Array | None,
        prompt_weights_BP: Array | None,
        gate_kernel_DE: Array | None,
        deterministic: bool,
        decode: bool = False,
    ) -> Array:
        t5, dtype = self.t5, self.t5.compute_dtype
        dropout = Dropout(t5.dropout_rate, t5.dropout_dims, deterministic=deterministic)

        def attention(name: str) -> Attention:
            return Attention(
                t5.num_heads,
                t5.head_dim,
                t5.dropout_rate,
                dtype,
                t5.dropout_dims,
                self.pemt,
                "encoder" if self.in_encoder else "decoder",
                name=name,
            )

        prompt_states_BPD = None
        if not self.in_encoder:
            assert encoded_BMD is not None
            prompt_states_BPD = encoded_BMD[:, : self.pemt.prompt_length]
        for_gate = (prompt_states_BPD, token_weights_BL, prompt_weights_BP, gate_kernel_DE)
        if t5.relpos_per_layer:  # umT5: what is given is the mask alone
            length = self_bias.shape[-1]
            self_bias = position_bias(t5, self.in_encoder)(length, length) + self_bias
        prefix = "" if self.in_encoder else "self_"
        y = RMSNorm(dtype, name=f"pre_{prefix}attention_layer_norm")(x_BLD)
        y = attention(f"{prefix}attention")(
            y, y, self_bias, *for_gate, deterministic=deterministic, decode=decode
        )
        x_BLD = x_BLD + dropout(y)
        if not self.in_encoder:
            assert encoded_BMD is not None and cross_bias is not None
            y = RMSNorm(dtype, name="pre_cross_attention_layer_norm")(x_BLD)
            y = attention("encoder_decoder_attention")(
                y, encoded_BMD, cross_bias, *for_gate, deterministic=deterministic
            )
            x_BLD = x_BLD + dropout(y)
        y = RMSNorm(dtype, name="pre_mlp_layer_norm")(x_BLD)
        y = FeedForward(t5, self.pemt, self.in_encoder, name="mlp")(
            y, *for_gate, deterministic=deterministic
        )
        x_BLD = x_BLD + dropout(y)
        return with_logical_constraint(x_BLD, ("batch", "length", "embed"))


# What is stored of a layer for the backward pass; names and policies are T5X's.
CHECKPOINT_POLICIES = {
    "minimal": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "full": None,  # only the layer's input
}


def keep_costly(primitive, *_, **__) -> bool:
    """The policy "none" of a scanned layer: keep what takes time to compute again.

    Those are matrix products, the exponentials of attention and the masks of dropout. In straight
    code XLA chooses what is kept; of a loop all is kept that the backward pass reads, in float32.
    """
    return primitive.name in ("dot_general", "exp", "lt")


def layer_class(policy: str) -> type[nn.Module]:
    """Return `Layer`, or its variant that recomputes activations in the backward pass."""
    if policy == "none":
        return Layer
    # Arguments 8 and 9, counting self as 0, are Python values: deterministic and decode.
    return nn.remat(Layer, policy=CHECKPOINT_POLICIES[policy], static_argnums=(8, 9))


class Stack(nn.Module):
    """Encoder or decoder: layers applied to embeddings, and a norm.

    The layers share one position bias, or have one each (`T5Config.relpos_per_layer`).
    """

    t5: T5Config
    pemt: PemtConfig
    in_encoder: bool

    @nn.compact
    def __call__(
        self,
        x_BLD: Array,
        mask_bias: Array,
        encoded_BMD: Array | None = None,
        cross_bias: Array | None = None,
        token_weights_BL: Array | None = None,
        prompt_weights_BP: Array | None = None,
        *,
        deterministic: bool,
        decode: bool = False,
    ) -> Array:
        t5, dtype = self.t5, self.t5.compute_dtype
        dropout = Dropout(t5.dropout_rate, t5.dropout_dims, deterministic=deterministic)
        length = mask_bias.shape[-1]
        positions = None if t5.relpos_per_layer else position_bias(t5, self.in_encoder)
        self_bias = mask_bias if positions is None else positions(length, length) + mask_bias
        x_BLD = dropout(x_BLD.astype(dtype))
        stack = "encoder" if self.in_encoder else "decoder"
        layers = t5.num_encoder_layers if self.in_encoder else t5.num_decoder_layers
        gate_kernel_DE = None
        if self.pemt.num_experts and self.pemt.gate == "shared":
            gate_kernel_DE = GateKernel(self.pemt.num_experts, "embed", name="gate")(t5.emb_dim)
        arguments = (
            self_bias,
            encoded_BMD,
            cross_bias,
            token_weights_BL,
            prompt_weights_BP,
            gate_kernel_DE,
            deterministic,
            decode,
        )
        policy = "none" if decode else t5.remat_policy
        if t5.scan_layers and not self.is_initializing():
            x_BLD = self._scanned(x_BLD, arguments, layers)
        else:
            layer = layer_class(policy)
            for i in range(layers):
                x_BLD = layer(t5, self.pemt, self.in_encoder, name=f"layers_{i}")(x_BLD, *arguments)
        x_BLD = dropout(RMSNorm(dtype, name=f"{stack}_norm")(x_BLD))
        if not self.in_encoder and t5.scales_decoder_outputs:
            x_BLD = x_BLD / np.sqrt(t5.emb_dim).astype(x_BLD.dtype)
        if self.in_encoder or t5.logits_via_embedding:
            return x_BLD
        logits = Dense(t5.vocab_size, ("embed", "vocab"), jnp.float32, name="logits_dense")
        return logits(x_BLD)

    def _scanned(self, x_BLD: Array, arguments: tuple, layers: int) -> Array:
        """Return the output of the last layer, by a loop over all of them.

        The cache of all layers, "layers" in the collection "cache", has the layers along its second
        axis, after the rows', which a beam search reorders.
        """
        layer = Layer(self.t5, self.pemt, self.in_encoder, parent=None)
        scope = self.scope
        assert scope is not None  # flax calls this within a module
        params = stacked(scope.variables()["params"])["layers"]
        cache = self.get_variable("cache", "layers")
        kinds = [kind for kind in ("pemt", "cache") if self.is_mutable_collection(kind)]
        rng = scope.rngs.get("dropout")
        # Every layer has the path of the first; scanned_layer tells them apart.
        rngs: Any = {} if rng is None else {"dropout": LazyRng.create(rng, "layers_0")}

        def body(carry, inputs):
            (x_BLD, cache), (number, own) = carry, inputs
            variables = {"params": own}
            if cache is not None:
                variables["cache"] = jax.tree.map(lambda x: _of_layer(x, number), cache)
            with scanned_layer(number, layers):
                x_BLD, made = layer.apply(variables, x_BLD, *arguments, rngs=rngs, mutable=kinds)
            if cache is not None:
                new = made.pop("cache")
                cache = jax.tree.map(lambda x, y: _with_layer(x, y, number), cache, new)
            return (x_BLD, cache), made

        policy = (CHECKPOINT_POLICIES | {"none": keep_costly})[self.t5.remat_policy]
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
        numbers = jnp.arange(layers)
        (x_BLD, cache), made = jax.lax.scan(body, (x_BLD, cache), (numbers, params))
        if "cache" in made:  # it is new
            cache = jax.tree.map(lambda x: jnp.moveaxis(x, 0, min(1, x.ndim - 1)), made["cache"])
        if "cache" in kinds:
            self.put_variable("cache", "layers", cache)
        for i in range(layers) if "pemt" in made else ():
            own = jax.tree.map(lambda x, i=i: x[i], made["pemt"])
            self.put_variable("pemt", f"layers_{i}", own)
        return x_BLD


def stacked(params: Mapping) -> dict[str, Any]:
    """Return nested parameters with the layers of each stack in one array, where they are not."""
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(params), sep="/")
    return traverse_util.unflatten_dict(stack_layers(flat, _stack), sep="/")


def _stack(layers: list[Array]) -> Array:
    """Return one array of all layers, whose gradient is cut before anything is done with it.

    Otherwise XLA fuses each cut with the optimizer's update of that layer, and compiles every one
    of these by itself: updates of whole arrays are alike, and are compiled once.
    """
    return jnp.stack(jax.lax.optimization_barrier(layers))


def _of_layer(cached: Array, number: Array) -> Array:
    axis = min(1, cached.ndim - 1)
    return jax.lax.dynamic_index_in_dim(cached, number, axis, keepdims=False)


def _with_layer(cached: Array, new: Array, number: Array) -> Array:
    axis = min(1, cached.ndim - 1)
    return jax.lax.dynamic_update_index_in_dim(cached, new, number, axis)
