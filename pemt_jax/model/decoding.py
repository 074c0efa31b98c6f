"""Greedy and beam search over a decoding cache, as loops that run entirely on the device.

Both are functions of `next_logits(tokens_N, cache, position) -> (logits_NV, cache)` and do not
depend on the model. Token 0 is padding and the start token, token 1 ends a sequence.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

EOS = 1
IMPOSSIBLE = -1e10
Cache = Any
NextLogits = Callable[[Array, Cache, Array], tuple[Array, Cache]]


def greedy_search(
    next_logits: NextLogits, cache: Cache, rows_B: Array, max_length: int
) -> tuple[Array, Array]:
    """Return tokens [B, T] (0 after the end) and their log probability [B].

    Args:
      next_logits: one step of the decoder.
      cache: the decoder's state for B rows.
      rows_B: 0 for rows that only fill the batch; they end at once.
      max_length: T, the maximum number of tokens to generate, including the end token.
    """
    batch = rows_B.shape[0]

    def unfinished(state):
        step, _, _, ended_B, _, _ = state
        return (step < max_length) & ~jnp.all(ended_B)

    def step_once(state):
        step, last_B, tokens_BT, ended_B, score_B, cache = state
        logits_BV, cache = next_logits(last_B, cache, step)
        log_probs_BV = jax.nn.log_softmax(logits_BV.astype(jnp.float32))
        next_B = jnp.argmax(log_probs_BV, axis=-1).astype(jnp.int32)
        gained_B = jnp.take_along_axis(log_probs_BV, next_B[:, None], axis=-1)[:, 0]
        next_B = jnp.where(ended_B, 0, next_B)
        score_B = score_B + jnp.where(ended_B, 0.0, gained_B)
        tokens_BT = jax.lax.dynamic_update_slice(tokens_BT, next_B[:, None], (0, step))
        return step + 1, next_B, tokens_BT, ended_B | (next_B == EOS), score_B, cache

    state = (
        jnp.zeros((), jnp.int32),
        jnp.zeros((batch,), jnp.int32),
        jnp.zeros((batch, max_length), jnp.int32),
        rows_B <= 0,
        jnp.zeros((batch,), jnp.float32),
        cache,
    )
    _, _, tokens_BT, _, score_B, _ = jax.lax.while_loop(unfinished, step_once, state)
    return tokens_BT, score_B


def length_penalty(length: Array | int, alpha: float) -> Array:
    """Return ((5 + length) / 6)^alpha, which divides log probabilities (Wu et al., 2016)."""
    return jnp.power((5.0 + length) / 6.0, alpha)


def beam_search(
    next_logits: NextLogits,
    cache: Cache,
    rows_B: Array,
    max_length: int,
    num_beams: int,
    alpha: float = 0.6,
) -> tuple[Array, Array]:
    """Return tokens [B, K, T] and scores [B, K], best beam first.

    Each step keeps the K best unfinished and the K best finished sequences. A sequence that
    reaches `max_length` without an end token competes with the finished ones.

    Args:
      next_logits: one step of the decoder on B*K rows.
      cache: the decoder's state for B*K rows, the K rows of an example next to each other; leaves
        whose first axis is not B*K are shared by all rows.
      rows_B: 0 for rows that only fill the batch.
      max_length: T.
      num_beams: K.
      alpha: exponent of the length penalty.
    """
    batch, beams = rows_B.shape[0], num_beams

    def gather(values: Array, beam_BK: Array) -> Array:
        index = beam_BK.reshape(*beam_BK.shape, *(1 for _ in values.shape[2:]))
        return jnp.take_along_axis(values, index, axis=1)

    def reorder_cache(cache: Cache, beam_BK: Array) -> Cache:
        flat_N = (jnp.arange(batch)[:, None] * beams + beam_BK).reshape(-1)
        return jax.tree.map(lambda x: x[flat_N] if x.shape[:1] == flat_N.shape else x, cache)

    def unfinished(state):
        step, _, live_scores_BK, _, done_scores_BK, _ = state
        # The best score an unfinished sequence can still reach is its present one at full length.
        bound_B = jnp.max(live_scores_BK, axis=1) / length_penalty(max_length, alpha)
        settled_B = (jnp.min(done_scores_BK, axis=1) >= bound_B) | (rows_B <= 0)
        return (step < max_length) & ~jnp.all(settled_B)

    def step_once(state):
        step, live_BKT, live_scores_BK, done_BKT, done_scores_BK, cache = state
        last_BK = jnp.where(step > 0, live_BKT[:, :, jnp.maximum(step - 1, 0)], 0)
        logits_NV, cache = next_logits(last_BK.reshape(-1), cache, step)
        vocabulary = logits_NV.shape[-1]
        log_probs = jax.nn.log_softmax(logits_NV.astype(jnp.float32))
        scores = live_scores_BK[:, :, None] + log_probs.reshape(batch, beams, vocabulary)
        # With twice as many candidates as beams, K remain unfinished even if K of them end.
        top_scores_BC, top_BC = jax.lax.top_k(scores.reshape(batch, -1), 2 * beams)
        beam_BC, token_BC = top_BC // vocabulary, top_BC % vocabulary
        candidates_BCT = gather(live_BKT, beam_BC)
        position = jnp.arange(max_length)[None, None, :] == step
        candidates_BCT = jnp.where(position, token_BC[:, :, None], candidates_BCT)
        ends_BC = token_BC == EOS
        live_scores_BC = jnp.where(ends_BC, IMPOSSIBLE, top_scores_BC)
        live_scores_BK, keep_BK = jax.lax.top_k(live_scores_BC, beams)
        ends_BC = ends_BC | (step == max_length - 1)
        ended_scores_BC = jnp.where(
            ends_BC, top_scores_BC / length_penalty(step + 1, alpha), IMPOSSIBLE
        )
        all_scores = jnp.concatenate([done_scores_BK, ended_scores_BC], axis=1)
        all_tokens = jnp.concatenate([done_BKT, candidates_BCT], axis=1)
        done_scores_BK, best_BK = jax.lax.top_k(all_scores, beams)
        cache = reorder_cache(cache, jnp.take_along_axis(beam_BC, keep_BK, axis=1))
        return (
            step + 1,
            gather(candidates_BCT, keep_BK),
            live_scores_BK,
            gather(all_tokens, best_BK),
            done_scores_BK,
            cache,
        )

    first_beam_only = jnp.where(jnp.arange(beams) == 0, 0.0, IMPOSSIBLE)
    tokens = jnp.zeros((batch, beams, max_length), jnp.int32)
    state = (
        jnp.zeros((), jnp.int32),
        tokens,
        jnp.tile(first_beam_only[None, :], (batch, 1)),
        tokens,
        jnp.full((batch, beams), IMPOSSIBLE, jnp.float32),
        cache,
    )
    _, _, _, done_BKT, done_scores_BK, _ = jax.lax.while_loop(unfinished, step_once, state)
    real_B = rows_B > 0
    return (
        jnp.where(real_B[:, None, None], done_BKT, 0),
        jnp.where(real_B[:, None], done_scores_BK, 0.0),
    )
