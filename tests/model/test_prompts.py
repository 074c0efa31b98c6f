"""Task prompts and how source prompts are mixed into them."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import jit

from pemt_jax.model.prompts import SourcePrompts, TaskPrompt, mix_prompts, prompt_attention

D = 6


def bank(prompts, filler=0.0):
    """Prompts of different lengths, padded on the right to the longest."""
    sources_EQD = np.full((len(prompts), max(map(len, prompts)), D), filler, np.float32)
    for padded, prompt in zip(sources_EQD, prompts, strict=True):
        padded[: len(prompt)] = prompt
    return sources_EQD


def draw(random, *shape):
    return random.normal(size=shape).astype(np.float32)


def numpy_mixed(prompt_PD, prompts):
    """E_t + sum_i softmax(E_t E_i^T) E_i, each source by itself and unpadded."""
    prompt_PD = prompt_PD.astype(np.float64)
    mixed = prompt_PD.copy()
    for source in prompts:
        scores = prompt_PD @ source.T
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed += weights / weights.sum(axis=-1, keepdims=True) @ source
    return mixed


def mix(prompt_PD, sources_EQD, lengths):
    return mix_prompts(prompt_PD, sources_EQD, prompt_attention(prompt_PD, sources_EQD, lengths))


mixed = jit(mix, static_argnums=2)


@settings(max_examples=12, deadline=None)
@given(
    P=st.sampled_from([1, 4]),
    lengths=st.sampled_from([(3,), (1, 5, 3)]),
    filler=st.sampled_from([0.0, 7.0, -1e4]),
    seed=st.integers(0, 999),
)
def test_mixing_equals_numpy_and_padding_has_no_influence(P, lengths, filler, seed):
    random = np.random.default_rng(seed)
    prompt_PD, prompts = draw(random, P, D), [draw(random, length, D) for length in lengths]
    np.testing.assert_allclose(
        mixed(prompt_PD, bank(prompts, filler), lengths),
        numpy_mixed(prompt_PD, prompts),
        rtol=1e-4,
        atol=1e-5,
    )


def test_attention_to_a_source_sums_to_one_over_its_real_rows():
    random = np.random.default_rng(0)
    lengths = (2, 5)
    sources = bank([draw(random, n, D) for n in lengths], filler=9.0)
    weights_EPQ = np.asarray(prompt_attention(draw(random, 3, D), sources, lengths))
    np.testing.assert_allclose(weights_EPQ.sum(axis=-1), 1, rtol=1e-6)
    assert not weights_EPQ[0, :, 2:].any()


def test_a_source_of_one_row_is_added_whole():
    random = np.random.default_rng(1)
    prompt_PD, source = draw(random, 3, D), draw(random, 1, D)
    np.testing.assert_allclose(mixed(prompt_PD, source[None], (1,)), prompt_PD + source, rtol=1e-6)


def test_scores_are_not_scaled():
    prompt_PD = np.array([[30.0, 0, 0, 0, 0, 0]], np.float32)
    sources = np.zeros((1, 2, D), np.float32)
    sources[0, 0, 0] = 0.1
    weights = prompt_attention(prompt_PD, sources, (2,))[0, 0]
    np.testing.assert_allclose(weights[0] / weights[1], np.exp(3.0), rtol=1e-5)


def test_gradient_reaches_the_prompt_and_no_row_of_padding():
    random = np.random.default_rng(2)
    prompt_PD, lengths = draw(random, 3, D), (2, 4)
    sources = bank([draw(random, n, D) for n in lengths], filler=5.0)
    gradient = jit(jax.grad(lambda p, s: (mix(p, s, lengths) ** 2).sum(), (0, 1)))
    of_prompt, of_sources = gradient(prompt_PD, sources)
    assert np.all(np.abs(of_prompt) > 0)
    assert not np.any(of_sources[0, 2:]) and np.all(of_sources[1] != 0)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout_takes_whole_attention_weights_and_only_in_training(rate):
    # One-hot sources make the mixed prompt minus the prompt the dropped weights themselves.
    sources = np.eye(D, dtype=np.float32)[None]
    prompt_PD = draw(np.random.default_rng(3), 4, D)
    module = SourcePrompts((D,), D, rate)

    @functools.partial(jit, static_argnums=0)
    def added(deterministic):
        mixed_PD = module.apply(
            {"params": {"embedding": sources}},
            prompt_PD,
            deterministic=deterministic,
            rngs={"dropout": jax.random.key(0)},
        )
        return mixed_PD - prompt_PD

    weights = np.asarray(prompt_attention(prompt_PD, sources, (D,))[0])
    np.testing.assert_allclose(added(True), weights, atol=1e-6)
    dropped = np.asarray(added(False))
    kept = np.abs(dropped) > 1e-5
    np.testing.assert_allclose(dropped[kept], weights[kept] / (1 - rate), rtol=1e-4)
    assert kept.all() == (rate == 0)


def test_new_prompts_are_unit_normal_and_new_banks_zero():
    params = jit(TaskPrompt(200, 50).init)(jax.random.key(0))["params"]
    assert params["embedding"].shape == (200, 50)
    assert abs(np.std(params["embedding"]) - 1) < 0.02
    params = SourcePrompts((2, 5), D, 0.0).init(
        jax.random.key(0), np.ones((3, D), np.float32), deterministic=True
    )["params"]
    assert params["embedding"].shape == (2, 5, D) and not np.any(params["embedding"])
