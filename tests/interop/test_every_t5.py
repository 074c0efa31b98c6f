"""Every family of T5, as transformers 4 and 5 write and compute it (data/make_every_t5_fixture.py).

The archive has the models of either version, and those of version 4 as version 5 saves them again.
"""

import dataclasses
import functools
import json
import tarfile
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np
import optax
import pytest

from pemt_jax import convert
from pemt_jax.common.errors import PemtError
from pemt_jax.common.hashing import fingerprint
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.interop import hf, hf_config
from pemt_jax.interop.base import load_base
from pemt_jax.interop.hf_names import parameter_table
from pemt_jax.interop.t5x_shapes import infer_config
from pemt_jax.model.network import Transformer

DATA = Path(__file__).parents[1] / "data"
FAMILIES = (
    "t5_1_0 t5_1_1 ul2 relu_gated byt5 mt5 mt5_tied umt5 umt5_tied".split()  # of make_every_t5_...
)
WRITERS = ("4", "5", "4_in_5")
# (the logits share the embedding, they are scaled); a new model of version 5 always shares it.
UNTIED, TIED, SHARED = (False, False), (True, True), (True, False)
LOGITS = {
    "4": {"t5_1_0": TIED, "mt5_tied": TIED, "umt5_tied": TIED},
    "5": dict.fromkeys(FAMILIES, SHARED) | {"t5_1_0": TIED, "umt5_tied": TIED},
    "4_in_5": {"t5_1_0": TIED, "mt5_tied": SHARED, "umt5_tied": TIED},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("every_t5")
    with tarfile.open(DATA / "every_t5.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@functools.cache  # several models have one shape
def compiled(config):
    return jax.jit(Transformer(config, PemtConfig()).apply)


def compute(config, flat, inputs, targets):
    """Logits [tokens, V] of the targets that are no padding."""
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    rows = np.ones(len(inputs))
    logits = compiled(config)({"params": params}, inputs, shifted, targets, rows)
    return np.asarray(logits)[targets > 0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("writer", WRITERS)
def test_logits_and_loss_equal_those_of_the_version_that_wrote_it(models, writer, family):
    config, flat = hf.load_hf(models / writer / family)
    found = config.logits_via_embedding, config.scales_decoder_outputs
    assert found == LOGITS[writer].get(family, UNTIED)
    assert config.relpos_per_layer == family.startswith("umt5")
    assert config.num_encoder_layers != config.num_decoder_layers
    with np.load(models / writer / family / "expected.npz") as file:
        inputs, targets, expected, loss = (file[k] for k in ("inputs", "targets", "logits", "loss"))
    logits = compute(config, flat, inputs, targets)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    ours = optax.softmax_cross_entropy_with_integer_labels(logits, targets[targets > 0]).mean()
    np.testing.assert_allclose(ours, loss, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["umt5", "byt5"])
def test_scanned_layers_give_the_same_logits(models, family):
    config, flat = hf.load_hf(models / "4" / family)
    with np.load(models / "4" / family / "expected.npz") as file:
        inputs, targets = file["inputs"], file["targets"]
    scanned = dataclasses.replace(config, scan_layers=True)
    straight, looped = (compute(c, flat, inputs, targets) for c in (config, scanned))
    np.testing.assert_allclose(straight, looped, rtol=0, atol=1e-5)


@pytest.mark.parametrize("writer, family", [(w, f) for w in ("4", "5") for f in FAMILIES])
def test_saved_again_it_is_the_same_model(models, tmp_path, writer, family):
    config, flat = hf.load_hf(models / writer / family)
    hf.save_hf(tmp_path / "new", config, flat, "float32")
    again, params = hf.load_hf(tmp_path / "new")
    assert again == config and fingerprint(params) == fingerprint(flat)


@pytest.mark.parametrize("family", ["mt5", "umt5", "umt5_tied", "byt5"])
def test_t5x_and_back_is_the_same_model(models, tmp_path, family):
    source = models / "4" / family
    for name, form in (("t5x", "t5x"), ("back", "hf")):
        flags = ["--from", source, "--to", tmp_path / name, "--format", form]
        assert convert.main([str(flag) for flag in flags]) == 0
        source = tmp_path / name
    expected, params = load_base(models / "4" / family)
    assert load_base(tmp_path / "t5x")[0] == expected == load_base(tmp_path / "back")[0]
    assert fingerprint(load_base(tmp_path / "back")[1]) == fingerprint(params)


@pytest.mark.parametrize(
    "field, value",
    [
        ("mlp_activations", ("silu", "linear")),
        ("mlp_activations", ("relu", "linear")),
        ("scale_decoder_outputs", False),
    ],
)
def test_t5x_refuses_what_its_arrays_cannot_say(tmp_path, capsys, field, value):
    config = dataclasses.replace(T5Config(40, 12, 2, 5, 14, 2, 1), **{field: value})
    params = {entry.path: np.ones(entry.shape, np.float32) for entry in parameter_table(config)}
    hf.save_hf(tmp_path / "hf", config, params, "float32")
    flags = ["--from", str(tmp_path / "hf"), "--to", str(tmp_path / "t5x"), "--format", "t5x"]
    assert convert.main(flags) == 2
    assert f"A T5 with {field}" in capsys.readouterr().err
    assert not (tmp_path / "t5x").exists()


def test_scanned_checkpoints_of_umt5_are_refused_in_one_sentence():
    shapes = {"encoder/encoder/relpos_bias/rel_embedding": (4, 2, 32)}
    with pytest.raises(PemtError, match=r"scanned, as umT5's .* expected encoder/layers_0, \.\.\."):
        infer_config(shapes, "umt5/checkpoint_1")


# config.json of public models, as far as it says what is computed.
T5_1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
GELU, SILU = ("gelu", "linear"), ("silu", "linear")
PUBLIC = {
    "t5-small": ({"n_positions": 512}, ("relu",), TIED),
    "t5-v1_1-small, flan-t5-small, t5-small-lm-adapt": (T5_1_1, GELU, UNTIED),
    "flan-t5-small by transformers 4.23": (
        T5_1_1 | {"dense_act_fn": "gelu_new", "is_gated_act": True},
        GELU,
        UNTIED,
    ),
    "ul2, flan-ul2": (T5_1_1 | {"feed_forward_proj": "gated-silu"}, SILU, UNTIED),
    "byt5-small": (T5_1_1 | {"tokenizer_class": "ByT5Tokenizer"}, GELU, UNTIED),
    "mt5-small": (T5_1_1 | {"model_type": "mt5"}, GELU, UNTIED),
    "umt5-small": (T5_1_1 | {"model_type": "umt5", "scalable_attention": True}, GELU, UNTIED),
}
SIZES = {"vocab_size": 40, "d_model": 8, "d_ff": 16, "num_layers": 3, "num_heads": 2}


@pytest.mark.parametrize("name", PUBLIC)
def test_configurations_of_public_models(tmp_path, name):
    values, activations, logits = PUBLIC[name]
    (tmp_path / "config.json").write_text(json.dumps(SIZES | values))
    config = hf_config.read_config(tmp_path / "config.json")
    assert config.mlp_activations == activations
    assert (config.logits_via_embedding, config.scales_decoder_outputs) == logits


@pytest.mark.parametrize(
    "model_type, name",
    [
        ("longt5", "LongT5"),
        ("switch_transformers", "Switch Transformers"),
        ("pop2piano", "Pop2Piano"),
        ("t5gemma", "T5Gemma"),
        ("t5gemma2", "T5Gemma 2"),
        ("bart", "model"),
        (["t5"], "model"),
    ],
)
def test_other_families_are_refused_by_name(tmp_path, model_type, name):
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {"model_type": model_type}))
    with pytest.raises(PemtError, match=r"expected a T5, ByT5, mT5 or umT5 .*\.$") as caught:
        hf.load_hf(tmp_path)
    assert f"describes a {name}" in str(caught.value)
    assert f"model_type {model_type!r}" in str(caught.value)


def test_a_tied_mt5_of_no_version_is_refused(tmp_path):
    values = SIZES | {"model_type": "mt5", "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(PemtError, match="no transformers_version, expected one"):
        hf_config.read_config(tmp_path / "config.json")
