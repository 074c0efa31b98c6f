"""A prompt padded on the left, as the shorter prompts of a job with several tasks are."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from tiny_model import (
    REFERENCE,
    SOURCE,
    T5,
    T5_1_1,
    TARGET,
    compiled,
    computed,
    jit,
    make_batch,
    random_params,
    rows,
)

from pemt_jax.model.pemt_model import PemtModel

PADDING = 3
CASES = {
    "source": (T5, SOURCE),
    "target": (T5, TARGET),
    "target on T5 1.1": (T5_1_1, TARGET),
    "reference": (T5, REFERENCE),
}
BATCH = make_batch([5, 2, 0], [3, 2, 0], S=6, T=4)  # the last row only fills the batch


def padded(t5, pemt, filling=0.0):
    """The model, parameters and batch of `pemt` with PADDING positions before the prompt."""
    params = flatten_dict(random_params(t5, pemt), sep="/")
    prompt = params["prompt/embedding"]
    params["prompt/embedding"] = np.pad(prompt, ((PADDING, 0), (0, 0)), constant_values=filling)
    length = pemt.prompt_length + PADDING
    weights = np.repeat(np.arange(length)[None] >= PADDING, len(BATCH["decoder_loss_weights"]), 0)
    return (
        dataclasses.replace(pemt, prompt_length=length),
        unflatten_dict(params, sep="/"),
        BATCH | {"encoder_prompt_weights": weights.astype(np.int32)},
    )


@pytest.mark.parametrize(
    "case",
    [
        "source",
        pytest.param("target", marks=pytest.mark.slow),
        pytest.param("target on T5 1.1", marks=pytest.mark.slow),
        pytest.param("reference", marks=pytest.mark.slow),
    ],
)
def test_a_padded_prompt_gives_the_outputs_losses_and_gradients_of_the_unpadded(case):
    t5, pemt = CASES[case]
    longer, params, batch = padded(t5, pemt)
    logits, _ = compiled(t5, pemt, "apply")(random_params(t5, pemt), BATCH, None)
    found, _ = compiled(t5, longer, "apply")(params, batch, None)
    np.testing.assert_allclose(found[:2], logits[:2], rtol=0, atol=2e-5)
    (loss, metrics), gradients = compiled(t5, pemt, "gradients")(random_params(t5, pemt), BATCH)
    (found, found_metrics), found_gradients = compiled(t5, longer, "gradients")(params, batch)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    assert computed(found_metrics) == pytest.approx(computed(metrics), rel=1e-5)
    found_gradients = flatten_dict(found_gradients, sep="/")
    prompt = found_gradients["prompt/embedding"]
    np.testing.assert_array_equal(prompt[:PADDING], 0)
    found_gradients["prompt/embedding"] = prompt[PADDING:]
    for path, gradient in flatten_dict(gradients, sep="/").items():
        np.testing.assert_allclose(
            found_gradients[path],
            gradient,
            rtol=0,
            atol=2e-5 * max(1, np.abs(gradient).max()),
            err_msg=path,
        )


@pytest.mark.parametrize("case", ["target", "reference"])
def test_what_stands_in_the_padding_does_not_matter(case):
    t5, pemt = CASES[case]
    longer, params, batch = padded(t5, pemt)
    other = padded(t5, pemt, filling=3.0)[1]
    one, _ = compiled(t5, longer, "gradients")(params, batch)
    two, gradients = compiled(t5, longer, "gradients")(other, batch)
    assert computed(one[1]) == pytest.approx(computed(two[1]), rel=1e-6)
    np.testing.assert_array_equal(gradients["prompt"]["embedding"][:PADDING], 0)


@pytest.mark.slow
def test_predictions_and_gates_of_a_padded_prompt_are_those_of_the_unpadded():
    longer, params, batch = padded(T5, TARGET)
    batch, unpadded = rows(batch, [0, 1]), rows(BATCH, [0, 1])
    tokens, aux = jit(PemtModel(T5, TARGET).predict_batch_with_aux)(
        random_params(T5, TARGET), unpadded
    )
    found, found_aux = jit(PemtModel(T5, longer).predict_batch_with_aux)(params, batch)
    np.testing.assert_array_equal(found, tokens)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found_aux, aux)
