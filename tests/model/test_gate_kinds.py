"""Gates that are ablations of PEMT, or of other papers, against NumPy and closed forms."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_model import T5, TARGET, compiled, initial_shapes, jit, make_batch, random_params

from pemt_jax.common.errors import UsageError
from pemt_jax.config import PemtConfig
from pemt_jax.library.prototypes import prototypes
from pemt_jax.model.feed_forward import FeedForward
from pemt_jax.model.gate import top_k_softmax, trained_gate
from pemt_jax.model.pemt_model import PemtModel

P = TARGET.prompt_length
ALONE = dataclasses.replace(TARGET, adapter_dim=0, gate_temperature=0.7)


def softmax(logits, temperature=1.0, top_k=0):
    """Over the k largest, by sorting."""
    logits = np.asarray(logits, np.float64)
    if top_k:
        kth = np.sort(logits, axis=-1)[..., -top_k, None]
        logits = np.where(logits >= kth, logits, -np.inf)
    weights = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("top_k", [0, 1, 2, 4, 9])
def test_the_k_largest_weights_are_kept_and_normalised(top_k):
    logits = np.random.default_rng(top_k).normal(size=(3, 2, 4)).astype(np.float32)
    gate = top_k_softmax(logits, 0.5, top_k)
    np.testing.assert_allclose(gate, softmax(logits, 0.5, min(top_k, 4)), rtol=1e-5)
    assert np.all((np.asarray(gate) > 0).sum(axis=-1) == (top_k if 0 < top_k < 4 else 4))


def test_a_hard_gate_has_one_expert_and_the_gradient_of_the_soft_one():
    logits = np.array([[0.3, 0.1, -1.0]], np.float32)
    np.testing.assert_allclose(trained_gate(logits, 1.0, 1), [[1, 0, 0]], atol=1e-7)
    loss = lambda x, k: (trained_gate(x, 1.0, k) * np.array([1.0, 2.0, 4.0])[None]).sum()  # noqa: E731
    hard, soft = jax.grad(loss)(logits, 1), jax.grad(loss)(logits, 0)
    np.testing.assert_array_equal(hard, soft)
    assert np.all(np.abs(hard) > 1e-3)


KINDS = [("constant", 0), ("uniform", 0), ("token", 0), ("token", 1), ("arrow", 0), ("arrow", 1)]


@pytest.mark.parametrize(("kind", "top_k"), KINDS)
def test_a_sublayer_equals_numpy(kind, top_k):
    pemt = dataclasses.replace(ALONE, gate=kind, gate_top_k=top_k)
    random = np.random.default_rng(1)
    x_BLD = random.normal(size=(2, 7, T5.emb_dim)).astype(np.float32)
    params = random_params(T5, pemt, seed=2)["encoder"]["layers_0"]["mlp"]
    counted = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]], np.float32)
    module = FeedForward(T5, pemt, in_encoder=True)
    z_BLD, collected = jit(
        lambda x: module.apply(
            {"params": params}, x, None, counted, deterministic=True, mutable=["pemt"]
        )
    )(x_BLD)

    hidden = np.maximum(x_BLD.astype(np.float64) @ params["wi"]["kernel"], 0)
    a_FER, b_ERD = params["experts"]["lora_a"], params["experts"]["lora_b"]
    if kind == "uniform":
        gate_BLE = np.full((2, 7, 2), 0.5)
    elif kind == "constant":
        logits_E = params["gate"]["logits"]
        gate_BLE = np.broadcast_to(softmax(logits_E, 0.7), (2, 7, 2))
    elif kind == "token":
        gate_BLE = softmax(hidden @ params["gate"]["kernel"], 0.7, top_k)
    else:
        gate_BLE = softmax(np.abs(hidden @ params["gate"]["prototypes"]), 0.7, top_k)
    outputs_BLED = np.einsum("blf,fer,erd->bled", hidden, a_FER, b_ERD)
    expected = hidden @ params["wo"]["kernel"] + np.einsum("ble,bled->bld", gate_BLE, outputs_BLED)
    np.testing.assert_allclose(z_BLD, expected, rtol=2e-4, atol=1e-5)

    # What is reported, and enters the sparsity loss, is the mean over the tokens that count.
    mean_BE = (gate_BLE * counted[..., None]).sum(axis=1) / counted.sum(axis=1)[:, None]
    np.testing.assert_allclose(collected["pemt"]["gate"], mean_BE, rtol=2e-4, atol=1e-6)
    norms = np.linalg.norm(expected, axis=-1)[..., None] * np.linalg.norm(outputs_BLED, axis=-1)
    products = np.einsum("bld,bled->ble", expected, outputs_BLED)
    cosines = np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0)
    cosine_E = np.einsum("ble,bl->e", cosines, counted) / counted.sum()
    tsl = (mean_BE.mean(axis=0) * (1 - cosine_E)).sum()
    np.testing.assert_allclose(collected["pemt"]["tsl"], tsl, rtol=1e-4)


def test_a_uniform_mixture_is_one_expert_of_concatenated_factors():
    """Closed form: sum_i A_i B_i / E is one pair of rank E R."""
    uniform = dataclasses.replace(ALONE, gate="uniform", prompt_mixing="own")
    one = PemtConfig(prompt_length=P, source_expert=True, expert_rank=2 * ALONE.expert_rank)
    params, batch = random_params(T5, uniform), make_batch([3, 6], [4, 5], 6, 5)
    merged = jax.tree.map(lambda x: x, params)
    del merged["source_prompts"]
    for stack in ("encoder", "decoder"):
        mlp = merged[stack]["layers_0"]["mlp"]
        bank = mlp.pop("experts")
        a_FER, b_ERD = bank["lora_a"], bank["lora_b"]
        mlp["expert"] = {
            "lora_a": a_FER.reshape(len(a_FER), -1) / 2,
            "lora_b": b_ERD.reshape(-1, b_ERD.shape[-1]),
        }
    found, _ = compiled(T5, uniform, "apply")(params, batch, None)
    expected, _ = compiled(T5, one, "apply")(merged, batch, None)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_shared_gate_is_one_matrix_in_every_layer_of_a_stack():
    """With experts on wi too, a gate of one's own reads the same states as the shared one."""
    t5 = dataclasses.replace(T5, num_encoder_layers=2)
    own = dataclasses.replace(ALONE, expert_linears=("wi", "wo"))
    shared = dataclasses.replace(own, gate="shared")
    params, batch = random_params(t5, shared), make_batch([3, 6], [4, 5], 6, 5)
    copied = jax.tree.map(lambda x: x, params)
    for stack, layers in (("encoder", 2), ("decoder", 1)):
        kernel = copied[stack].pop("gate")["kernel"]
        assert kernel.shape == (t5.emb_dim, 2)
        for i in range(layers):
            copied[stack][f"layers_{i}"]["mlp"]["gate"] = {"kernel": kernel}
    found, gates = compiled(t5, shared, "apply")(params, batch, None)
    expected, expected_gates = compiled(t5, own, "apply")(copied, batch, None)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert gates.keys() == expected_gates.keys()
    first, second = (gates[f"encoder/layers_{i}/mlp/gate"] for i in range(2))
    assert np.abs(first - second).max() > 1e-4  # one matrix, but states of two layers


def test_without_a_gate_the_layers_have_no_experts():
    none = dataclasses.replace(TARGET, gate="none")
    assert none.num_experts == 0
    params = initial_shapes(T5, none)["params"]
    assert "source_prompts" in params
    assert params["encoder"]["layers_0"]["mlp"].keys() == {"wi", "wo", "adapter"}


@pytest.mark.parametrize("linear", ["", "query_"])
def test_a_prototype_is_the_first_singular_vector_of_the_product(linear):
    random = np.random.default_rng(3)
    a_XER, b_ERD = random.normal(size=(9, 3, 2)), random.normal(size=(3, 2, 5))
    b_ERD[2] = 0
    bank = {f"x/{linear}experts/lora_a": a_XER, f"x/{linear}experts/lora_b": b_ERD}
    found = prototypes({**bank, "prompt/embedding": a_XER})
    assert found.keys() == {f"x/{linear}gate/prototypes"}
    found_XE = found[f"x/{linear}gate/prototypes"]
    for i in range(2):
        u, _, _ = np.linalg.svd(a_XER[:, i] @ b_ERD[i])
        np.testing.assert_allclose(abs(found_XE[:, i] @ u[:, 0]), 1, rtol=1e-6)
    assert not found_XE[:, 2].any()


@pytest.mark.parametrize("kind", ["token", "shared"])
def test_the_decoding_cache_gives_the_likelihoods_of_the_whole_sequence(kind):
    pemt = dataclasses.replace(TARGET, gate=kind)
    model, params = PemtModel(T5, pemt), random_params(T5, pemt)
    params["token_embedder"]["embedding"][0] = 0  # padding is never the best token
    batch = make_batch([3, 6], [4, 5], 6, 5)
    tokens, aux = jit(model.predict_batch_with_aux)(params, batch)
    tokens = np.asarray(tokens)
    batch |= {
        "decoder_target_tokens": tokens,
        "decoder_input_tokens": np.pad(tokens[:, :-1], ((0, 0), (1, 0))),
        "decoder_loss_weights": (tokens > 0).astype(np.int32),
    }
    np.testing.assert_allclose(aux["scores"], jit(model.score_batch)(params, batch), rtol=1e-4)
    np.testing.assert_allclose(aux["gate"].sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("gate", "tokens", "'token'"),
        ("prompt_mixing", "mix", "'mixed'"),
        ("vectors", "ia33", "'ia3'"),
        ("gate_top_k", -1, "0 or more"),
    ],
)
def test_a_wrong_choice_is_one_sentence(field, value, expected):
    with pytest.raises(UsageError, match=f"PemtConfig.{field} is .*{expected}"):
        PemtConfig(**{field: value})
