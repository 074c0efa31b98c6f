"""Scanned layers: the numbers, masks, names and tokens of the same layers unrolled."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from tiny_model import SOURCE, T5, T5_1_1, TARGET, initial_shapes, jit, make_batch, random_params

from pemt_jax.common.layer_stacks import stack_layers, stacked_path
from pemt_jax.config import PemtConfig
from pemt_jax.model.methods import METHODS, merge, split
from pemt_jax.model.pemt_model import PemtModel

DEEP = dataclasses.replace(T5, num_encoder_layers=2, num_decoder_layers=2, dropout_rate=0.1)
BATCH = make_batch([3, 6, 1, 5], [3, 5, 1, 2], S=6, T=5)
ANYWHERE = dataclasses.replace(TARGET, expert_linears=("q", "encoder/v:1", "o:3", "wo"))
SHARED = dataclasses.replace(ANYWHERE, gate="shared")
TOKEN = dataclasses.replace(ANYWHERE, gate="token")
VECTORS = PemtConfig(vectors="ia3"), PemtConfig(vectors="bias")
METHOD_OF = {
    SHARED: METHODS["pemt_target"],
    TOKEN: METHODS["pemt_target"],
    VECTORS[0]: METHODS["ia3"],
    VECTORS[1]: METHODS["bitfit"],
    SOURCE: METHODS["pemt_source"],
    TARGET: METHODS["pemt_target"],
    ANYWHERE: METHODS["pemt_target"],
}


def scanned(t5):
    return dataclasses.replace(t5, scan_layers=True)


@functools.cache
def trained(t5, pemt, stacked=False):
    """(loss, metrics), gradients of what the method trains; with dropout."""
    model = PemtModel(t5, pemt)
    trainable, frozen = split(random_params(t5, pemt), METHOD_OF[pemt])
    if stacked:
        frozen = stack_layers(frozen, np.stack)

    def loss(trainable):
        return model.loss_fn(merge(trainable, frozen), BATCH, jax.random.key(7))

    return jit(jax.value_and_grad(loss, has_aux=True))(trainable)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(
        # The compiler may add the same terms in another order.
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
        found,
        expected,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "pemt", [pytest.param(TARGET, id="wo"), pytest.param(ANYWHERE, id="anywhere")]
)
def test_losses_gates_and_gradients_with_dropout_are_those_of_unrolled_layers(pemt):
    assert_same(trained(scanned(DEEP), pemt, stacked=True), trained(DEEP, pemt))


@pytest.mark.slow
@pytest.mark.parametrize("pemt", [SHARED, TOKEN, *VECTORS], ids=["shared", "token", "ia3", "bias"])
def test_so_are_those_of_other_methods_scanned_or_rematerialised(pemt):
    full = dataclasses.replace(DEEP, remat_policy="full")
    for t5 in (scanned(DEEP), full):
        assert_same(trained(t5, pemt), trained(DEEP, pemt))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["minimal", "full"])
@pytest.mark.parametrize("broadcast", [True, False])
@pytest.mark.parametrize("pemt", [SOURCE, TARGET])
@pytest.mark.parametrize("like", [DEEP, dataclasses.replace(T5_1_1, dropout_rate=0.1)])
def test_so_they_are_rematerialised_and_with_a_mask_per_position(policy, broadcast, pemt, like):
    t5 = dataclasses.replace(like, remat_policy=policy, broadcast_dropout=broadcast)
    plain = dataclasses.replace(like, broadcast_dropout=broadcast)
    assert_same(trained(scanned(t5), pemt), trained(plain, pemt))


def decoded(t5, beams):
    predict = functools.partial(
        PemtModel(t5, TARGET).predict_batch_with_aux, num_decodes=beams, return_all_decodes=True
    )
    return jit(predict)(random_params(t5, TARGET), BATCH)


@pytest.mark.parametrize("beams", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_search_with_the_cache_of_all_layers_finds_the_same_tokens(beams):
    (tokens, aux), (expected, expected_aux) = decoded(scanned(DEEP), beams), decoded(DEEP, beams)
    np.testing.assert_array_equal(tokens, expected)
    assert_same(aux, expected_aux)


def test_initial_parameters_and_what_layers_report_have_the_names_of_unrolled_layers():
    shapes = {
        name: (1, 2)
        for name in ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    }

    def traced(t5):
        model = PemtModel(t5, TARGET)
        init = jax.make_jaxpr(lambda key: model.get_initial_variables(key, shapes)["params"])
        reported = jax.eval_shape(lambda: model.apply(random_params(t5, TARGET), BATCH)[1])
        return str(init(jax.random.key(0))), reported

    assert traced(T5) == traced(scanned(T5))


def test_one_layer_is_traced_per_stack():
    def products(t5):
        params = initial_shapes(t5, TARGET)["params"]
        traced = jax.make_jaxpr(lambda p: PemtModel(t5, TARGET).apply(p, BATCH))(params)
        return str(traced).count("dot_general")

    deeper = dataclasses.replace(DEEP, num_encoder_layers=5, num_decoder_layers=5)
    assert products(scanned(deeper)) == products(scanned(DEEP))
    assert products(deeper) > products(DEEP)


def test_layers_are_stacked_in_their_order_and_what_is_stacked_stays():
    flat = {f"encoder/layers_{i}/mlp/wo/kernel": i for i in (10, 2, 0, 1)}
    flat |= {"encoder/encoder_norm/scale": 5, "decoder/layers/mlp/wo/kernel": [7]}
    assert stack_layers(flat, list) == {
        "encoder/layers/mlp/wo/kernel": [0, 1, 2, 10],
        "encoder/encoder_norm/scale": 5,
        "decoder/layers/mlp/wo/kernel": [7],
    }
    assert stacked_path("decoder/layers_3/mlp/wi/kernel") == "decoder/layers/mlp/wi/kernel"
