"""The configurations: what they refuse, and that they are plain values."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from pemt_jax.common.errors import UsageError
from pemt_jax.config import PemtConfig, T5Config

EXPERTS = {"prompt_length": 3, "expert_names": ("nli", "qa"), "source_prompt_lengths": (4, 5)}


@pytest.mark.parametrize(
    "config, field, value, near",
    [
        (T5Config, "mlp_activations", ("rellu",), "relu"),
        (T5Config, "mlp_activations", ("gelu", "linaer"), "linear"),
        (T5Config, "dtype", "bfloat1", "bfloat16"),
        (PemtConfig, "lora_b_init", "zeros", "zero"),
        (PemtConfig, "prompt_init", "vocabulary", "vocab"),
        (PemtConfig, "loss_normalization", "token", "tokens"),
    ],
)
def test_a_wrong_choice_is_one_sentence_with_the_nearest_name(config, field, value, near):
    with pytest.raises(UsageError) as error:
        config(**{field: value})
    message = str(error.value)
    wrong = value if isinstance(value, str) else value[-1]
    assert f"{config.__name__}.{field} is {wrong!r}, expected one of" in message
    assert message.endswith(f"(nearest: {near!r}).") and message.count(". ") == 0


def test_a_prompt_is_needed_for_each_expert():
    with pytest.raises(UsageError, match="1 source prompts for 2 experts"):
        PemtConfig(**EXPERTS | {"source_prompt_lengths": (4,)})


def test_experts_need_a_prompt_for_their_gate():
    with pytest.raises(UsageError, match="prompt_length 0"):
        PemtConfig(**EXPERTS | {"prompt_length": 0})


def test_the_default_adds_nothing():
    pemt = PemtConfig()
    assert (pemt.num_experts, pemt.prompt_length, pemt.adapter_dim) == (0, 0, 0)
    assert not pemt.source_expert and not pemt.decoder_attends_padding


def test_default_backbone_is_t5_1_0_base():
    t5 = T5Config()
    assert (t5.emb_dim, t5.mlp_dim, t5.num_heads, t5.head_dim) == (768, 3072, 12, 64)
    assert (t5.num_encoder_layers, t5.num_decoder_layers) == (12, 12)
    assert t5.mlp_activations == ("relu",) and t5.logits_via_embedding


def test_lists_become_tuples_and_a_config_is_hashable():
    lists = {
        name: list(value) if isinstance(value, tuple) else value for name, value in EXPERTS.items()
    }
    assert PemtConfig(**lists) == PemtConfig(**EXPERTS)
    assert hash(PemtConfig(**lists)) == hash(PemtConfig(**EXPERTS))
    assert hash(T5Config(mlp_activations=["gelu", "linear"]))


@pytest.mark.parametrize(
    "config",
    [
        T5Config(mlp_activations=("gelu", "linear"), dtype="bfloat16"),
        PemtConfig(**EXPERTS, adapter_dim=7, prompt_attention_dropout=0.1),
    ],
)
def test_a_config_survives_json(config):
    text = json.dumps(dataclasses.asdict(config))
    assert type(config)(**json.loads(text)) == config


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        T5Config().emb_dim = 1


def test_number_of_experts_and_compute_dtype():
    assert PemtConfig(**EXPERTS).num_experts == 2
    assert T5Config(dtype="bfloat16").compute_dtype == jnp.bfloat16
