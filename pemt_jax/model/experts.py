"""What PEMT adds to a feed-forward output: a source expert, a mixture of them, a target adapter.

An expert is a low-rank pair of matrices on the feed-forward activation u: e = (u A) B. Stage 1
trains one; stage 2 keeps E frozen ones in one stacked bank and adds sum_i g_i e_i. The bank costs
one matmul to E*R channels, a multiplication by the gate and one matmul back; the E outputs
[E, B, L, D] are never computed (losses.py does not need them either). The authors' code has one
module per expert.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.partitioning import param_with_axes
from jax import Array

from pemt_jax.model.layers import Dense


def uniform(bound: float):
    """Return an initialiser that draws from U(-bound, bound)."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class SourceExpert(nn.Module):
    """The trainable expert of stage 1: [B, L, F] -> [B, L, D], alpha / R = 1.

    A is drawn from U(+-1/sqrt(F)). B is zero, so that training starts from the pretrained model,
    or drawn from U(+-1/sqrt(R)) as in the authors' code.
    """

    rank: int
    features: int
    b_init: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden_BLF: Array) -> Array:
        width = hidden_BLF.shape[-1]
        init_b = nn.initializers.zeros
        if self.b_init == "uniform":
            init_b = uniform(1 / math.sqrt(self.rank))
        lora_a_FR = param_with_axes(
            "lora_a",
            uniform(1 / math.sqrt(width)),
            (width, self.rank),
            jnp.float32,
            axes=("mlp", "expert_rank"),
        )
        lora_b_RD = param_with_axes(
            "lora_b", init_b, (self.rank, self.features), jnp.float32, axes=("expert_rank", "embed")
        )
        channels_BLR = jnp.dot(hidden_BLF, lora_a_FR.astype(self.dtype))
        return jnp.dot(channels_BLR, lora_b_RD.astype(self.dtype))


class ExpertMixture(nn.Module):
    """The frozen bank of stage 2; its weights come from the expert library.

    The memory layout of both factors is that of the matrices [F, E*R] and [E*R, D] used in the
    products, so no step has to transpose the bank (which took a seventh of a small CPU step).
    """

    num_experts: int
    rank: int
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden_BLF: Array, gate_BE: Array) -> tuple[Array, Array, Array]:
        """Return sum_i g_i e_i [B, L, D], the channels [B, L, E, R], and the bank's B [E, R, D]."""
        width, experts, rank = hidden_BLF.shape[-1], self.num_experts, self.rank
        lora_a_FER = param_with_axes(
            "lora_a",
            uniform(1 / math.sqrt(width)),
            (width, experts, rank),
            jnp.float32,
            axes=("mlp", "experts", "expert_rank"),
        ).astype(self.dtype)
        lora_b_ERD = param_with_axes(
            "lora_b",
            nn.initializers.zeros,
            (experts, rank, self.features),
            jnp.float32,
            axes=("experts", "expert_rank", "embed"),
        ).astype(self.dtype)
        # Matrix products, not einsums over E and R: XLA would transpose the bank for those.
        channels_BLC = jnp.dot(hidden_BLF, lora_a_FER.reshape(width, experts * rank))
        gate_BC = jnp.repeat(gate_BE.astype(self.dtype), rank, axis=1)
        gated_BLC = channels_BLC * gate_BC[:, None, :]
        mixture_BLD = jnp.dot(gated_BLC, lora_b_ERD.reshape(experts * rank, self.features))
        channels_BLER = channels_BLC.reshape(*channels_BLC.shape[:2], experts, rank)
        return mixture_BLD, channels_BLER, lora_b_ERD


class TargetAdapter(nn.Module):
    """Bottleneck y + gelu(y W_down + b_down) W_up + b_up after the feed-forward output.

    Kernels are drawn from N(0, 0.01^2), biases are zero, gelu is the tanh approximation, and there
    is no norm.
    """

    bottleneck: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, y_BLD: Array) -> Array:
        init = nn.initializers.normal(stddev=0.01)
        down = Dense(self.bottleneck, ("embed", "adapter"), self.dtype, init, True, name="down")
        up = Dense(y_BLD.shape[-1], ("adapter", "embed"), self.dtype, init, True, name="up")
        return y_BLD + up(jax.nn.gelu(down(y_BLD), approximate=True))
