"""Parameter names, shapes and logical axes; masks."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny_model import (
    REFERENCE,
    SOURCE,
    T5,
    TARGET,
    compiled,
    initial_shapes,
    jit,
    make_batch,
    random_params,
)

from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.model.pemt_model import PemtModel

V, D, H, K, F = 128, 32, 4, 6, 64
ONE_LAYER = T5Config(
    vocab_size=V,
    emb_dim=D,
    num_heads=H,
    head_dim=K,
    mlp_dim=F,
    num_encoder_layers=1,
    num_decoder_layers=1,
)

# What T5X creates for one layer per stack (`t5x/examples/t5/network.py`), T5 1.0 and 1.1 alike.
INTO, OUT_OF = ((D, H * K), ("embed", "joined_kv")), ((H * K, D), ("joined_kv", "embed"))
NORM = ((D,), ("embed",))
WI, WO = ((D, F), ("embed", "mlp")), ((F, D), ("mlp", "embed"))
RELPOS = ((H, 32), ("heads", "relpos_buckets"))
T5_PARAMETERS = {
    "decoder/decoder_norm/scale": NORM,
    "decoder/layers_0/encoder_decoder_attention/key/kernel": INTO,
    "decoder/layers_0/encoder_decoder_attention/out/kernel": OUT_OF,
    "decoder/layers_0/encoder_decoder_attention/query/kernel": INTO,
    "decoder/layers_0/encoder_decoder_attention/value/kernel": INTO,
    "decoder/layers_0/mlp/wo/kernel": WO,
    "decoder/layers_0/pre_cross_attention_layer_norm/scale": NORM,
    "decoder/layers_0/pre_mlp_layer_norm/scale": NORM,
    "decoder/layers_0/pre_self_attention_layer_norm/scale": NORM,
    "decoder/layers_0/self_attention/key/kernel": INTO,
    "decoder/layers_0/self_attention/out/kernel": OUT_OF,
    "decoder/layers_0/self_attention/query/kernel": INTO,
    "decoder/layers_0/self_attention/value/kernel": INTO,
    "decoder/relpos_bias/rel_embedding": RELPOS,
    "encoder/encoder_norm/scale": NORM,
    "encoder/layers_0/attention/key/kernel": INTO,
    "encoder/layers_0/attention/out/kernel": OUT_OF,
    "encoder/layers_0/attention/query/kernel": INTO,
    "encoder/layers_0/attention/value/kernel": INTO,
    "encoder/layers_0/mlp/wo/kernel": WO,
    "encoder/layers_0/pre_attention_layer_norm/scale": NORM,
    "encoder/layers_0/pre_mlp_layer_norm/scale": NORM,
    "encoder/relpos_bias/rel_embedding": RELPOS,
    "token_embedder/embedding": ((V, D), ("vocab", "embed")),
}
ONLY_1_0 = {"decoder/layers_0/mlp/wi/kernel": WI, "encoder/layers_0/mlp/wi/kernel": WI}
ONLY_1_1 = {
    "decoder/layers_0/mlp/wi_0/kernel": WI,
    "decoder/layers_0/mlp/wi_1/kernel": WI,
    "encoder/layers_0/mlp/wi_0/kernel": WI,
    "encoder/layers_0/mlp/wi_1/kernel": WI,
    "decoder/logits_dense/kernel": ((D, V), ("embed", "vocab")),
}

# What PEMT adds: a prompt of 9, experts of rank 5 with prompts of 7, 3 and 8, an adapter of 2.
PROMPT = {"prompt/embedding": ((9, D), ("prompt", "embed"))}
SOURCE_PARAMETERS = PROMPT | {
    "encoder/layers_0/mlp/expert/lora_a": ((F, 5), ("mlp", "expert_rank")),
    "encoder/layers_0/mlp/expert/lora_b": ((5, D), ("expert_rank", "embed")),
    "decoder/layers_0/mlp/expert/lora_a": ((F, 5), ("mlp", "expert_rank")),
    "decoder/layers_0/mlp/expert/lora_b": ((5, D), ("expert_rank", "embed")),
}
ADAPTER_PARAMETERS = PROMPT | {
    f"{stack}/layers_0/mlp/adapter/{name}": shape_and_axes
    for stack in ("encoder", "decoder")
    for name, shape_and_axes in {
        "down/kernel": ((D, 2), ("embed", "adapter")),
        "down/bias": ((2,), ("adapter",)),
        "up/kernel": ((2, D), ("adapter", "embed")),
        "up/bias": ((D,), ("embed",)),
    }.items()
}
TARGET_PARAMETERS = ADAPTER_PARAMETERS | {
    "source_prompts/embedding": ((3, 8, D), ("experts", "prompt", "embed")),
    "encoder/layers_0/mlp/gate/kernel": ((F, 3), ("mlp", "gate")),
    "decoder/layers_0/mlp/gate/kernel": ((D, 3), ("embed", "gate")),
    "encoder/layers_0/mlp/experts/lora_a": ((F, 3, 5), ("mlp", "experts", "expert_rank")),
    "encoder/layers_0/mlp/experts/lora_b": ((3, 5, D), ("experts", "expert_rank", "embed")),
    "decoder/layers_0/mlp/experts/lora_a": ((F, 3, 5), ("mlp", "experts", "expert_rank")),
    "decoder/layers_0/mlp/experts/lora_b": ((3, 5, D), ("experts", "expert_rank", "embed")),
}
ADDITIONS = {
    "nothing": (PemtConfig(), {}),
    "source": (PemtConfig(prompt_length=9, source_expert=True, expert_rank=5), SOURCE_PARAMETERS),
    "adapter": (PemtConfig(prompt_length=9, adapter_dim=2), ADAPTER_PARAMETERS),
    "target": (
        PemtConfig(
            prompt_length=9,
            expert_names=("a", "b", "c"),
            expert_rank=5,
            source_prompt_lengths=(7, 3, 8),
            adapter_dim=2,
        ),
        TARGET_PARAMETERS,
    ),
}


@pytest.mark.parametrize("addition", ADDITIONS)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_parameters_have_t5x_names_shapes_and_axes(version, addition):
    pemt, added = ADDITIONS[addition]
    t5, only = ONE_LAYER, ONLY_1_0
    if version == "1.1":
        only = ONLY_1_1
        t5 = dataclasses.replace(t5, mlp_activations=("gelu", "linear"), logits_via_embedding=False)
    variables = initial_shapes(t5, pemt)
    axes = {
        path.removesuffix("_axes"): tuple(metadata.names)
        for path, metadata in flatten_dict(variables["params_axes"], sep="/").items()
    }
    found = {
        path: (like.shape, axes.pop(path))
        for path, like in flatten_dict(variables["params"], sep="/").items()
    }
    assert found == T5_PARAMETERS | only | added
    assert not axes
    assert all(like.dtype == np.float32 for like in jax.tree.leaves(variables["params"]))


def test_layers_are_numbered_and_share_one_position_table():
    t5 = dataclasses.replace(ONE_LAYER, num_encoder_layers=3, num_decoder_layers=2)
    paths = flatten_dict(initial_shapes(t5, PemtConfig())["params"], sep="/")
    assert {path.split("/")[1] for path in paths if path.startswith("encoder/")} == {
        "encoder_norm",
        "relpos_bias",
        "layers_0",
        "layers_1",
        "layers_2",
    }
    assert len([path for path in paths if "rel_embedding" in path]) == 2


def test_decoder_padding_changes_only_its_own_positions():
    """Attended causally, padding cannot reach a real token: only its own logits differ."""
    batch = make_batch([3, 6, 1, 5], [3, 5, 1, 2], 6, 5)
    params = random_params(T5, TARGET)
    masked, collected = compiled(T5, TARGET, "apply")(params, batch, None)
    attended, counted = compiled(T5, REFERENCE, "apply")(params, batch, None)
    real = batch["decoder_target_tokens"] > 0
    np.testing.assert_allclose(masked[real], attended[real], rtol=1e-5, atol=1e-6)
    # The first position of padding attends to itself besides, the later ones to more.
    assert np.abs(masked - attended)[~real].max(axis=-1).min() > 1e-4
    assert collected["decoder/layers_0/mlp/tsl"] != counted["decoder/layers_0/mlp/tsl"]


@functools.cache
def gradients(policy: str):
    """Return (loss, gradients, number of layers that are recomputed) with dropout."""
    t5 = dataclasses.replace(T5, dropout_rate=0.1, remat_policy=policy)
    model, batch = PemtModel(t5, SOURCE), make_batch([4, 2], [3, 2], 5, 4)
    params = random_params(t5, SOURCE)
    step = jit(
        jax.value_and_grad(lambda params: model.loss_fn(params, batch, jax.random.key(7))[0])
    )
    lowered = step.lower(params)
    return *lowered.compile()(params), lowered.as_text().count("optimization_barrier")


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param("minimal", marks=(pytest.mark.slow, pytest.mark.walk)),
        pytest.param("full", marks=pytest.mark.slow),
    ],
)
def test_rematerialisation_changes_neither_parameters_nor_numbers(policy):
    assert jax.tree.structure(initial_shapes(T5, TARGET)) == jax.tree.structure(
        initial_shapes(dataclasses.replace(T5, remat_policy=policy), TARGET)
    )
    plain, again = gradients("none"), gradients(policy)
    assert (plain[2], again[2]) == (0, T5.num_encoder_layers + T5.num_decoder_layers)
    assert plain[0] == again[0]
    # The compiler may add the same terms in another order: one unit in the last place.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), plain[1], again[1]
    )
