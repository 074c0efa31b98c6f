"""The authors' names and layouts against ours, on the parameters of their own model."""

import json
from pathlib import Path

import numpy as np
import pytest
from authors_names import to_reference
from oracle import source_prompt_lengths

from pemt_jax.common.errors import PemtError
from pemt_jax.config import T5Config
from pemt_jax.interop.reference import from_reference

CONFIG = T5Config(
    vocab_size=256,
    emb_dim=32,
    num_heads=4,
    head_dim=8,
    mlp_dim=64,
    num_encoder_layers=2,
    num_decoder_layers=2,
)


@pytest.fixture(scope="module")
def oracle():
    with np.load(Path(__file__).parents[1] / "data" / "oracle_tiny.npz") as file:
        return {name: file[name] for name in file.files}


def part(oracle, prefix):
    return {n.removeprefix(prefix): a for n, a in oracle.items() if n.startswith(prefix)}


@pytest.mark.parametrize("prefix", ["s1/w/", "s2/w/", "s1/grad/", "s2/train/final/"])
def test_there_and_back_gives_every_tensor_again(oracle, prefix):
    tensors = part(oracle, prefix)
    params = from_reference(CONFIG, tensors)
    task = json.loads(str(oracle["config_json"]))["target_task"]
    back = to_reference(CONFIG, params, task, source_prompt_lengths(tensors))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_experts_are_stacked_and_source_prompts_padded(oracle):
    tensors = part(oracle, "s2/w/")
    params = from_reference(CONFIG, tensors)
    bank_FER = params["decoder/layers_1/mlp/experts/lora_a"]
    theirs = "decoder.block.1.layer.2.DenseReluDense.wo.lora_A.2"
    np.testing.assert_array_equal(bank_FER[:, 2], tensors[theirs].T)
    assert source_prompt_lengths(tensors) == (5, 7, 4)
    assert params["source_prompts/embedding"].shape == (3, 7, 32)
    np.testing.assert_array_equal(params["source_prompts/embedding"][2, :4], tensors["task_list.2"])
    assert not params["source_prompts/embedding"][2, 4:].any()


def test_copies_in_a_state_dict_are_left_out(oracle):
    tensors = part(oracle, "s2/w/")
    copies = {
        "lm_head.weight": tensors["shared.weight"],
        "encoder.task_emb": tensors["task_shared"],
        "decoder.embed_tokens.weight": tensors["shared.weight"],
        "decoder.pretrain_task_emb_list.0": tensors["task_list.0"],
    }
    assert from_reference(CONFIG, tensors | copies).keys() == from_reference(CONFIG, tensors).keys()


def test_wrong_tensors_are_one_sentence(oracle):
    tensors = part(oracle, "s2/w/")
    wo = "encoder.block.0.layer.1.DenseReluDense.wo"
    cases = {
        "belongs to no part": tensors | {f"{wo}.lora_C": tensors[f"{wo}.w_gate"]},
        "expected all from 0": {f"{wo}.lora_A.1": tensors[f"{wo}.lora_A.1"]},
        "expected one rank": tensors | {f"{wo}.lora_A.1": tensors[f"{wo}.lora_A.1"][:3]},
        "does not fit": tensors | {"shared.weight": tensors["shared.weight"][:5]},
        "of one task": tensors
        | {"encoder.block.0.layer.1.adapter_controller.adapters.rte.up_sampler.bias": np.ones(32)},
    }
    for expected, wrong in cases.items():
        with pytest.raises(PemtError, match=expected):
            from_reference(CONFIG, wrong)
