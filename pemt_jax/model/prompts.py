"""Task description prompts, and the correlation-guided mixing of source prompts into the target's.

A prompt has one embedding per token of its description. The target prompt attends to each frozen
source prompt, without projections or scaling, and adds the result (PEMT, section 3.2):

    P = E_t + sum_i Drop(softmax(E_t E_i^T)) E_i
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.partitioning import param_with_axes
from jax import Array

from pemt_jax.model.layers import MASKED


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


class TaskPrompt(nn.Module):
    """A trainable prompt [P, D].

    It is initialised from N(0, 1), as in the authors' code. With `prompt_init="vocab"`
    runs/build_model.py replaces it by the backbone's embeddings of the description's tokens.
    """

    length: int
    features: int

    @nn.compact
    def __call__(self) -> Array:
        return param_with_axes(
            "embedding",
            nn.initializers.normal(stddev=1.0),
            (self.length, self.features),
            jnp.float32,
            axes=("prompt", "embed"),
        )


class SourcePrompts(nn.Module):
    """The frozen bank of source prompts [E, Q, D]; its values come from the expert library."""

    lengths: tuple[int, ...]
    features: int
    dropout_rate: float

    @nn.compact
    def __call__(self, prompt_PD: Array, *, deterministic: bool) -> Array:
        sources_EQD = param_with_axes(
            "embedding",
            nn.initializers.zeros,
            (len(self.lengths), max(self.lengths), self.features),
            jnp.float32,
            axes=("experts", "prompt", "embed"),
        )
        weights_EPQ = prompt_attention(prompt_PD, sources_EQD, self.lengths)
        weights_EPQ = nn.Dropout(self.dropout_rate)(weights_EPQ, deterministic=deterministic)
        return mix_prompts(prompt_PD, sources_EQD, weights_EPQ)
