"""Our Hugging Face folders in transformers: it loads them, and gives the logits that we give."""

import dataclasses
import json

import flax.traverse_util
import jax
import numpy as np
import pytest
from test_convert import GATED, PLAIN, random_model
from tiny_vocabulary import with_sentinels_inside

from pemt_jax import convert
from pemt_jax.common.hashing import fingerprint
from pemt_jax.common.weights import load_weights
from pemt_jax.config import PemtConfig
from pemt_jax.interop import hf, t5x
from pemt_jax.interop.base import load_base
from pemt_jax.interop.hf_names import parameter_table
from pemt_jax.model.network import Transformer
from pemt_jax.tasks.vocabulary import BYTES, PACKAGED, Vocabulary, beside

pytestmark = pytest.mark.parity
B, S, T = 2, 150, 9


@pytest.fixture
def transformers():
    pytest.importorskip("torch", reason='needs torch: pip install "pemt_jax[parity]"')
    return pytest.importorskip(
        "transformers", reason='needs transformers: pip install "pemt_jax[parity]"'
    )


def small_random_model(tied, activations):
    """Numbers of a size at which logits say something."""
    config, params = random_model(tied, activations)
    random = np.random.default_rng(1)
    for path, array in params.items():
        values = random.normal(size=array.shape)
        values = 1 + 0.1 * values if array.ndim == 1 else values / np.sqrt(array.shape[0])
        params[path] = (values * (4 if "embedding" in path else 1)).astype(np.float32)
    return dataclasses.replace(config, dropout_rate=0.0), params


def their_logits(model, inputs, shifted):
    import torch

    with torch.no_grad():
        return model.eval()(
            input_ids=torch.tensor(inputs),
            attention_mask=torch.tensor(inputs > 0).long(),
            decoder_input_ids=torch.tensor(shifted),
        ).logits.numpy()


@pytest.mark.parametrize("shard_bytes", [10**9, 5000], ids=["whole", "sharded"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("activations", [PLAIN, GATED], ids=["relu", "gated"])
def test_transformers_loads_what_we_write(tmp_path, transformers, activations, tied, shard_bytes):
    config, params = small_random_model(tied, activations)
    hf.save_hf(tmp_path / "ours", config, params, "float32", shard_bytes)
    model, report = transformers.T5ForConditionalGeneration.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    random = np.random.default_rng(0)
    inputs, targets = random.integers(2, 40, (B, S)), random.integers(2, 40, (B, T))
    inputs[1, 20:] = 0
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    ours = jax.jit(Transformer(config, PemtConfig()).apply)(
        {"params": flax.traverse_util.unflatten_dict(params, sep="/")},
        inputs,
        shifted,
        targets,
        np.ones(B),
    )
    theirs = their_logits(model, inputs, shifted)
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    # What transformers writes is what we wrote.
    model.save_pretrained(tmp_path / "theirs")
    assert fingerprint(load_base(tmp_path / "theirs")[1]) == fingerprint(params)
    assert load_base(tmp_path / "theirs")[0] == config


@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_a_folder_of_transformers_is_the_same_after_t5x(tmp_path, transformers, kind):
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=40,
            d_model=12,
            d_kv=5,
            num_heads=2,
            d_ff=14,
            num_layers=2,
            num_decoder_layers=1,
            feed_forward_proj=kind,
            tie_word_embeddings=kind == "relu",
        )
    )
    if kind != "relu":  # transformers 5 ties every T5 when it builds one
        torch = pytest.importorskip("torch")
        model.lm_head.weight = torch.nn.Parameter(torch.randn(40, 12))
    model.save_pretrained(tmp_path / "theirs")
    for source, target, form in (("theirs", "t5x", "t5x"), ("t5x", "back", "hf")):
        assert not convert.main(
            ["--from", str(tmp_path / source), "--to", str(tmp_path / target), "--format", form]
        )
    assert t5x.is_t5x(tmp_path / "t5x")
    before, after = (
        load_weights(tmp_path / name / "model.safetensors") for name in ("theirs", "back")
    )
    for name, array in after.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


FAMILIES = {  # class in transformers, fields of T5Config
    "ul2": ("T5", {"mlp_activations": ("silu", "linear"), "logits_via_embedding": False}),
    "relu_gated": ("T5", {"mlp_activations": ("relu", "linear"), "logits_via_embedding": False}),
    "umt5": ("UMT5", {"relpos_per_layer": True, "logits_via_embedding": False}),
    "umt5_tied": ("UMT5", {"relpos_per_layer": True}),
    "shared": ("T5", {"mlp_activations": GATED, "scale_decoder_outputs": False}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_what_we_write_of_every_family(tmp_path, transformers, family):
    """And we what it saves of it again."""
    kind, fields = FAMILIES[family]
    if family == "shared" and transformers.__version__ < "5":
        pytest.skip("transformers 4 has no T5 that shares the embedding and does not scale")
    config = dataclasses.replace(random_model()[0], num_decoder_layers=2, **fields)
    random = np.random.default_rng(2)
    params = {}
    for entry in parameter_table(config):
        values = random.normal(size=entry.shape) / np.sqrt(entry.shape[0])
        params[entry.path] = (1 + values if len(entry.shape) == 1 else values).astype(np.float32)
    hf.save_hf(tmp_path / "ours", config, params, "float32")
    model = getattr(transformers, f"{kind}ForConditionalGeneration").from_pretrained(
        tmp_path / "ours"
    )
    inputs, targets = random.integers(2, 40, (B, 20)), random.integers(2, 40, (B, T))
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    expected = their_logits(model, inputs, shifted)
    model.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        config, params = load_base(tmp_path / folder)
        ours = jax.jit(Transformer(config, PemtConfig()).apply)(
            {"params": flax.traverse_util.unflatten_dict(params, sep="/")},
            inputs,
            shifted,
            targets,
            np.ones(B),
        )
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


TEXTS = ["A good film tells its story.", "It's  5 \u00bd na\u00efve\t\u4e2d\u6587 end. ", "a", ""]


@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5"])
def test_tokens_of_saved_vocabularies_are_those_of_transformers(
    tmp_path, transformers, monkeypatch, kind
):
    pytest.importorskip("sentencepiece")
    monkeypatch.setenv("PEMT_JAX_CACHE", str(tmp_path / "cache"))
    for name in ("source", "ours", "theirs"):
        (tmp_path / name).mkdir()
    content = with_sentinels_inside() if kind == "mt5" else PACKAGED.read_bytes()
    (tmp_path / "source" / "spiece.model").write_bytes(content)
    if kind == "umt5":
        facts = {"tokenizer_class": "T5Tokenizer", "extra_ids": 300}
        (tmp_path / "source" / "tokenizer_config.json").write_text(json.dumps(facts))
    ours = Vocabulary(beside(tmp_path / "source"))
    ours.save(tmp_path / "ours")
    tokenizer = transformers.T5TokenizerFast.from_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "spiece.model").unlink(missing_ok=True)  # tokenizer.json remains
    again = Vocabulary(beside(tmp_path / "theirs"))
    assert len(tokenizer) == ours.vocab_size == again.vocab_size
    texts = [*TEXTS, "<extra_id_0> and a <extra_id_99>"]
    for text in texts:
        tokens = tokenizer(text).input_ids
        assert [*ours.encode(text), 1] == [*again.encode(text), 1] == tokens, text


def test_transformers_reads_the_bytes_that_we_save(tmp_path, transformers):
    Vocabulary(BYTES).save(tmp_path)
    config, params = random_model()
    hf.save_hf(tmp_path, dataclasses.replace(config), params, "float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert tokenizer(text).input_ids == [*Vocabulary(BYTES).encode(text), 1]
    tokenizer.save_pretrained(tmp_path / "theirs")
    assert beside(tmp_path / "theirs") == BYTES
