"""The correlation gate: weights of the experts, computed from the prompt positions only."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import T5, TARGET, compiled, jit, make_batch, random_params

from pemt_jax.model.gate import GateKernel, correlation_gate
from pemt_jax.model.network import Transformer
from pemt_jax.model.pemt_model import PemtModel, mean_gate

P = TARGET.prompt_length
ENCODER, DECODER = "encoder/layers_0/mlp/gate", "decoder/layers_0/mlp/gate"


jitted_gate = jit(correlation_gate)


def numpy_gate(states_BPX, kernel_XE, temperature):
    scores = states_BPX.astype(np.float64).mean(axis=1) @ kernel_XE / temperature
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@settings(max_examples=12, deadline=None)
@given(
    B=st.sampled_from([1, 3]),
    E=st.sampled_from([1, 4]),
    seed=st.integers(0, 999),
    size=st.sampled_from([0.1, 1.0, 30.0]),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
)
def test_gate_equals_numpy_and_its_rows_sum_to_one(B, E, seed, size, temperature):
    random = np.random.default_rng(seed)
    states_BPX = random.normal(size=(B, 2, 6), scale=size).astype(np.float32)
    kernel_XE = random.normal(size=(6, E)).astype(np.float32)
    gate_BE = np.asarray(jitted_gate(states_BPX, kernel_XE, temperature))
    assert gate_BE.dtype == np.float32 and np.all(gate_BE >= 0)
    np.testing.assert_allclose(gate_BE.sum(axis=-1), 1, rtol=1e-6)
    # Scores of size 30 are rounded to 1e-5, and a weight by as much of itself.
    np.testing.assert_allclose(
        gate_BE, numpy_gate(states_BPX, kernel_XE, temperature), rtol=3e-4, atol=1e-7
    )


def test_a_new_gate_gives_every_expert_the_same():
    kernel_XE = GateKernel(5, "mlp").init_with_output(jax.random.key(0), 6)[0]
    gate_BE = correlation_gate(np.ones((2, 3, 6), np.float32), kernel_XE)
    assert not np.any(kernel_XE)
    np.testing.assert_allclose(gate_BE, 1 / 5, rtol=1e-6)


def test_bfloat16_states_give_a_float32_gate():
    states = np.random.default_rng(0).normal(size=(2, 300, 6)).astype("bfloat16")
    kernel = np.ones((6, 2), np.float32) * [[1, -1]]
    gate_BE = jitted_gate(states, kernel.astype(np.float32))
    assert gate_BE.dtype == np.float32
    np.testing.assert_allclose(gate_BE, numpy_gate(states, kernel, 1), rtol=1e-5)


def test_gates_of_a_model_are_rows_that_sum_to_one_and_differ_by_example():
    _, collected = compiled(T5, TARGET, "apply")(
        random_params(T5, TARGET), make_batch([3, 6, 1, 5], [4, 5, 1, 2], 6, 5), None
    )
    assert {ENCODER, DECODER} <= collected.keys()
    for path in (ENCODER, DECODER):
        np.testing.assert_allclose(collected[path].sum(axis=-1), 1, rtol=1e-6)
        assert np.ptp(collected[path][:, 0]) > 1e-4
    np.testing.assert_allclose(mean_gate(collected), (collected[ENCODER] + collected[DECODER]) / 2)


def test_decoder_gate_reads_the_encoder_output_at_the_prompt_only():
    module, params = PemtModel(T5, TARGET).module, random_params(T5, TARGET)
    batch = make_batch([3, 6], [4, 5], 6, 5)

    @jax.jit
    def gate_for(encoded_BMD, targets_BT):
        _, variables = module.apply(
            {"params": params},
            encoded_BMD,
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            targets_BT,
            np.ones(2, np.float32),
            method=Transformer.decode,
            mutable=["pemt"],
        )
        return variables["pemt"]["decoder"]["layers_0"]["mlp"]["gate"]

    encoded = np.random.default_rng(0).normal(size=(2, P + 6, T5.emb_dim)).astype(np.float32)
    targets = batch["decoder_target_tokens"]
    gate_BE = gate_for(encoded, targets)
    kernel = params["decoder"]["layers_0"]["mlp"]["gate"]["kernel"]
    np.testing.assert_allclose(gate_BE, numpy_gate(encoded[:, :P], kernel, 1), rtol=1e-5)
    text, prompt = encoded.copy(), encoded.copy()
    text[:, P:] += 1
    prompt[:, P - 1] += 1
    np.testing.assert_array_equal(gate_for(text, np.roll(targets, 1, axis=1)), gate_BE)
    assert np.abs(gate_for(prompt, targets) - gate_BE).min() > 1e-4
