"""Experts and PEFT: equal numbers on both sides, bit-equal there and back, refusals that say why.

The folders `data/peft_*` were written by PEFT (data/make_peft_fixture.py); test_peft_parity.py asks
it itself, where it is installed.
"""

import json
import math
import shutil
import subprocess

import ml_dtypes
import numpy as np
import pytest
from adapters import DATA, VERSIONS, our_logits, random_lora, save_expert

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.hashing import sha256_file
from pemt_jax.common.weights import load_weights, save_weights
from pemt_jax.interop import import_expert as importing
from pemt_jax.interop import peft
from pemt_jax.interop.import_expert import Request, import_peft
from pemt_jax.interop.peft import lora_config
from pemt_jax.interop.peft.modules import linear_of, module_of
from pemt_jax.library import expert as library
from pemt_jax.library.artefact import Card, write_card
from pemt_jax.library.linears import flat_lora
from pemt_jax.library.transfer import check_expert_folder

FIXTURE = DATA / "peft_t5_1_0"
WO = "encoder.block.1.layer.1.DenseReluDense.wo"
A, B = (f"base_model.model.{WO}.lora_{letter}.weight" for letter in "AB")


def random_expert(folder, version, ranks=(3,), chosen=lambda path: path.endswith("/mlp/wo")):
    """The flat parameters of a random expert, which is in a library."""
    expert = save_expert(folder, version, random_lora(version, chosen, ranks))
    return flat_lora(expert.lora) | {library.PROMPT: expert.prompt}


def export(folder, to):
    peft.export_peft(
        to, library.load_expert(folder, "movies"), check_expert_folder(folder / "movies")
    )
    return to


@pytest.fixture
def adapter_folder(tmp_path):
    """The adapter that PEFT has written, to damage."""
    return shutil.copytree(FIXTURE, tmp_path / "adapter")


def edit_config(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(folder, edit):
    tensors = load_weights(folder / "adapter_model.safetensors")
    edit(tensors)
    save_weights(folder / "adapter_model.safetensors", tensors)


@pytest.mark.parametrize(
    "name, version, adapted",
    [
        ("peft_t5_1_0", "hf_t5_1_0", {"mlp/wo": 3}),
        ("peft_0_5", "hf_t5_1_0", {"query": 7, "value": 7}),
        ("peft_all_linear", "hf_t5_1_1", {"": 3 * 7 + 2 * 11}),
    ],
)
def test_an_adapter_of_peft_gives_the_logits_it_gives_there(
    tmp_path, monkeypatch, name, version, adapted
):
    monkeypatch.setattr(
        importing, "vocabulary_rows", lambda request, t5, base: base["token_embedder/embedding"][:4]
    )
    request = Request(tmp_path, "stranger", DATA / name, base=str(DATA / version), prompt="x")
    import_peft(request)
    expert = library.load_expert(tmp_path, "stranger")
    counts = {end: sum(path.endswith(end) for path in expert.lora) for end in adapted}
    assert counts == adapted and sum(counts.values()) == len(expert.lora)
    with np.load(DATA / name / "expected.npz") as file:
        inputs, targets, expected = file["inputs"], file["targets"], file["logits"]
    logits = our_logits(version, expert.lora, inputs, targets)
    real = targets > 0
    np.testing.assert_allclose(logits[real], expected[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "module, path",
    [
        ("encoder.block.0.layer.0.SelfAttention.q", "encoder/layers_0/attention/query"),
        ("decoder.block.12.layer.0.SelfAttention.v", "decoder/layers_12/self_attention/value"),
        (
            "decoder.block.3.layer.1.EncDecAttention.o",
            "decoder/layers_3/encoder_decoder_attention/out",
        ),
        ("decoder.block.0.layer.2.DenseReluDense.wi", "decoder/layers_0/mlp/wi"),
        ("encoder.block.2.layer.1.DenseReluDense.wi_1", "encoder/layers_2/mlp/wi_1"),
        ("encoder.block.02.layer.1.DenseReluDense.wo", None),
        ("encoder.block.0.layer.0.EncDecAttention.q", None),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", None),
        ("transformer.encoder.block.0.layer.0.SelfAttention.q", None),
        ("lm_head", None),
    ],
)
def test_a_module_is_a_linear_layer(module, path):
    assert linear_of(module) == path
    assert path is None or module_of(path) == module


def test_the_scaling_is_folded_in():
    a, b = np.ones((2, 4), np.float32), np.ones((3, 2), np.float32)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}
    for more, expected in (
        ({}, 3),
        ({"use_rslora": True}, 6 / math.sqrt(2)),
        ({"alpha_pattern": {"layer.1.DenseReluDense.wo": 4}}, 2),
        ({"r": 9, "rank_pattern": {f"^{WO}": 2}}, 3),
        ({"alpha_pattern": {"encoder.block.2": 4}}, 3),
        ({"lora_alpha": 2.0}, 1),
    ):
        params = peft.from_peft(settings | more, {A: a, B: b}, "it")
        np.testing.assert_array_equal(params["encoder/layers_1/mlp/expert/lora_a"], a.T)
        np.testing.assert_allclose(
            params["encoder/layers_1/mlp/expert/lora_b"],
            expected * b.T,
            rtol=1e-6,
            err_msg=str(more),
        )


@pytest.mark.parametrize(
    "first, expected",
    [
        ("v", 4),
        ("q|v", 4),
        (r".*\.v", 4),
        (r"encoder\.block\.\d+\.layer\.0\..*", 4),
        (r"(\w+.)*", 4),
    ],
)
def test_a_regular_expression_is_matched_as_peft_does(first, expected):
    """The first key that matches the end of a module's name counts."""
    name = "base_model.model.encoder.block.1.layer.0.SelfAttention.v.lora_{}.weight"
    tensors = {name.format("A"): np.ones((2, 4)), name.format("B"): np.ones((3, 2))}
    config = {"peft_type": "LORA", "r": 2, "alpha_pattern": {"^v": 6, first: 8, "": 2}}
    params = peft.from_peft(config, tensors, "it")
    b = params["encoder/layers_1/attention/value_expert/lora_b"]
    np.testing.assert_array_equal(b, np.full((2, 3), expected))


def test_a_regular_expression_that_runs_for_years_is_stopped(adapter_folder, monkeypatch):
    monkeypatch.setattr(lora_config, "SECONDS", 0.5)
    edit_config(adapter_folder, rank_pattern={r"(.*\.*)*x": 2})
    with pytest.raises(PemtError, match="took more than 0.5 seconds to match, expected names"):
        peft.import_adapter(adapter_folder)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_adapters_in_half_precision_are_read(adapter_folder, dtype):
    edit_weights(adapter_folder, lambda t: t.update({A: np.ones((3, 40), dtype)}))
    lora_a = peft.import_adapter(adapter_folder).lora["encoder/layers_1/mlp/expert/lora_a"]
    assert lora_a.dtype == np.float32 and (lora_a == 1).all()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "ranks, chosen",
    [
        ((3,), lambda path: path.endswith("/mlp/wo")),
        ((3, 1, 2), lambda path: path.endswith("/mlp/wo")),
        ((2,), lambda path: path < "encoder/layers_1"),
        ((4,), lambda path: path.endswith(("query", "value"))),
        ((1, 5, 2, 3), lambda path: True),
    ],
)
def test_library_to_peft_to_library_is_bit_equal(tmp_path, version, ranks, chosen):
    arrays = random_expert(tmp_path / "library", version, ranks, chosen)
    folder = export(tmp_path / "library", tmp_path / "peft")
    import_peft(Request(tmp_path / "again", "other_name", folder))
    path = tmp_path / "again" / "other_name"
    first, again = (check_expert_folder(p) for p in (tmp_path / "library" / "movies", path))
    assert again == first  # the sha256 of the weights, the metrics, the prompt's text, ...
    for name, array in load_weights(path / "weights.safetensors").items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    assert sha256_file(path / "weights.safetensors") == first.sha256


@pytest.mark.parametrize("name", ["pemt_prompt.safetensors", "pemt_card.json"])
def test_a_damaged_export_is_refused(tmp_path, name):
    random_expert(tmp_path / "library", "hf_t5_1_0")
    folder = export(tmp_path / "library", tmp_path / "peft")
    done = subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder)
    assert done.returncode == 0
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(PemtError, match=f"{name} is damaged or exchanged: .* in its SHA256SUMS"):
        import_peft(Request(tmp_path / "library", "again", folder))


def test_an_adapter_that_was_trained_on_under_peft_has_no_metrics(tmp_path, capsys):
    random_expert(tmp_path / "library", "hf_t5_1_0")
    folder = export(tmp_path / "library", tmp_path / "peft")
    edit_weights(folder, lambda tensors: tensors.update({A: tensors[A] + 1}))
    card = import_peft(Request(tmp_path / "library", "more", folder))
    assert card.metrics == {} and card.config["changed_since_export"] is True
    assert "is not the one that was exported" in capsys.readouterr().err
    assert card.description == "rate a movie: ü"


def test_the_export_says_that_the_prompt_is_left_out(tmp_path):
    random_expert(tmp_path / "library", "hf_t5_1_0")
    folder = export(tmp_path / "library", tmp_path / "peft")
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "without its task prompt" in readme and 'base_model: "hf_t5_1_0"' in readme
    assert load_weights(folder / "pemt_prompt.safetensors").keys() == {"prompt/embedding"}
    assert not any("prompt" in name for name in load_weights(folder / peft.TENSORS))
    with pytest.raises(UsageError, match="exists already"):
        export(tmp_path / "library", folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"peft_type": "IA3"}, "of type 'IA3'"),
        ({"use_dora": True}, r"use_dora = True \(DoRA\)"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"bias": "lora_only"}, "bias = 'lora_only'"),
        ({"enable_lora": [True, False, True]}, "enable_lora"),
        ({"target_parameters": ["q.weight"]}, "target_parameters"),
        ({"velora_config": {"num_groups": 32}}, "velora_config"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes the base"),
        ({"something_of_2030": {"on": 1}}, "something_of_2030"),
        ({"r": 4}, "has rank 3 in .*, expected 4"),
        ({"r": "3"}, "'3' for the r"),
        ({"r": 0}, "0 for the r"),
        ({"lora_alpha": None}, "None for the lora_alpha"),
        ({"lora_alpha": math.inf}, "inf for the lora_alpha"),
        ({"rank_pattern": {"(wo": 2}}, r"rank_pattern '\(wo', expected a regular expression"),
        ({"rank_pattern": [2]}, r"rank_pattern = \[2\], expected values by names"),
        ({"alpha_pattern": {"wo": "2"}}, "'2' for the lora_alpha of decoder"),
    ],
)
def test_a_config_that_is_no_plain_lora_is_one_sentence(adapter_folder, change, message):
    edit_config(adapter_folder, **change)
    with pytest.raises(PemtError, match=message) as caught:
        peft.import_adapter(adapter_folder)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


PREFIX = "base_model.model."


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda t: t.update({f"{PREFIX}lm_head.lora_A.weight": t[A]}),
            r"adapts 'lm_head', expected a LoRA on linear layers of a T5 only \(q, k, v, o, wi, ",
        ),
        (lambda t: t.update({f"{PREFIX}shared.lora_embedding_A": t[A]}), "adapts 'shared'"),
        (lambda t: t.update({f"{PREFIX}shared.weight": t[A]}), "holds .*shared.weight"),
        (lambda t: t.update({f"{PREFIX}{WO}.lora_magnitude_vector": t[A]}), "magnitude_vector"),
        (lambda t: t.update({A.replace("lora_A", "ia3_l"): t[A]}), "ia3_l"),
        (lambda t: t.update({A.replace("A.", "A.default."): t[A]}), "lora_A.default.weight"),
        (lambda t: t.update({A.replace("DenseReluDense.wo", "mlp.gate_proj"): t[A]}), "gate_proj"),
        (lambda t: t.update({A.replace("layer.1", "layer.2"): t[A]}), r"encoder.block.1.layer.2"),
        (lambda t: t.update({"base_model.model.lm_head.weight": t[A]}), "lm_head"),
        (lambda t: t.update({B.replace("weight", "bias"): t[A]}), "lora_B.bias"),
        (lambda t: t.update({A: np.full_like(t[A], np.nan)}), "not finite"),
        (lambda t: t.update({A: t[A][None]}), r"shape \[1, 3, 40\]"),
    ],
)
def test_tensors_that_are_no_lora_on_a_t5_are_one_sentence(adapter_folder, change, message):
    edit_weights(adapter_folder, change)
    with pytest.raises(PemtError, match=message):
        peft.import_adapter(adapter_folder)
    with pytest.raises(PemtError, match="it holds no tensors"):
        peft.from_peft({"peft_type": "LORA"}, {}, "it")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(B), "incomplete"),
        (
            lambda t: t.update({A: t[A][:, :39]}),
            r"lora_a \(39, 3\) .* beside encoder/layers_1/mlp/wo",
        ),
        (lambda t: t.update({B: t[B][:23]}), r"lora_b \(3, 23\) .* a prompt \(2, 24\)"),
        (
            lambda t: t.update(
                {n.replace("block.1.layer.1", "block.7.layer.1"): t[n] for n in (A, B)}
            ),
            "encoder/layers_7/mlp/wo, which the base lacks",
        ),
    ],
)
def test_what_does_not_fit_the_base_does_not_enter(
    adapter_folder, tmp_path, monkeypatch, change, message
):
    monkeypatch.setattr(importing, "vocabulary_rows", lambda request, t5, base: np.ones((2, 24)))
    edit_weights(adapter_folder, change)
    with pytest.raises(PemtError, match=message):
        import_peft(
            Request(
                tmp_path / "library", "x", adapter_folder, base=str(DATA / "hf_t5_1_0"), prompt="x"
            )
        )
    assert not (tmp_path / "library" / "x").exists()


def test_files_that_are_missing_or_damaged_are_one_sentence(adapter_folder, tmp_path):
    def fails(message, kind=PemtError):
        with pytest.raises(kind, match=message):
            peft.import_adapter(adapter_folder)

    weights, config = (adapter_folder / name for name in (peft.TENSORS, peft.CONFIG))
    whole, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[:-9])
    fails("truncated")
    weights.unlink()
    fails("no weight file")
    weights.write_bytes(whole)
    for content, message in (("{", "is no JSON"), ("[1]", "a list"), ("[" * 9999, "JSON")):
        config.write_text(content)
        fails(message)
    config.unlink()
    fails("no adapter_config.json", UsageError)
    config.write_text(text)
    (adapter_folder / peft.OUR_CARD).write_text("{}")
    fails("no weight file .*pemt_prompt")
    save_weights(adapter_folder / peft.OUR_PROMPT, {"../prompt": np.ones((2, 2))})
    fails(r"holds \.\./prompt, expected")
    save_weights(adapter_folder / peft.OUR_PROMPT, {library.PROMPT: np.ones((2, 2))})
    fails("pemt_card.json is damaged or edited by hand")
    write_card(adapter_folder / peft.OUR_CARD, Card("target", "adapter", "t", ""))
    fails("the card of a target, expected an expert's")


def test_a_base_and_a_prompt_are_asked_for(adapter_folder, tmp_path):
    base = str(DATA / "hf_t5_1_0")
    with pytest.raises(UsageError, match="expected --base"):
        import_peft(Request(tmp_path, "x", adapter_folder))
    with pytest.raises(UsageError, match="expected --prompt"):
        import_peft(Request(tmp_path, "x", adapter_folder, base=base))
    with pytest.raises(UsageError, match="no vocabulary .*spiece.model"):
        import_peft(Request(tmp_path, "x", adapter_folder, base=base, prompt="x"))
    random_expert(tmp_path / "library", "hf_t5_1_0")
    folder = export(tmp_path / "library", tmp_path / "peft")
    with pytest.raises(UsageError, match="a prompt of its own"):
        import_peft(Request(tmp_path, "x", folder, prompt="x"))
    with pytest.raises(PemtError, match="trained on the base 'hf_t5_1_0' .* found"):
        shutil.copytree(base, tmp_path / "other")
        tensors = load_weights(tmp_path / "other" / "model.safetensors")
        save_weights(
            tmp_path / "other" / "model.safetensors",
            tensors | {"shared.weight": tensors["shared.weight"] + 1},
        )
        import_peft(Request(tmp_path, "x", folder, base=str(tmp_path / "other")))
    with pytest.raises(UsageError, match="exists already"):
        import_peft(Request(tmp_path / "library", "movies", folder))


@pytest.mark.parity
def test_old_adapters_in_torch_files_are_read(adapter_folder):
    torch = pytest.importorskip("torch", reason='needs pip install "pemt_jax[torch]"')
    before = peft.import_adapter(adapter_folder).lora
    tensors = load_weights(adapter_folder / peft.TENSORS)
    torch.save(
        {name: torch.tensor(array) for name, array in tensors.items()},
        adapter_folder / peft.OLD_TENSORS,
    )
    (adapter_folder / peft.TENSORS).unlink()
    after = peft.import_adapter(adapter_folder).lora
    assert all(np.array_equal(after[path], array) for path, array in before.items())
