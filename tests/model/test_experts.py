"""Source expert, mixture of frozen experts and target adapter against NumPy."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import T5_1_1, TARGET, equations, jit, make_batch, random_params

from pemt_jax.model.experts import ExpertMixture, SourceExpert, TargetAdapter
from pemt_jax.model.methods import METHODS, merge, split
from pemt_jax.model.pemt_model import PemtModel


def draw(random, *shape):
    return random.normal(size=shape).astype(np.float32)


@settings(max_examples=10, deadline=None)
@given(
    shape=st.sampled_from([(1, 1, 4, 1, 2), (3, 2, 5, 4, 3)]),
    D=st.sampled_from([3, 6]),
    seed=st.integers(0, 999),
)
def test_mixture_equals_sum_of_gated_experts(shape, D, seed):
    B, L, F, E, R = shape
    random = np.random.default_rng(seed)
    hidden_BLF, gate_BE = draw(random, B, L, F), random.dirichlet(np.ones(E), B)
    a_FER, b_ERD = draw(random, F, E, R), draw(random, E, R, D)
    mixture, channels, bank_b = jit(ExpertMixture(E, R, D).apply)(
        {"params": {"lora_a": a_FER, "lora_b": b_ERD}}, hidden_BLF, gate_BE.astype(np.float32)
    )
    expected = np.zeros((B, L, D))
    for i in range(E):
        channels_BLR = hidden_BLF.astype(np.float64) @ a_FER[:, i]
        expected += gate_BE[:, i, None, None] * (channels_BLR @ b_ERD[i])
        np.testing.assert_allclose(channels[:, :, i], channels_BLR, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mixture, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(bank_b, b_ERD)


def test_source_expert_is_two_matmuls_with_scale_one():
    random = np.random.default_rng(0)
    hidden, a, b = draw(random, 2, 3, 7), draw(random, 7, 2), draw(random, 2, 5)
    y = SourceExpert(2, 5, "zero").apply({"params": {"lora_a": a, "lora_b": b}}, hidden)
    np.testing.assert_allclose(y, hidden @ a @ b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("b_init", ["zero", "uniform"])
def test_initial_expert(b_init):
    y, variables = jit(SourceExpert(64, 50, b_init).init_with_output)(
        jax.random.key(0), np.ones((1, 1, 400), np.float32)
    )
    a, b = variables["params"]["lora_a"], variables["params"]["lora_b"]
    bound = 1 / math.sqrt(400)
    assert 0.99 * bound < np.abs(a).max() <= bound and abs(np.mean(a)) < bound / 50
    if b_init == "zero":  # the model starts as the pretrained one
        assert not np.any(b) and not np.any(y)
    else:  # the authors' start: U(-1/8, 1/8) at rank 64
        assert 0.99 / 8 < np.abs(b).max() <= 1 / 8


def test_adapter_equals_numpy_with_the_tanh_gelu():
    random = np.random.default_rng(1)
    y, down, up = draw(random, 2, 3, 6), draw(random, 6, 4), draw(random, 4, 6)
    down_bias, up_bias = draw(random, 4), draw(random, 6)
    z = jit(TargetAdapter(4).apply)(
        {
            "params": {
                "down": {"kernel": down, "bias": down_bias},
                "up": {"kernel": up, "bias": up_bias},
            }
        },
        y,
    )
    x = y.astype(np.float64) @ down + down_bias
    gelu = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(z, y + gelu @ up + up_bias, rtol=1e-5, atol=1e-5)


def test_initial_adapter_is_nearly_the_identity():
    y = np.ones((1, 1, 300), np.float32)
    z, variables = jit(TargetAdapter(100).init_with_output)(jax.random.key(0), y)
    params = variables["params"]
    for name in ("down", "up"):
        assert abs(np.std(params[name]["kernel"]) - 0.01) < 2e-4
        assert not np.any(params[name]["bias"])
    assert 0 < np.abs(z - y).max() < 0.1


# Every axis of its own size, and the rank and the widths so small against E*D that one array of
# E expert outputs is larger than everything else in the program.
SIZES = {"B": 3, "S": 9, "T": 11, "P": 4, "D": 16, "F": 24, "E": 7, "R": 2, "C": 5}
WIDE = dataclasses.replace(
    T5_1_1,
    emb_dim=SIZES["D"],
    mlp_dim=SIZES["F"],
    head_dim=5,
    num_decoder_layers=1,
    dropout_rate=0.1,
)
BANK = dataclasses.replace(
    TARGET,
    expert_names=tuple("abcdefg"),
    adapter_dim=SIZES["C"],
    source_prompt_lengths=(1, 2, 3, 4, 5, 6, 6),
    expert_rank=SIZES["R"],
)


def largest_array(function, *arguments) -> int:
    jaxpr = jax.make_jaxpr(function)(*arguments)
    return max(variable.aval.size for equation in equations(jaxpr) for variable in equation.outvars)


def test_no_array_of_expert_outputs_in_loss_and_gradient():
    model, params = PemtModel(WIDE, BANK), random_params(WIDE, BANK)
    batch = make_batch([9, 4, 7], [11, 3, 8], SIZES["S"], SIZES["T"])
    trainable, frozen = split(params, METHODS["pemt_target"])

    def loss(trainable):
        return model.loss_fn(merge(trainable, frozen), batch, jax.random.key(0))[0]

    shortest = min(SIZES["T"], SIZES["P"] + SIZES["S"])
    expert_outputs = SIZES["E"] * SIZES["B"] * shortest * SIZES["D"]
    assert largest_array(jax.value_and_grad(loss), trainable) < expert_outputs

    def naive(z_BLD, hidden_BLF, a_FER, b_ERD):  # what the limit would catch
        outputs_EBLD = jnp.einsum("blf,fer,erd->ebld", hidden_BLF, a_FER, b_ERD)
        return jnp.sum(outputs_EBLD * z_BLD[None])

    bank = params["decoder"]["layers_0"]["mlp"]["experts"]
    z_BLD, hidden_BLF = (np.zeros((SIZES["B"], shortest, SIZES[axis])) for axis in "DF")
    assert largest_array(naive, z_BLD, hidden_BLF, bank["lora_a"], bank["lora_b"]) >= expert_outputs


def weight_products(function, argument, shapes) -> list:
    """Shapes of the matrix products in a function that have the size of one of the weights."""
    sizes = {tuple(sorted(shape)) for shape in shapes}
    jaxpr = jax.make_jaxpr(function)(argument)
    return [
        variable.aval.shape
        for equation in equations(jaxpr)
        for variable in equation.outvars
        if equation.primitive.name == "dot_general" and tuple(sorted(variable.aval.shape)) in sizes
    ]


def test_no_gradient_of_a_frozen_matrix_is_computed():
    model, params = PemtModel(WIDE, BANK), random_params(WIDE, BANK)
    batch = make_batch([9, 4, 7], [11, 3, 8], SIZES["S"], SIZES["T"])
    trainable, frozen = split(params, METHODS["pemt_target"])

    def loss(some, others):
        return model.loss_fn(merge(some, others), batch, jax.random.key(0))[0]

    shapes = {value.shape for path, value in frozen.items() if path.endswith("kernel")}
    shapes -= {value.shape for value in trainable.values()}
    assert len(shapes) > 2
    assert not weight_products(jax.grad(lambda some: loss(some, frozen)), trainable, shapes)
    # What the search would find: the same gradients, asked for.
    assert weight_products(jax.grad(lambda others: loss(trainable, others)), frozen, shapes)
