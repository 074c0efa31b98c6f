"""The correlation gate: how much of each expert an example uses, computed from the prompt.

g = softmax(a W / tau), where a is the mean over the prompt positions (PEMT, section 3.3) of the
same layer's feed-forward activation in the encoder, and of the encoder's output in the decoder.
The gate thus depends on how the input has changed the prompt. All positions of an example share
one gate.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.partitioning import param_with_axes
from jax import Array


def correlation_gate(
    states_BPX: Array,
    kernel_XE: Array,
    temperature: float = 1.0,
    prompt_weights_BP: Array | None = None,
) -> Array:
    """Return gate_BE, float32: for each example non-negative weights that sum to one.

    Args:
      states_BPX: hidden states at the prompt positions, of width X.
      kernel_XE: the gate's linear map.
      temperature: tau.
      prompt_weights_BP: 1 for tokens of the prompt, 0 for its padding; None without padding.
    """
    states_BPX = states_BPX.astype(jnp.float32)
    if prompt_weights_BP is None:
        mean_BX = jnp.mean(states_BPX, axis=1)
    else:
        weights_BP1 = prompt_weights_BP.astype(jnp.float32)[..., None]
        mean_BX = jnp.sum(states_BPX * weights_BP1, axis=1) / jnp.sum(weights_BP1, axis=1)
    # Accelerators multiply float32 in lower precision by default, which would save nothing here.
    logits_BE = jnp.dot(mean_BX, kernel_XE, precision=jax.lax.Precision.HIGHEST)
    return jax.nn.softmax(logits_BE / temperature, axis=-1)


class CorrelationGate(nn.Module):
    """`correlation_gate` with its kernel, initially zero: every expert starts with weight 1/E."""

    num_experts: int
    feature_axis: str
    temperature: float = 1.0

    @nn.compact
    def __call__(self, states_BPX: Array, prompt_weights_BP: Array | None = None) -> Array:
        kernel_XE = param_with_axes(
            "kernel",
            nn.initializers.zeros,
            (states_BPX.shape[-1], self.num_experts),
            jnp.float32,
            axes=(self.feature_axis, "gate"),
        )
        return correlation_gate(states_BPX, kernel_XE, self.temperature, prompt_weights_BP)
