"""Greedy and beam search on random tables, against loops and exhaustive search in NumPy.

The table gives the logits for every history of tokens: a model with a memory, whose state travels
in the cache, so that a beam that loses its cache gives wrong scores.
"""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import jit

from pemt_jax.model.decoding import EOS, beam_search, greedy_search, length_penalty

STATES, V, T = 97, 3, 3


def start(num_rows, beams=1):
    """One state per row (its number), K times, and a counter shared by all rows."""
    states = jnp.repeat(jnp.arange(num_rows, dtype=jnp.int32), beams)
    return {"state": states, "steps": jnp.zeros((), jnp.int32)}


def after(state, token):
    return (state * 5 + token + 1) % STATES


def next_logits(table, tokens_N, cache, position):
    state_N = after(cache["state"], tokens_N)
    return table[state_N], {"state": state_N, "steps": cache["steps"] + 1}


@functools.partial(jit, static_argnums=2)
def greedy(table, rows_B, max_length):
    return greedy_search(
        functools.partial(next_logits, table), start(rows_B.shape[0]), rows_B, max_length
    )


@functools.partial(jit, static_argnums=(2, 3, 4))
def beams(table, rows_B, max_length, num_beams, alpha):
    return beam_search(
        functools.partial(next_logits, table),
        start(rows_B.shape[0], num_beams),
        rows_B,
        max_length,
        num_beams,
        alpha,
    )


def log_probability(table, row, sequence):
    state, last, total = row, 0, 0.0
    for token in sequence:
        state = after(state, last)
        logits = table[state].astype(np.float64)
        total += logits[token] - np.log(np.sum(np.exp(logits)))
        last = token
    return total


def all_sequences():
    """Every sequence that ends in EOS, and every one of length T without it."""
    others = [token for token in range(V) if token != EOS]
    for length in range(1, T + 1):
        for head in itertools.product(others, repeat=length - 1):
            for last in range(V) if length == T else [EOS]:
                yield (*head, last)


def exhaustive(table, row, alpha):
    """All sequences with their scores, best first."""
    scored = [
        (log_probability(table, row, s) / ((5 + len(s)) / 6) ** alpha, s) for s in all_sequences()
    ]
    return sorted(scored, reverse=True)


def close(scores, expected):
    """Sums of a few float32 log probabilities, each right to some parts in ten million of 10."""
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def random_table(seed, size=2.0):
    return np.random.default_rng(seed).normal(scale=size, size=(STATES, V)).astype(np.float32)


def padded(sequence, length=T):
    return list(sequence) + [0] * (length - len(sequence))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 9999))
def test_greedy_takes_the_best_token_of_every_step_until_the_end(seed):
    table, length = random_table(seed), 6
    tokens_BT, scores_B = greedy(table, np.array([1.0, 1.0, 0.0, 1.0], np.float32), length)
    for row in (0, 1, 3):
        state, sequence = row, []
        while len(sequence) < length and EOS not in sequence:
            state = after(state, sequence[-1] if sequence else 0)
            sequence.append(int(np.argmax(table[state])))
        assert tokens_BT[row].tolist() == padded(sequence, length)
        close(scores_B[row], log_probability(table, row, sequence))
    assert not tokens_BT[2].any() and scores_B[2] == 0


def test_greedy_of_a_batch_of_filler_rows_takes_no_step():
    tokens_BT, scores_B = greedy(random_table(0), np.zeros(4, np.float32), 6)
    assert not np.any(tokens_BT) and not np.any(scores_B)


def test_greedy_writes_padding_after_the_end():
    table = np.zeros((STATES, V), np.float32)
    table[:, 2] = 1
    table[after(after(0, 0), 2), EOS] = 2  # row 0 ends at its second step
    tokens_BT, _ = greedy(table, np.ones(4, np.float32), 6)
    assert tokens_BT[0].tolist() == [2, EOS, 0, 0, 0, 0]


@pytest.mark.parametrize("alpha", [0.0, 0.6])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 9999))
def test_beam_search_with_room_for_every_sequence_is_exhaustive(alpha, seed):
    table, count = random_table(seed), len(list(all_sequences()))
    tokens_BKT, scores_BK = beams(table, np.ones(2, np.float32), T, count + 1, alpha)
    for row in range(2):
        expected = exhaustive(table, row, alpha)
        close(scores_BK[row, :count], [score for score, _ in expected])
        found = {tuple(sequence) for sequence in np.asarray(tokens_BKT[row, :count]).tolist()}
        assert found == {tuple(padded(sequence)) for _, sequence in expected}
        assert tokens_BKT[row, 0].tolist() == padded(expected[0][1])
        assert scores_BK[row, count] < -1e9  # nothing is found twice


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 9999))
def test_narrow_beams_are_ordered_and_score_what_they_say(seed):
    table, alpha = random_table(seed), 0.6
    tokens_BKT, scores_BK = map(np.asarray, beams(table, np.ones(2, np.float32), 6, 2, alpha))
    assert np.all(scores_BK[:, 0] >= scores_BK[:, 1])
    for row, beam in itertools.product(range(2), range(2)):
        sequence = tokens_BKT[row, beam].tolist()
        if EOS in sequence:
            sequence = sequence[: sequence.index(EOS) + 1]
            assert not tokens_BKT[row, beam, len(sequence) :].any()
        score = log_probability(table, row, sequence) / length_penalty(len(sequence), alpha)
        close(scores_BK[row, beam], score)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 9999))
def test_one_beam_without_penalty_is_never_worse_than_greedy(seed):
    table, rows_B = random_table(seed), np.ones(4, np.float32)
    _, greedy_B = greedy(table, rows_B, 6)
    _, scores_BK = beams(table, rows_B, 6, 1, 0.0)
    assert np.all(scores_BK[:, 0] >= greedy_B - 1e-4)


def test_beams_of_a_row_do_not_depend_on_filler_rows_beside_it():
    table = random_table(5)
    alone = beams(table, np.array([1.0, 0.0], np.float32), 6, 2, 0.6)
    together = beams(table, np.ones(2, np.float32), 6, 2, 0.6)
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a[0], b[0])


def test_length_penalty_by_hand():
    assert length_penalty(1, 0.6) == 1
    np.testing.assert_allclose(length_penalty(13, 1.0), 3)
    assert length_penalty(7, 0.0) == 1
