"""What each method trains, by name and by number."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny_model import SOURCE, T5, TARGET, initial_shapes, random_params

from pemt_jax.common.errors import UsageError
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.model.methods import METHODS, get_method, merge, split

PROMPT = {"prompt/embedding"}
NORMS = {
    "encoder/layers_0/pre_attention_layer_norm/scale",
    "encoder/layers_0/pre_mlp_layer_norm/scale",
    "encoder/encoder_norm/scale",
    "decoder/layers_0/pre_self_attention_layer_norm/scale",
    "decoder/layers_0/pre_cross_attention_layer_norm/scale",
    "decoder/layers_0/pre_mlp_layer_norm/scale",
    "decoder/decoder_norm/scale",
}
STACKS = ("encoder/layers_0/mlp", "decoder/layers_0/mlp")
EXPERT = {f"{stack}/expert/{name}" for stack in STACKS for name in ("lora_a", "lora_b")}
GATE = {f"{stack}/gate/kernel" for stack in STACKS}
ADAPTER = {
    f"{stack}/adapter/{name}"
    for stack in STACKS
    for name in ("down/kernel", "down/bias", "up/kernel", "up/bias")
}
ATTENTIONS = (
    "encoder/layers_0/attention",
    "decoder/layers_0/self_attention",
    "decoder/layers_0/encoder_decoder_attention",
)
SUBLAYERS = (*STACKS, *ATTENTIONS)
DECODER = {
    "decoder/relpos_bias/rel_embedding",
    *(norm for norm in NORMS if norm.startswith("decoder/")),
    *(f"decoder/layers_0/mlp/{name}/kernel" for name in ("wi", "wo")),
    *(
        f"{attention}/{name}/kernel"
        for attention in ATTENTIONS[1:]
        for name in ("query", "key", "value", "out")
    ),
}
ATTENTION = ("down/kernel", "up/kernel", "scale", "bias")
PROMPT_ONLY = PemtConfig(prompt_length=4)
ADAPTER_ONLY = PemtConfig(prompt_length=4, adapter_dim=3)
CASES = {
    "pemt_source": (SOURCE, EXPERT | PROMPT),
    "lora": (SOURCE, EXPERT | PROMPT),
    "pemt_target": (TARGET, GATE | ADAPTER | PROMPT | NORMS),
    "adapter": (ADAPTER_ONLY, ADAPTER | PROMPT | NORMS),
    "mixture": (dataclasses.replace(TARGET, adapter_dim=0), GATE | PROMPT | NORMS),
    "prompt_tuning": (PROMPT_ONLY, PROMPT),
    "attempt": (
        dataclasses.replace(TARGET, adapter_dim=0, gate="none", prompt_mixing="attention"),
        PROMPT | {f"source_prompts/attention/{name}" for name in ATTENTION},
    ),
    "mpt": (
        dataclasses.replace(PROMPT_ONLY, prompt_mixing="product"),
        PROMPT | {"prompt/rows", "prompt/columns"},
    ),
    "bitfit": (PemtConfig(vectors="bias"), {f"{name}/bias/vector" for name in SUBLAYERS}),
    "ia3": (
        PemtConfig(vectors="ia3"),
        {f"{name}/scale/vector" for name in STACKS}
        | {f"{name}/{kv}_scale/vector" for name in ATTENTIONS for kv in ("key", "value")},
    ),
    "norms": (PemtConfig(), NORMS),
    "decoder": (PemtConfig(), DECODER),
}
OTHER_GATES = {
    "constant": {f"{stack}/gate/logits" for stack in STACKS},
    "uniform": set(),
    "shared": {f"{stack}/gate/kernel" for stack in ("encoder", "decoder")},
    "token": GATE,
    "arrow": set(),
    "none": set(),
}


@pytest.mark.parametrize("name", CASES)
def test_trainable_parameters_by_name(name):
    pemt, expected = CASES[name]
    params = initial_shapes(T5, pemt)["params"]
    trainable, frozen = split(params, get_method(name))
    assert set(trainable) == expected
    assert set(frozen) == set(flatten_dict(params, sep="/")) - expected


@pytest.mark.parametrize("gate", OTHER_GATES)
def test_what_other_gates_train(gate):
    params = initial_shapes(T5, dataclasses.replace(TARGET, gate=gate))["params"]
    trainable, _ = split(params, METHODS["pemt_target"])
    assert set(trainable) == OTHER_GATES[gate] | ADAPTER | PROMPT | NORMS


def test_full_trains_everything():
    params = initial_shapes(T5, PemtConfig())["params"]
    trainable, frozen = split(params, get_method("full"))
    assert not frozen and set(trainable) == set(flatten_dict(params, sep="/"))


def test_bank_and_source_prompts_are_frozen_in_stage_2():
    _, frozen = split(initial_shapes(T5, TARGET)["params"], METHODS["pemt_target"])
    assert {
        "source_prompts/embedding",
        *(f"{stack}/experts/lora_{ab}" for stack in STACKS for ab in "ab"),
    } <= set(frozen)


@pytest.mark.parametrize("name", METHODS)
def test_merge_undoes_split(name):
    pemt = CASES.get(name, (PemtConfig(), None))[0]
    params = random_params(T5, pemt)
    back = merge(*split(params, METHODS[name]))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_every_method_is_called_by_its_name_and_says_what_it_does():
    for name, method in METHODS.items():
        assert get_method(name) is method and method.name == name and method.summary


def test_unknown_method_is_one_sentence_with_the_nearest_name():
    with pytest.raises(UsageError) as error:
        get_method("pemt_targt")
    message = str(error.value)
    assert message.startswith("There is no method 'pemt_targt', expected one of full,")
    assert message.endswith("(nearest: 'pemt_target').")


M = 30  # tokens of the task's prompt
BASE = T5Config(vocab_size=32100)
SIX = PemtConfig(
    prompt_length=M,
    expert_names=tuple("abcdef"),
    adapter_dim=48,
    source_prompt_lengths=(28, 31, 30, 20, 25, 40),
)


def count(flat, *parts):
    return sum(
        int(np.prod(like.shape))
        for path, like in flat.items()
        if all(part in path for part in parts)
    )


def test_parameters_of_stage_1_on_t5_base():
    stage_1 = PemtConfig(prompt_length=M, source_expert=True)
    trainable, frozen = split(initial_shapes(BASE, stage_1)["params"], METHODS["pemt_source"])
    assert count(trainable) == 5_898_240 + 768 * M
    assert count(frozen) == 222_882_048


def test_parameters_of_stage_2_on_t5_base_with_six_experts():
    trainable, frozen = split(initial_shapes(BASE, SIX)["params"], METHODS["pemt_target"])
    assert count(trainable) == 2_113_152 + 768 * M
    assert count(trainable, "norm/scale") == 47_616
    assert count(trainable, "/gate/") == 276_480
    assert count(trainable, "/adapter/") == 1_789_056
    assert count(frozen, "/experts/") == 35_389_440
    padded = 6 * 40 * 768  # the bank of prompts is padded to its longest
    assert count(frozen, "source_prompts") == padded
    assert count(frozen) - padded - 35_389_440 == 222_882_048 - 47_616


D, F, LAYERS = 768, 3072, 24
FORMULAS = {  # of configs/methods/README.md
    "prompt_tuning": M * D,
    "mpt": M * D + M + D,
    "attempt": M * D + 2 * 100 * D + 2 * D,
    "bitfit": 60 * D,  # 24 feed-forward and 36 attention sublayers
    "ia3": 24 * F + 36 * 2 * D,
    "norms": 62 * D,
    "mixture": 276_480 + 47_616 + M * D,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_parameters_of_other_methods_on_t5_base(name):
    method = METHODS[name]
    modules = method.modules(PemtConfig(), BASE.emb_dim, M)
    sources = SIX if method.experts else PemtConfig()
    pemt = dataclasses.replace(sources, **modules)
    trainable, _ = split(initial_shapes(BASE, pemt)["params"], method)
    assert count(trainable) == FORMULAS[name]


@pytest.mark.parametrize(
    ("gate", "expected"),
    [("constant", LAYERS * 6), ("shared", 2 * D * 6), ("token", LAYERS * F * 6), ("uniform", 0)],
)
def test_parameters_of_other_gates_on_t5_base(gate, expected):
    params = initial_shapes(BASE, dataclasses.replace(SIX, gate=gate))["params"]
    trainable, _ = split(params, METHODS["pemt_target"])
    assert count(trainable, "gate/") == expected


def test_a_choice_that_is_another_methods_is_refused():
    with pytest.raises(UsageError, match="PemtConfig.vectors is 'ia3', expected 'none'.*'lora'"):
        METHODS["lora"].modules(PemtConfig(vectors="ia3"), 8, 4)
    with pytest.raises(UsageError, match="PemtConfig.gate is 'token', expected 'none'.*'attempt'"):
        METHODS["attempt"].modules(PemtConfig(gate="token"), 8, 4)
