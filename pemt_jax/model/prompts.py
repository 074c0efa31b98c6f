"""Task description prompts, and how source prompts are mixed into the target's.

A prompt has one embedding per token of its description. The target prompt attends to each frozen
source prompt, without projections or scaling, and adds the result (PEMT, section 3.2):

    P = E_t + sum_i Drop(softmax(E_t E_i^T)) E_i

This is "mixed" of `PemtConfig.prompt_mixing`. "own" is E_t alone, as prompt tuning (arXiv
2104.08691) has it. The other two are of other papers:

    attention   ATTEMPT (arXiv 2205.11961): P depends on the input X, of embedded tokens,
                    P = E_t + sum_j a_j E_j,  a = softmax_j(max(E_j) h / (e D)),
                    h = LayerNorm(silu(max(X) W_down) W_up),
                where j goes over the sources and the target, and max is over the tokens
    product     MPT (arXiv 2303.02861): P = E_t * u v^T, elementwise, with vectors u and v of ones
                at the start. MPT trains E_t on the sources before, for all tasks alike, by
                distillation of their own prompts; here it starts as other prompts do
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.partitioning import param_with_axes
from jax import Array

from pemt_jax.model.layers import MASKED, Dense

ATTEMPT_WIDTH = 100  # of the bottleneck that the attention to prompts has, as in its authors' code


def prompt_tokens(vocabulary, text: str) -> list[int]:
    """Tokens of a task's description, end token included; their number is the prompt's length."""
    return [*vocabulary.encode(text), vocabulary.eos_id]


def prompt_attention(prompt_PD: Array, sources_EQD: Array, lengths: tuple[int, ...]) -> Array:
    """Return the weights [E, P, Q] with which the target prompt attends to each source prompt.

    Args:
      prompt_PD: the target prompt.
      sources_EQD: the source prompts, zero-padded on the right to the longest length Q.
      lengths: the length of each source prompt without padding.
    """
    # Unscaled scores are large (standard deviation 28 for D = 768 and N(0, 1) embeddings), so the
    # lower precision in which accelerators multiply float32 would change the weights visibly.
    highest = jax.lax.Precision.HIGHEST
    scores_EPQ = jnp.einsum("pd,eqd->epq", prompt_PD, sources_EQD, precision=highest)
    real_EQ = jnp.arange(sources_EQD.shape[1])[None, :] < jnp.asarray(lengths)[:, None]
    return jax.nn.softmax(jnp.where(real_EQ[:, None, :], scores_EPQ, MASKED), axis=-1)


def mix_prompts(prompt_PD: Array, sources_EQD: Array, weights_EPQ: Array) -> Array:
    """Return the mixed prompt [P, D]: every source prompt has weight one; no gate is applied."""
    return prompt_PD + jnp.einsum("epq,eqd->pd", weights_EPQ, sources_EQD)


def interpolate(prompt_PD: Array, sources_EQD: Array, weights_BE: Array) -> Array:
    """Return ATTEMPT's prompts [B, P, D]; the last of the weights is the target's own.

    The source prompts are zero-padded, or cut, to the target's length.
    """
    P = prompt_PD.shape[0]
    missing = max(0, P - sources_EQD.shape[1])
    sources_EPD = jnp.pad(sources_EQD, ((0, 0), (0, missing), (0, 0)))[:, :P]
    all_EPD = jnp.concatenate([sources_EPD, prompt_PD[None]])
    return prompt_PD[None] + jnp.einsum("be,epd->bpd", weights_BE, all_EPD)


class TaskPrompt(nn.Module):
    """A trainable prompt [P, D], with `product` times a matrix of rank one.

    It is initialised from N(0, 1), as in the authors' code. With `prompt_init="vocab"`
    runs/build_model.py replaces it by the backbone's embeddings of the description's tokens.
    """

    length: int
    features: int
    product: bool = False

    @nn.compact
    def __call__(self) -> Array:
        prompt_PD = param_with_axes(
            "embedding",
            nn.initializers.normal(stddev=1.0),
            (self.length, self.features),
            jnp.float32,
            axes=("prompt", "embed"),
        )
        if not self.product:
            return prompt_PD
        ones = nn.initializers.ones
        rows_P = param_with_axes("rows", ones, (self.length,), jnp.float32, axes=("prompt",))
        columns_D = param_with_axes("columns", ones, (self.features,), jnp.float32, axes=("embed",))
        return prompt_PD * rows_P[:, None] * columns_D[None]


class PromptAttention(nn.Module):
    """ATTEMPT's weights of the source prompts and, last, the target's: [B, E + 1]."""

    @nn.compact
    def __call__(
        self,
        text_BSD: Array,
        present_BS: Array,
        prompt_PD: Array,
        sources_EQD: Array,
        lengths: tuple[int, ...],
    ) -> Array:
        """Args: embedded tokens and which are none of padding; prompts as of `prompt_attention`."""
        D = prompt_PD.shape[1]
        text_BSD = jnp.where(present_BS[..., None], text_BSD.astype(jnp.float32), MASKED)
        # A row that only fills the batch has no token.
        pooled_BD = jnp.where(present_BS.any(axis=1, keepdims=True), text_BSD.max(axis=1), 0)
        down = Dense(ATTEMPT_WIDTH, ("embed", "adapter"), name="down")
        up = Dense(D, ("adapter", "embed"), name="up")
        h_BD = up(jax.nn.silu(down(pooled_BD[:, None])))[:, 0]
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        scale_D = param_with_axes("scale", ones, (D,), jnp.float32, axes=("embed",))
        bias_D = param_with_axes("bias", zeros, (D,), jnp.float32, axes=("embed",))
        h_BD = jax.nn.standardize(h_BD, epsilon=1e-5) * scale_D[None] + bias_D[None]
        real_EQ = jnp.arange(sources_EQD.shape[1])[None, :] < jnp.asarray(lengths)[:, None]
        keys_ED = jnp.where(real_EQ[..., None], sources_EQD, MASKED).max(axis=1)
        keys_ED = jnp.concatenate([keys_ED, prompt_PD.max(axis=0)[None]])
        scores_BE = jnp.dot(h_BD, keys_ED.T, precision=jax.lax.Precision.HIGHEST)
        return jax.nn.softmax(scores_BE / (math.e * D), axis=-1)


class SourcePrompts(nn.Module):
    """The frozen bank of source prompts [E, Q, D]; its values come from the expert library."""

    lengths: tuple[int, ...]
    features: int
    dropout_rate: float
    mixing: str = "mixed"

    @nn.compact
    def __call__(
        self,
        prompt_PD: Array,
        text_BSD: Array | None = None,
        present_BS: Array | None = None,
        *,
        deterministic: bool,
    ) -> Array:
        """Return the prompt that the encoder gets: [P, D], by "attention" of a text [B, P, D]."""
        sources_EQD = param_with_axes(
            "embedding",
            nn.initializers.zeros,
            (len(self.lengths), max(self.lengths), self.features),
            jnp.float32,
            axes=("experts", "prompt", "embed"),
        )
        if self.mixing in ("own", "product"):
            return prompt_PD
        if self.mixing == "attention":
            assert text_BSD is not None and present_BS is not None
            attention = PromptAttention(name="attention")
            weights_BE = attention(text_BSD, present_BS, prompt_PD, sources_EQD, self.lengths)
            return interpolate(prompt_PD, sources_EQD, weights_BE)
        weights_EPQ = prompt_attention(prompt_PD, sources_EQD, self.lengths)
        weights_EPQ = nn.Dropout(self.dropout_rate)(weights_EPQ, deterministic=deterministic)
        return mix_prompts(prompt_PD, sources_EQD, weights_EPQ)
