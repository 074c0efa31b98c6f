"""Experts on any linear layers of a T5, against NumPy: outputs, gates, losses and gradients."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from tiny_model import T5, T5_1_1, TARGET, compiled, initial_shapes, make_batch, random_params

from pemt_jax.common.errors import UsageError
from pemt_jax.common.user_input.linears import ExpertLinears, linear_kind
from pemt_jax.config import PemtConfig
from pemt_jax.model.layers import relative_position_bucket
from pemt_jax.model.methods import METHODS, split
from pemt_jax.model.pemt_model import PemtModel, mean_gate

SETS = {
    "the published": ("wo",),
    "those of PEFT": ("q", "v"),
    "attention": ("q:1", "k:2", "v:3", "o:2"),
    "inputs": ("wi",),
    "cross attention": ("encoder_decoder_attention/k:3", "encoder/o"),
    "all": ("all", "wo:3", "decoder/mlp/wo:1"),
}
BATCH = make_batch([3, 6, 1, 0], [3, 5, 1, 0], S=6, T=5)  # the last row only fills the batch
ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "linear": lambda x: x,
}


def oracle(t5, pemt, p, batch):
    """(logits, loss, gates): T5 with a bank of experts, written out, in float64."""
    gates, losses, P, K = [], [], pemt.prompt_length, t5.head_dim
    tokens, targets = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
    rows = (targets > 0).any(1)
    softmax = lambda x: (e := np.exp(x - x.max(-1, keepdims=True))) / e.sum(-1, keepdims=True)  # noqa: E731
    norm = lambda x, at: p[f"{at}/scale"] * x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)  # noqa: E731
    length = lambda x: np.sqrt((x * x).sum(-1))  # noqa: E731

    def linear(at, name, x, gate):  # W x and what each expert adds: [B, L, E, out]
        y, bank = x @ p[f"{at}/{name}/kernel"], f"{at}/{name}_experts".replace("wo_", "")
        if f"{bank}/lora_a" not in p:
            return y, None
        e = np.einsum("blf,fer,erd->bled", x, p[f"{bank}/lora_a"], p[f"{bank}/lora_b"])
        return y + np.einsum("be,bled->bld", gate, e), e

    def gate_of(at, states):
        if f"{at}/gate/kernel" in p:
            gates.append(softmax(states[:, :P].mean(1) @ p[f"{at}/gate/kernel"]))
            return gates[-1]

    def count(z, e, gate, weights):
        if e is not None:
            norms = length(z)[..., None] * length(e)
            cosine = np.einsum("bld,bled->ble", z, e) / np.where(norms > 0, norms, 1)
            mean = np.einsum("ble,bl->e", cosine, weights) / weights.sum()
            losses.append((gate[rows].mean(0) * (1 - mean)).sum())

    def attention(at, x, memory, bias, states, weights):
        gate = gate_of(at, states)
        q, k, v = (
            linear(at, name, y, gate)[0].reshape(*y.shape[:2], -1, K)
            for name, y in (("query", x), ("key", memory), ("value", memory))
        )
        y = np.einsum("bhlm,bmhk->blhk", softmax(np.einsum("blhk,bmhk->bhlm", q, k) + bias), v)
        z, e = linear(at, "out", y.reshape(*x.shape[:2], -1), gate)
        count(z, e, gate, weights)
        return z

    def feed_forward(at, x, states, weights):
        on_wi = any(f"{at}/{wi}_experts/lora_a" in p for wi in t5.wi_names)
        gate = gate_of(at, x if states is None else states) if on_wi or states is not None else None
        wi = (linear(at, name, x, gate)[0] for name in t5.wi_names)
        u = np.prod([ACTIVATIONS[a](y) for a, y in zip(t5.mlp_activations, wi)], axis=0)  # noqa: B905
        gate = gate_of(at, u) if gate is None else gate
        z, e = linear(at, "wo", u, gate)
        down = z @ p[f"{at}/adapter/down/kernel"] + p[f"{at}/adapter/down/bias"]
        z = (
            z
            + ACTIVATIONS["gelu"](down) @ p[f"{at}/adapter/up/kernel"]
            + p[f"{at}/adapter/up/bias"]
        )
        count(z, e, gate, weights)
        return z

    def stack(name, layers, x, mask, weights, encoded=None, memory_mask=None):
        distance = np.arange(x.shape[1])[None] - np.arange(x.shape[1])[:, None]
        bucket = relative_position_bucket(distance, encoded is None, 32, 128)
        bias = p[f"{name}/relpos_bias/rel_embedding"][:, bucket] + np.where(mask, 0, -1e10)
        own = "" if encoded is None else "self_"
        for at in (f"{name}/layers_{i}" for i in range(layers)):
            y = norm(x, f"{at}/pre_{own}attention_layer_norm")
            states = y if encoded is None else encoded
            x = x + attention(f"{at}/{own}attention", y, y, bias, states, weights)
            if encoded is not None:
                y = norm(x, f"{at}/pre_cross_attention_layer_norm")
                cross = f"{at}/encoder_decoder_attention"
                x = x + attention(
                    cross, y, encoded, np.where(memory_mask, 0, -1e10), encoded, weights
                )
            x = x + feed_forward(f"{at}/mlp", norm(x, f"{at}/pre_mlp_layer_norm"), encoded, weights)
        return norm(x, f"{name}/{name}_norm")

    table, prompt, sources = (
        p[f"{x}/embedding"] for x in ("token_embedder", "prompt", "source_prompts")
    )
    for source, size in zip(sources, pemt.source_prompt_lengths, strict=True):
        prompt = prompt + softmax(p["prompt/embedding"] @ source[:size].T) @ source[:size]
    x = np.concatenate([np.broadcast_to(prompt, (len(tokens), *prompt.shape)), table[tokens]], 1)
    there = np.concatenate([np.ones((len(tokens), P), bool), tokens > 0], 1)
    mask = there[:, None, None, :]
    x = stack("encoder", t5.num_encoder_layers, x, mask, there * rows[:, None])
    causal = np.tril(np.ones((targets.shape[1],) * 2, bool)) & (targets > 0)[:, None, None, :]
    y = table[batch["decoder_input_tokens"]]
    y = stack("decoder", t5.num_decoder_layers, y, causal, (targets > 0) * 1.0, x, mask)
    tied = t5.logits_via_embedding
    logits = y @ (table.T / np.sqrt(t5.emb_dim) if tied else p["decoder/logits_dense/kernel"])
    logs = np.take_along_axis(np.log(softmax(logits)), targets[..., None], -1)[..., 0]
    loss = -(logs * (targets > 0)).sum() / (targets > 0).sum()
    return logits, loss + pemt.tsl_weight * (np.mean(losses) if losses else 0), gates


QUICK = {("those of PEFT", "1.0"), ("all", "1.1")}


@pytest.mark.parametrize(
    "linears, t5",
    [
        pytest.param(
            linears,
            t5,
            id=f"{name}-{version}",
            marks=() if (name, version) in QUICK else pytest.mark.slow,
        )
        for name, linears in SETS.items()
        for version, t5 in (("1.0", T5), ("1.1", T5_1_1))
    ],
)
def test_bank_equals_numpy_with_its_gradients(linears, t5):
    pemt = dataclasses.replace(TARGET, expert_linears=linears)
    params = random_params(t5, pemt)
    flat = {k: v.astype(np.float64) for k, v in flatten_dict(params, sep="/").items()}
    logits, loss, gates = oracle(t5, pemt, flat, BATCH)
    ours, collected = compiled(t5, pemt, "apply")(params, BATCH, None)
    real = BATCH["decoder_target_tokens"] > 0
    np.testing.assert_allclose(ours[real], logits[real], rtol=1e-4, atol=1e-4)
    assert len([path for path in collected if path.endswith("/gate")]) == len(gates)
    np.testing.assert_allclose(mean_gate(collected)[:3], np.mean(gates, 0)[:3], atol=1e-5)
    (our_loss, _), gradients = compiled(t5, pemt, "gradients")(params, BATCH)
    np.testing.assert_allclose(our_loss, loss, rtol=1e-5)
    gradients, random = flatten_dict(gradients, sep="/"), np.random.default_rng(1)
    trained, _ = split(params, METHODS["pemt_target"])
    for path in trained:  # the derivative along one direction, by central differences
        direction = random.normal(size=flat[path].shape)
        above, below = (
            oracle(t5, pemt, flat | {path: flat[path] + step * direction}, BATCH)[1]
            for step in (1e-5, -1e-5)
        )
        slope = (above - below) / 2e-5
        np.testing.assert_allclose(
            np.sum(gradients[path] * direction), slope, rtol=2e-3, atol=2e-5, err_msg=path
        )


@pytest.mark.parametrize("linears", [("q", "v"), ("all",)], ids=["q,v", "all"])
def test_one_expert_of_a_bank_is_the_source_expert(linears):
    stage_1 = PemtConfig(prompt_length=4, source_expert=True, expert_linears=linears, expert_rank=2)
    stage_2 = dataclasses.replace(
        stage_1, source_expert=False, expert_names=("only",), source_prompt_lengths=(4,)
    )
    ours = flatten_dict(random_params(T5_1_1, stage_1), sep="/")
    bank = {}
    for path, value in ours.items():
        axis = {"lora_a": 1, "lora_b": 0}.get(path.rpartition("/")[2])
        path = path.replace("expert/", "experts/")
        bank[path] = value if axis is None else np.expand_dims(value, axis)
    for path, like in flatten_dict(initial_shapes(T5_1_1, stage_2)["params"], sep="/").items():
        bank.setdefault(path, np.zeros(like.shape, np.float32))
    first, _ = compiled(T5_1_1, stage_1, "apply")(unflatten_dict(ours, sep="/"), BATCH, None)
    second, _ = compiled(T5_1_1, stage_2, "apply")(unflatten_dict(bank, sep="/"), BATCH, None)
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5)


def test_what_an_expert_lacks_is_zero_with_cosine_and_gradient_zero():
    """The second of two experts has nothing beside `out`, the first nothing beside `query`."""
    pemt = dataclasses.replace(TARGET, expert_linears=("q", "o"))
    flat = flatten_dict(random_params(T5, pemt), sep="/")
    for path, value in flat.items():
        if "query_experts/lora_b" in path:
            value[0] = 0
        if "out_experts/lora_b" in path:
            value[1] = 0
    params = unflatten_dict(flat, sep="/")
    (loss, _), gradients = compiled(T5, pemt, "gradients")(params, BATCH)
    expected = oracle(T5, pemt, {k: v.astype(np.float64) for k, v in flat.items()}, BATCH)[1]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for path, gradient in flatten_dict(gradients, sep="/").items():
        assert np.isfinite(gradient).all(), path
        if "out_experts/lora_a" in path:
            assert not np.any(gradient[:, 1]) and np.any(gradient[:, 0])


@pytest.mark.parametrize(
    "linears",
    [pytest.param(("q", "v"), id="q,v", marks=pytest.mark.slow), pytest.param(("all",), id="all")],
)
def test_decoding_with_the_cache_has_the_scores_of_the_whole_target(linears):
    pemt = dataclasses.replace(TARGET, expert_linears=linears)
    model, params = PemtModel(T5_1_1, pemt), random_params(T5_1_1, pemt, seed=3)
    batch = {name: array[:3] for name, array in BATCH.items()}
    tokens, aux = jax.jit(model.predict_batch_with_aux)(params, batch)
    ends = np.where((tokens == 1).any(1), (tokens == 1).argmax(1), tokens.shape[1])
    assert all((row[:end] > 1).all() for row, end in zip(tokens, ends, strict=True)), "other seed"
    scored = batch | {
        "decoder_target_tokens": tokens,
        "decoder_input_tokens": np.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
        "decoder_loss_weights": (tokens > 0).astype(np.int32),
    }
    np.testing.assert_allclose(
        aux["scores"], jax.jit(model.score_batch)(params, scored), rtol=1e-4, atol=1e-4
    )


def test_words_name_linear_layers():
    kinds = sorted({linear_kind(linear) for linear in T5_1_1.linears()})

    def named(word):
        return [kind for kind in kinds if ExpertLinears.read(word).include(kind)]

    assert named("wo") == ["decoder/mlp/wo", "encoder/mlp/wo"]
    assert named("encoder/q:4") == ["encoder/attention/query"]
    assert named("wi") == [f"{s}/mlp/wi_{i}" for s in ("decoder", "encoder") for i in (0, 1)]
    assert len(named("all")) == len(kinds) == 18 and len(named("mlp/all")) == 6
    pemt = PemtConfig(expert_linears=("all", "v:3"), expert_rank=2)
    assert (pemt.rank_of("encoder/mlp/wo"), pemt.rank_of("encoder/attention/value")) == (2, 3)
    assert PemtConfig().rank_of("encoder/attention/query") == 0


@pytest.mark.parametrize(
    "word, sentence",
    [
        ("qq", "has 'qq', expected one of .*nearest: '"),
        ("crossattention/q", "'crossattention', expected a stack or a sublayer"),
        ("q:0", "'q:0', expected NAME:RANK"),
        ("q:many", "'q:many', expected NAME:RANK"),
    ],
)
def test_a_word_that_names_no_layer_is_refused(word, sentence):
    with pytest.raises(UsageError, match=sentence):
        PemtConfig(expert_linears=(word,))
