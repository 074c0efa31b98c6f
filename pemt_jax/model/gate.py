"""Gates: how much of each expert is used, per example or per token.

The published gate, "prompt", is g = softmax(a W / tau), where a is the mean over the prompt
positions (PEMT, section 3.3) of the same layer's feed-forward activation in the encoder, and of the
encoder's output in the decoder. The gate thus depends on how the input has changed the prompt. All
positions of an example share one gate.

The others (`PemtConfig.gate`) are ablations and rivals:

    shared      the same with one W per stack; the encoder's layers read their normalised input
    constant    g = softmax(w / tau), w trained per layer, whatever the input
    uniform     g = 1 / E
    token       g = softmax(x W / tau) per token and linear layer, whose input x is. AdapterFusion
                (arXiv 2005.00247) also weights per token, but by the attention of the layer's
                output to the experts' outputs, with matrices of D x D
    arrow       g = softmax over the k largest of |x . v_i| / tau, per token and linear layer. v_i,
                the prototype of expert i, is the direction of x that A_i B_i enlarges most (Arrow,
                arXiv 2405.11157; library/prototypes.py). Nothing is trained

With `PemtConfig.gate_top_k` only the k largest weights are kept, and normalised. A trained gate
then has the gradient of the gate that keeps all (straight-through, arXiv 1308.3432); with k = 1 it
would otherwise have none.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.partitioning import param_with_axes
from jax import Array

from pemt_jax.config import PemtConfig

# Accelerators multiply float32 in lower precision by default, which would save nothing here.
HIGHEST = jax.lax.Precision.HIGHEST


def top_k_softmax(logits_XE: Array, temperature: float = 1.0, top_k: int = 0) -> Array:
    """Return softmax(logits / temperature) over the k largest of the last axis; 0: over all."""
    if 0 < top_k < logits_XE.shape[-1]:
        _, kept = jax.lax.top_k(logits_XE, top_k)
        kept_XE = jax.nn.one_hot(kept, logits_XE.shape[-1], dtype=bool).any(axis=-2)
        logits_XE = jnp.where(kept_XE, logits_XE, -jnp.inf)
    return jax.nn.softmax(logits_XE / temperature, axis=-1)


def trained_gate(logits_XE: Array, temperature: float = 1.0, top_k: int = 0) -> Array:
    """Return `top_k_softmax` with the gradient of the softmax over all."""
    soft_XE = top_k_softmax(logits_XE, temperature)
    if not top_k:
        return soft_XE
    hard_XE = top_k_softmax(logits_XE, temperature, top_k)
    return soft_XE + jax.lax.stop_gradient(hard_XE - soft_XE)


def correlation_gate(
    states_BPX: Array,
    kernel_XE: Array,
    temperature: float = 1.0,
    prompt_weights_BP: Array | None = None,
    top_k: int = 0,
) -> Array:
    """Return gate_BE, float32: for each example non-negative weights that sum to one.

    Args:
      states_BPX: hidden states at the prompt positions, of width X.
      kernel_XE: the gate's linear map.
      temperature: tau.
      prompt_weights_BP: 1 for tokens of the prompt, 0 for its padding; None without padding.
      top_k: number of weights above 0; 0 for all.
    """
    states_BPX = states_BPX.astype(jnp.float32)
    if prompt_weights_BP is None:
        mean_BX = jnp.mean(states_BPX, axis=1)
    else:
        weights_BP1 = prompt_weights_BP.astype(jnp.float32)[..., None]
        mean_BX = jnp.sum(states_BPX * weights_BP1, axis=1) / jnp.sum(weights_BP1, axis=1)
    logits_BE = jnp.dot(mean_BX, kernel_XE, precision=HIGHEST)
    return trained_gate(logits_BE, temperature, top_k)


class GateKernel(nn.Module):
    """A gate's linear map [X, E], initially zero: every expert starts with weight 1/E.

    Prototypes are one that is given by the library and frozen.
    """

    num_experts: int
    feature_axis: str
    param_name: str = "kernel"

    @nn.compact
    def __call__(self, width: int) -> Array:
        return param_with_axes(
            self.param_name,
            nn.initializers.zeros,
            (width, self.num_experts),
            jnp.float32,
            axes=(self.feature_axis, "gate"),
        )


class ConstantGate(nn.Module):
    """The logits [E] of a gate that reads nothing, initially zero."""

    num_experts: int

    @nn.compact
    def __call__(self) -> Array:
        zeros = nn.initializers.zeros
        return param_with_axes("logits", zeros, (self.num_experts,), jnp.float32, axes=("gate",))


def example_gate(
    pemt: PemtConfig,
    states_BPX: Array,
    axis: str,
    prompt_weights_BP: Array | None,
    shared_kernel_XE: Array | None,
) -> Array:
    """Return gate_BE of a sublayer, within whose module its parameters are made.

    Args:
      pemt: the configuration, whose gate is none of TOKEN_GATES.
      states_BPX: hidden states at the prompt positions, whose last axis is `axis`.
      prompt_weights_BP: 0 for padding of a prompt.
      shared_kernel_XE: the stack's, for the gate "shared".
    """
    E, rows = pemt.num_experts, states_BPX.shape[0]
    if pemt.gate == "uniform":
        return jnp.full((rows, E), 1 / E, jnp.float32)
    if pemt.gate == "constant":
        logits_E = ConstantGate(E, name="gate")()
        gate_E = trained_gate(logits_E, pemt.gate_temperature, pemt.gate_top_k)
        return jnp.broadcast_to(gate_E[None], (rows, E))
    kernel_XE = shared_kernel_XE
    if kernel_XE is None:
        kernel_XE = GateKernel(E, axis, name="gate")(states_BPX.shape[-1])
    return correlation_gate(
        states_BPX, kernel_XE, pemt.gate_temperature, prompt_weights_BP, pemt.gate_top_k
    )


def token_gate(pemt: PemtConfig, x_BLX: Array, axis: str, name: str) -> Array:
    """Return gate_BLE of a linear layer with input x; arguments as of `example_gate`.

    The parameters are in the module `name`.
    """
    E, width = pemt.num_experts, x_BLX.shape[-1]
    x_BLX = x_BLX.astype(jnp.float32)
    if pemt.gate == "arrow":
        prototypes_XE = GateKernel(E, axis, "prototypes", name=name)(width)
        logits_BLE = jnp.abs(jnp.dot(x_BLX, prototypes_XE, precision=HIGHEST))
        return top_k_softmax(logits_BLE, pemt.gate_temperature, pemt.gate_top_k)
    logits_BLE = jnp.dot(x_BLX, GateKernel(E, axis, name=name)(width), precision=HIGHEST)
    return trained_gate(logits_BLE, pemt.gate_temperature, pemt.gate_top_k)
