"""An expert folded into its base: the stage-1 model's logits from a plain T5 and token ids."""

import dataclasses
import json
import shutil
from pathlib import Path

import flax.traverse_util
import numpy as np
import pytest
import tiny_model

from pemt_jax.cli.library_command import main
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.hashing import fingerprint, verify_checksums
from pemt_jax.common.user_input.linears import linear_kind
from pemt_jax.common.weights import load_weights
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.interop.hf import load_hf, save_hf
from pemt_jax.interop.merging.merge import merge_expert
from pemt_jax.library import expert as library
from pemt_jax.library.artefact import Card
from pemt_jax.library.linears import flat_lora
from pemt_jax.model.network import Transformer
from pemt_jax.run_config import MINI_T5
from pemt_jax.tasks.vocabulary import Vocabulary

TIED = dataclasses.replace(tiny_model.T5, vocab_size=8100)
GATED = dataclasses.replace(tiny_model.T5_1_1, vocab_size=8100, num_decoder_layers=1)
SHAPES: dict[str, T5Config] = {
    "tied": TIED,
    "untied": GATED,
    # 92 rows that no token has, as T5's 32,128 for 32,100 tokens: a prompt fits in.
    "padded": dataclasses.replace(TIED, vocab_size=8192),
    "padded untied": dataclasses.replace(GATED, vocab_size=8192),
}
TEXTS = ("sentence: the film was <extra_id_0> good", "It's dull, said the critics.")
P = 5
# The rows of these words, so that a prompt's rows are those of words, as in training.
PROMPT = "Say the mood."
VOCABULARY = Vocabulary(str(Path(MINI_T5) / "spiece.model"))


def make_base(folder, shape="tied", tokenizer=True):
    """A random T5 whose logits say something, with the tokenizer of the mini T5."""
    params = tiny_model.random_params(SHAPES[shape], PemtConfig())
    save_hf(folder, SHAPES[shape], flax.traverse_util.flatten_dict(params, sep="/"), "float32")
    if tokenizer:
        shutil.copyfile(Path(MINI_T5) / "spiece.model", folder / "spiece.model")
    return folder


def make_expert(folder, base, seed=0):
    """An expert on all linear layers, with ranks of their own; its folder, a library."""
    random = np.random.default_rng(seed)
    t5, params = load_hf(base)
    lora = {}
    for linear, (rows, columns) in t5.linears().items():
        R = 1 + len(linear_kind(linear)) % 3
        a = random.normal(size=(rows, R)) / rows**0.5
        b = random.normal(size=(R, columns)) * 0.1
        lora[linear] = a.astype(np.float32), b.astype(np.float32)
    tokens = np.array(VOCABULARY.encode(PROMPT))
    assert len(tokens) == P
    prompt = params["token_embedder/embedding"][tokens]
    prompt += random.normal(size=prompt.shape).astype(np.float32) * 0.01
    card = Card("expert", "pemt_source", "moods", fingerprint(params), description=PROMPT)
    library.save_expert(folder, "mood", flat_lora(lora) | {library.PROMPT: prompt}, card)
    return folder


def batch(prefix=()):
    """Padded ids of the texts, with a prefix before each, and of some targets."""
    rows = [[*prefix, *VOCABULARY.encode(text), 1] for text in TEXTS]
    inputs = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for i, row in enumerate(rows):
        inputs[i, : len(row)] = row
    targets = np.random.default_rng(0).integers(2, 8000, (len(rows), 6)).astype(np.int32)
    return inputs, np.pad(targets, ((0, 0), (1, 0)))[:, :-1], targets


def logits(t5, params, pemt, inputs, shifted, targets):
    params = flax.traverse_util.unflatten_dict(params, sep="/")
    model = tiny_model.jit(Transformer(t5, pemt).apply)
    return np.asarray(model({"params": params}, inputs, shifted, targets, np.ones(len(inputs))))


def stage_1_logits(base, folder):
    """Of the base with expert and prompt."""
    expert = library.load_expert(folder, "mood")
    bank = library.bank_options([expert])
    options = PemtConfig(
        prompt_length=P,
        source_expert=True,
        expert_linears=bank["expert_linears"],
        expert_rank=bank["expert_rank"],
    )
    t5, params = load_hf(base)
    params |= flat_lora(expert.lora) | {"prompt/embedding": expert.prompt}
    return logits(t5, params, options, *batch())


@pytest.mark.parametrize("shape", ["tied", "padded", "padded untied"])
def test_a_plain_t5_gives_the_logits_of_stage_1(tmp_path, shape):
    base = make_base(tmp_path / "base", shape)
    make_expert(tmp_path / "library", base)
    merged = merge_expert(tmp_path / "library", "mood", base, tmp_path / "merged")
    ids = list(merged.tokens.values())
    assert ids == list(range(8100, 8105)) and merged.has_tokenizer
    assert list(merged.tokens)[:2] == ["<prompt_0>", "<prompt_1>"]
    t5, params = load_hf(tmp_path / "merged")
    assert t5.vocab_size == (8192 if "padded" in shape else 8105)
    found = logits(t5, params, PemtConfig(), *batch(ids))
    expected = stage_1_logits(base, tmp_path / "library")
    assert np.abs(expected).max() > 1
    rows = SHAPES[shape].vocab_size
    np.testing.assert_allclose(found[..., :rows], expected, rtol=0, atol=1e-5)
    # Were the prompt's rows in the projection too, they would compete with their words.
    padding = np.broadcast_to(found[..., :1], found[..., rows:].shape)
    np.testing.assert_array_equal(found[..., rows:], padding)


def test_numbers_are_stored_as_in_the_base_or_as_asked(tmp_path):
    base = make_base(tmp_path / "base")
    make_expert(tmp_path / "library", base)
    for dtype, stored in ((None, "float32"), ("bfloat16", "bfloat16")):
        folder = tmp_path / stored
        merge_expert(tmp_path / "library", "mood", base, folder, dtype)
        tensors = load_weights(folder / "model.safetensors")
        assert {str(tensor.dtype) for tensor in tensors.values()} == {stored}
        assert json.loads((folder / "config.json").read_text())["torch_dtype"] == stored
        verify_checksums(folder)
    half, full = (load_hf(tmp_path / name)[1] for name in ("bfloat16", "float32"))
    for path, array in full.items():
        np.testing.assert_allclose(half[path], array, rtol=2**-8, atol=1e-30, err_msg=path)


def test_a_base_without_a_tokenizer_gets_ids_alone(tmp_path, capsys):
    base = make_base(tmp_path / "base", "padded", tokenizer=False)
    make_expert(tmp_path / "library", base)
    command = ["merge", "mood", f"--library={tmp_path / 'library'}", "--base", str(base), "--to"]
    assert main([*command, str(tmp_path / "merged")]) == 0
    assert (
        "Put these ids before every text:\n8192, 8193, 8194, 8195, 8196" in capsys.readouterr().out
    )
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {
        *("config.json", "model.safetensors", "README.md", "SHA256SUMS")
    }
    assert load_hf(tmp_path / "merged")[0].vocab_size == 8320  # a multiple of 128 as it was
    assert "came without a tokenizer" in (tmp_path / "merged" / "README.md").read_text()


def test_the_readme_says_what_to_put_before_a_text(tmp_path, capsys):
    base = make_base(tmp_path / "base")
    make_expert(tmp_path / "library", base)
    command = ["merge", "mood", f"--library={tmp_path / 'library'}", "--base", str(base), "--to"]
    assert main([*command, str(tmp_path / "merged")]) == 0
    prefix = "<prompt_0><prompt_1><prompt_2><prompt_3><prompt_4>"
    assert f"Put this before every text:\n{prefix} \n" in capsys.readouterr().out
    readme = (tmp_path / "merged" / "README.md").read_text()
    for part in (prefix, "8100, 8101, 8102, 8103, 8104", "AutoTokenizer", "task moods", PROMPT):
        assert part in readme
    assert (tmp_path / "merged/spiece.model").read_bytes() == (base / "spiece.model").read_bytes()
    assert json.loads((tmp_path / "merged" / "added_tokens.json").read_text()) == {
        f"<prompt_{i}>": 8100 + i for i in range(P)
    }


def test_tokens_follow_those_that_a_user_has_added(tmp_path):
    base = make_base(tmp_path / "base", "padded")
    make_expert(tmp_path / "library", base)
    (base / "added_tokens.json").write_text('{"<mine>": 8100}')
    (base / "tokenizer_config.json").write_text(
        '{"model_max_length": 512, "added_tokens_decoder": {"8101": {"content": "<too>"}}}'
    )
    merged = merge_expert(tmp_path / "library", "mood", base, tmp_path / "merged")
    assert merged.tokens["<prompt_0>"] == 8102
    config = json.loads((tmp_path / "merged" / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 512
    assert list(config["added_tokens_decoder"]) == [str(8101 + i) for i in range(1 + P)]
    with pytest.raises(UsageError, match="has a token <prompt_0>, expected a base into which"):
        (base / "added_tokens.json").write_text('{"<prompt_0>": 8100}')
        merge_expert(tmp_path / "library", "mood", base, tmp_path / "again")


def test_what_does_not_fit_is_one_sentence_and_writes_nothing(tmp_path):
    base, other = make_base(tmp_path / "base"), make_base(tmp_path / "other", "untied")
    experts, folder = make_expert(tmp_path / "library", base), tmp_path / "merged"

    def fails(message, *arguments, kind=UsageError):
        with pytest.raises(kind, match=message):
            merge_expert(experts, *arguments)
        assert not folder.exists()

    fails("no expert 'mod'.*nearest: 'mood'", "mod", base, folder)
    fails("Found --dtype 'float16'", "mood", base, folder, "float16")
    fails("exists already", "mood", base, tmp_path / "other")
    fails("trained on a base with fingerprint .* found", "mood", other, folder, kind=PemtError)
    fails("no model folder", "mood", tmp_path / "nowhere", folder, kind=PemtError)
    (base / "tokenizer_config.json").write_text("[1]")
    fails("tokenizer_config.json holds a list", "mood", base, folder, kind=PemtError)
    (base / "tokenizer_config.json").write_text('{"added_tokens_decoder": [1]}')
    fails("list added tokens in an unknown way", "mood", base, folder, kind=PemtError)


@pytest.fixture
def transformers():
    pytest.importorskip("torch", reason='needs torch: pip install "pemt_jax[parity]"')
    return pytest.importorskip(
        "transformers", reason='needs transformers: pip install "pemt_jax[parity]"'
    )


@pytest.mark.parity
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("saved", [False, True], ids=["spiece.model", "saved by transformers"])
def test_transformers_gives_the_logits_of_stage_1(tmp_path, transformers, shape, saved):
    import torch

    base = make_base(tmp_path / "base", shape)
    if saved:  # its own files, tokenizer.json among them
        transformers.AutoTokenizer.from_pretrained(base).save_pretrained(base)
    make_expert(tmp_path / "library", base)
    merged = merge_expert(tmp_path / "library", "mood", base, tmp_path / "merged")
    ids = list(merged.tokens.values())
    inputs, shifted, _ = batch(ids)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    before = transformers.AutoTokenizer.from_pretrained(base)
    found = [tokenizer(merged.prefix + text).input_ids for text in TEXTS]
    for text, tokens in zip(TEXTS, found, strict=True):
        assert tokens == [*ids, *before(text).input_ids]
    assert len(tokenizer) == 8105
    assert tokenizer.decode(found[1], skip_special_tokens=True) == TEXTS[1]
    model, report = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    with torch.no_grad():
        theirs = model.eval()(
            input_ids=torch.tensor(inputs).long(),
            attention_mask=torch.tensor(inputs > 0).long(),
            decoder_input_ids=torch.tensor(shifted).long(),
        ).logits.numpy()
    expected = stage_1_logits(base, tmp_path / "library")
    rows = SHAPES[shape].vocab_size
    np.testing.assert_allclose(theirs[..., :rows], expected, rtol=0, atol=1e-5)
    # What the README says.
    generated = model.generate(**tokenizer(merged.prefix + TEXTS[1], return_tensors="pt"))
    assert not set(generated[0].tolist()) & set(ids)
