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


def numpy_attempt(text_SD, prompt_PD, prompts, p):
    """One example of ATTEMPT, without padding of text or sources, in float64."""
    h = text_SD.max(axis=0).astype(np.float64) @ p["down"]["kernel"]
    h = (h / (1 + np.exp(-h))) @ p["up"]["kernel"]
    h = (h - h.mean()) / np.sqrt(h.var() + 1e-5) * p["scale"] + p["bias"]
    keys = np.stack([*(source.max(axis=0) for source in prompts), prompt_PD.max(axis=0)])
    weights = np.exp(keys @ h / (np.e * D))
    weights /= weights.sum()
    mixed = prompt_PD * (1 + weights[-1])
    for weight, source in zip(weights, prompts, strict=False):
        rows = min(len(source), len(mixed))
        mixed[:rows] += weight * source[:rows]
    return mixed


def test_the_attention_of_inputs_to_prompts_is_attempt():
    random = np.random.default_rng(4)
    prompt_PD, prompts = draw(random, 3, D), [draw(random, length, D) for length in (2, 5)]
    text_BSD, lengths = draw(random, 2, 4, D), (4, 2)
    present_BS = np.arange(4) < np.array(lengths)[:, None]
    module = SourcePrompts((2, 5), D, 0.0, "attention")
    arguments = prompt_PD, text_BSD, present_BS
    params = module.init(jax.random.key(0), *arguments, deterministic=True)["params"]
    params = jax.tree.map(lambda x: draw(random, *x.shape), params)
    params["embedding"] = bank(prompts, filler=9.0)
    params["embedding"][0, 2:] = 0  # as the library fills up
    mixed_BPD = jit(lambda p: module.apply({"params": p}, *arguments, deterministic=True))(params)
    for mixed_PD, text_SD, length in zip(mixed_BPD, text_BSD, lengths, strict=True):
        expected = numpy_attempt(text_SD[:length], prompt_PD, prompts, params["attention"])
        np.testing.assert_allclose(mixed_PD, expected, rtol=1e-4, atol=1e-5)
    # A row of the batch that holds no text gives numbers.
    nothing = module.apply(
        {"params": params}, prompt_PD, text_BSD, np.zeros_like(present_BS), deterministic=True
    )
    assert np.all(np.isfinite(nothing))


@pytest.mark.parametrize("mixing", ["own", "product"])
def test_a_prompt_of_its_own_ignores_its_sources(mixing):
    random = np.random.default_rng(5)
    prompt_PD, module = draw(random, 3, D), SourcePrompts((2, 5), D, 0.1, mixing)
    params = {"params": {"embedding": draw(random, 2, 5, D)}}
    np.testing.assert_array_equal(module.apply(params, prompt_PD, deterministic=True), prompt_PD)


def test_a_prompt_of_mpt_is_multiplied_by_a_matrix_of_rank_one_that_starts_with_ones():
    random, module = np.random.default_rng(6), TaskPrompt(4, D, product=True)
    new = module.init_with_output(jax.random.key(0))
    np.testing.assert_array_equal(new[0], new[1]["params"]["embedding"])
    params = {"embedding": draw(random, 4, D), "rows": draw(random, 4), "columns": draw(random, D)}
    expected = params["embedding"] * np.outer(params["rows"], params["columns"])
    np.testing.assert_allclose(module.apply({"params": params}), expected, rtol=1e-6)


def test_new_prompts_are_unit_normal_and_new_banks_zero():
    params = jit(TaskPrompt(200, 50).init)(jax.random.key(0))["params"]
    assert params["embedding"].shape == (200, 50)
    assert abs(np.std(params["embedding"]) - 1) < 0.02
    params = SourcePrompts((2, 5), D, 0.0).init(
        jax.random.key(0), np.ones((3, D), np.float32), deterministic=True
    )["params"]
    assert params["embedding"].shape == (2, 5, D) and not np.any(params["embedding"])
