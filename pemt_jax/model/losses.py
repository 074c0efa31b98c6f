"""Token cross entropy and the task sparsity loss, as pure functions of arrays.

The task sparsity loss of one feed-forward layer (PEMT, section 3.4) is

    TSL = sum_i mean_B(g_i) * (1 - mean_BL cos(z, e_i))

with z the layer's output after the adapter and e_i = a_i B_i the ungated output of expert i,
where a_i = u A_i. Everything is computed in rank space, without any e_i of width D:
<z, e_i> = <z B_i^T, a_i> and |e_i|^2 = a_i (B_i B_i^T) a_i^T with a constant R x R Gram matrix.
"""

import jax.numpy as jnp
import optax
from jax import Array

COSINE_EPSILON = 1e-8


def token_cross_entropy(
    logits_BTV: Array, targets_BT: Array, weights_BT: Array, normalization: str = "tokens"
) -> tuple[Array, Array]:
    """Return the mean cross entropy in nats, and the cross entropy of each token [B, T].

    Args:
      logits_BTV: unnormalised log probabilities.
      targets_BT: token ids.
      weights_BT: 0 for tokens that do not count.
      normalization: "tokens", the mean over all tokens that count; "sequences", the mean over
        examples of each example's mean.
    """
    entropy_BT = optax.softmax_cross_entropy_with_integer_labels(
        logits_BTV.astype(jnp.float32), targets_BT
    )
    weights_BT = weights_BT.astype(jnp.float32)
    if normalization == "sequences":
        counts_B1 = jnp.sum(weights_BT, axis=1, keepdims=True)
        rows = jnp.sum(counts_B1 > 0)
        weights_BT = weights_BT / jnp.maximum(counts_B1, 1)
        return jnp.sum(entropy_BT * weights_BT) / jnp.maximum(rows, 1), entropy_BT
    return jnp.sum(entropy_BT * weights_BT) / jnp.maximum(jnp.sum(weights_BT), 1), entropy_BT


def _safe_norm(square: Array) -> Array:
    """Return the square root, with value and gradient 0 instead of NaN at 0 and just below it."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def _over_norm(values: Array, norm: Array) -> Array:
    """Return values / norm; 0 with gradient 0 where the norm is 0."""
    return jnp.where(norm > 0, values / jnp.maximum(norm, COSINE_EPSILON), 0.0)


def expert_cosines(z_BLD: Array, channels_BLER: Array, lora_b_ERD: Array) -> Array:
    """Return cos(z, e_i) [B, L, E] in float32; 0 with gradient 0 where an expert's output is 0.

    Args:
      z_BLD: output of the feed-forward sublayer.
      channels_BLER: a_i = u A_i.
      lora_b_ERD: the bank's output matrices B_i.
    """
    z_BLD = z_BLD.astype(jnp.float32)
    channels_BLER = channels_BLER.astype(jnp.float32)
    lora_b_ERD = lora_b_ERD.astype(jnp.float32)
    gram_ERQ = jnp.einsum("erd,eqd->erq", lora_b_ERD, lora_b_ERD)
    # A matrix product, because an einsum over E and R would transpose the bank in every step.
    projected_BLC = jnp.dot(z_BLD, lora_b_ERD.reshape(-1, z_BLD.shape[-1]).T)
    projected_BLER = projected_BLC.reshape(channels_BLER.shape)
    dot_BLE = jnp.sum(projected_BLER * channels_BLER, axis=-1)
    turned_BLER = jnp.einsum("bler,erq->bleq", channels_BLER, gram_ERQ)
    expert_norm_BLE = _safe_norm(jnp.sum(turned_BLER * channels_BLER, axis=-1))
    z_norm_BL1 = _safe_norm(jnp.sum(jnp.square(z_BLD), axis=-1, keepdims=True))
    # Dividing by one norm after the other keeps the product of small norms from underflowing.
    return _over_norm(_over_norm(dot_BLE, z_norm_BL1), expert_norm_BLE)


def task_sparsity_loss(cosines_BLE: Array, gate_BE: Array, token_weights_BL: Array) -> Array:
    """Return the loss [] of one layer.

    It is a product of means, not a mean of products, as the authors define it.

    Args:
      cosines_BLE: from `expert_cosines`.
      gate_BE: the layer's gate.
      token_weights_BL: 1 for tokens that count. A row without any only fills the batch, and its
        gate does not count either.
    """
    token_weights_BL = token_weights_BL.astype(jnp.float32)
    rows_B = jnp.any(token_weights_BL > 0, axis=1).astype(jnp.float32)
    tokens = jnp.maximum(jnp.sum(token_weights_BL), 1)
    cosine_E = jnp.einsum("ble,bl->e", cosines_BLE, token_weights_BL) / tokens
    gate_E = jnp.einsum("be,b->e", gate_BE, rows_B) / jnp.maximum(jnp.sum(rows_B), 1)
    return jnp.sum(gate_E * (1 - cosine_E))
