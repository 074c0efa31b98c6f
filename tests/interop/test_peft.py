"""Experts and PEFT: equal numbers on both sides, bit-equal there and back, refusals that say why.

`data/peft_t5_1_0` was written by PEFT (data/make_peft_fixture.py); where PEFT is installed the
tests marked `parity` ask it itself.
"""

import json
import math
import shutil
import subprocess
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np
import pytest

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.hashing import fingerprint, sha256_file
from pemt_jax.common.weights import load_weights, save_weights
from pemt_jax.config import PemtConfig
from pemt_jax.interop import hf, peft
from pemt_jax.interop import import_expert as importing
from pemt_jax.interop.import_expert import Request, import_peft
from pemt_jax.library import expert as library
from pemt_jax.library.artefact import Card, write_card
from pemt_jax.library.transfer import check_expert_folder
from pemt_jax.model.network import Transformer

DATA = Path(__file__).parents[1] / "data"
VERSIONS = ["hf_t5_1_0", "hf_t5_1_1"]
FIXTURE = DATA / "peft_t5_1_0"
WO = "encoder.block.1.layer.1.DenseReluDense.wo"
A, B = (f"base_model.model.{WO}.lora_{letter}.weight" for letter in "AB")


def random_expert(folder, version, seed=0, ranks=(3,), layers=None):
    """An expert of the library on a base in tests/data; its ranks go round the layers."""
    config, base = hf.load_hf(DATA / version)
    rng = np.random.default_rng(seed)
    D, F = config.emb_dim, config.mlp_dim
    arrays = {library.PROMPT: rng.normal(size=(5, D)).astype(np.float32)}
    kernels = [path for path in sorted(base) if path.endswith("/wo/kernel")]
    for i, mlp in enumerate(path.removesuffix("/wo/kernel") for path in kernels[:layers]):
        R = ranks[i % len(ranks)]
        # As a checkpoint of PyTorch gives them: transposed views.
        arrays[f"{mlp}/expert/lora_a"] = rng.normal(size=(R, F)).astype(np.float32).T / F**0.5
        arrays[f"{mlp}/expert/lora_b"] = rng.normal(size=(D, R)).astype(np.float32).T
    library.save_expert(
        folder,
        "movies",
        arrays,
        Card(
            kind="expert",
            method="pemt_source",
            task="imdb",
            description="rate a movie: ü",
            base_fingerprint=fingerprint(base),
            base_name=version,
            metrics={"accuracy": 0.5},
            config={"seed": 3},
        ),
    )
    return arrays


def export(folder, to):
    peft.export_peft(
        to, library.load_expert(folder, "movies"), check_expert_folder(folder / "movies")
    )
    return to


def our_logits(version, expert_lora, inputs, targets):
    """Logits of our own T5 with a low-rank pair in the layers that have one."""
    config, flat = hf.load_hf(DATA / version)
    R = max(a.shape[1] for a, _ in expert_lora.values())
    for path in [path for path in flat if path.endswith("/wo/kernel")]:
        layer = path.removesuffix("/mlp/wo/kernel")
        a, b = expert_lora.get(
            f"{layer}/mlp/wo",
            (np.zeros((config.mlp_dim, 0), np.float32), np.zeros((0, config.emb_dim), np.float32)),
        )
        missing = R - a.shape[1]
        flat[f"{layer}/mlp/expert/lora_a"] = np.pad(a, ((0, 0), (0, missing)))
        flat[f"{layer}/mlp/expert/lora_b"] = np.pad(b, ((0, missing), (0, 0)))
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    model = Transformer(config, PemtConfig(source_expert=True, expert_rank=R))
    return jax.jit(model.apply)(
        {"params": flax.traverse_util.unflatten_dict(flat, sep="/")},
        inputs,
        shifted,
        targets,
        np.ones(len(inputs)),
    )


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


def test_an_adapter_of_peft_gives_the_logits_it_gives_there(tmp_path, monkeypatch):
    monkeypatch.setattr(
        importing, "vocabulary_rows", lambda request, t5, base: base["token_embedder/embedding"][:4]
    )
    import_peft(Request(tmp_path, "stranger", FIXTURE, base=str(DATA / "hf_t5_1_0"), prompt="x"))
    expert = library.load_expert(tmp_path, "stranger")
    assert sorted(expert.lora) == [
        f"{layer}/mlp/wo" for layer in ("decoder/layers_1", "encoder/layers_1", "encoder/layers_2")
    ]
    with np.load(FIXTURE / "expected.npz") as file:
        inputs, targets, expected = file["inputs"], file["targets"], file["logits"]
    logits = our_logits("hf_t5_1_0", expert.lora, inputs, targets)
    real = targets > 0
    np.testing.assert_allclose(logits[real], expected[real], rtol=0, atol=1e-5)


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


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("ranks, layers", [((3,), None), ((3, 1, 2), None), ((2,), 3)])
def test_library_to_peft_to_library_is_bit_equal(tmp_path, version, ranks, layers):
    arrays = random_expert(tmp_path / "library", version, ranks=ranks, layers=layers)
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
        ({"use_dora": True}, "use_dora = True"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes the base"),
        ({"something_of_2030": {"on": 1}}, "something_of_2030"),
        ({"r": 4}, "has rank 3 in .*, expected 4"),
        ({"r": "3"}, "'3' for the r"),
        ({"r": 0}, "0 for the r"),
        ({"lora_alpha": None}, "None for the lora_alpha"),
        ({"lora_alpha": math.inf}, "inf for the lora_alpha"),
        ({"rank_pattern": {"(a+)+$": 2}}, r"rank_pattern '\(a\+\)\+\$'"),
        ({"rank_pattern": [2]}, "rank_pattern"),
    ],
)
def test_a_config_that_is_no_plain_lora_is_one_sentence(adapter_folder, change, message):
    edit_config(adapter_folder, **change)
    with pytest.raises(PemtError, match=message) as caught:
        peft.import_adapter(adapter_folder)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def q(tensors):
    name = "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight"
    tensors[name] = tensors[A]


@pytest.mark.parametrize(
    "change, message",
    [
        (q, r"adapts 'encoder.block.0.layer.0.SelfAttention.q', expected .*DenseReluDense.wo"),
        (lambda t: t.update({A.replace("wo", "wi"): t[A]}), r"DenseReluDense.wi'"),
        (lambda t: t.update({A.replace("layer.1", "layer.2"): t[A]}), r"encoder.block.1.layer.2"),
        (lambda t: t.update({"base_model.model.lm_head.weight": t[A]}), "lm_head"),
        (lambda t: t.update({B.replace("weight", "bias"): t[A]}), "lora_B.bias"),
        (lambda t: t.update({A: np.full_like(t[A], np.nan)}), "not finite"),
        (lambda t: t.update({A: t[A][None]}), r"shape \[1, 3, 40\]"),
    ],
)
def test_tensors_that_are_no_lora_on_wo_are_one_sentence(adapter_folder, change, message):
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
    for content, message in (("{", "no readable JSON"), ("[1]", "a list"), ("[" * 9999, "JSON")):
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
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("ranks, layers", [((3,), None), ((4, 2), 3)])
def test_peft_and_transformers_give_our_logits(tmp_path, version, ranks, layers):
    torch = pytest.importorskip("torch", reason='needs pip install "pemt_jax[parity]"')
    theirs = pytest.importorskip("peft", reason='needs pip install "pemt_jax[parity]"')
    transformers = pytest.importorskip(
        "transformers", reason='needs pip install "pemt_jax[parity]"'
    )
    random_expert(tmp_path / "library", version, ranks=ranks, layers=layers)
    folder = export(tmp_path / "library", tmp_path / "peft")
    base = transformers.T5ForConditionalGeneration.from_pretrained(DATA / version)
    if version == "hf_t5_1_1":  # transformers 5 ties every T5, in 1.1 the two are different
        tensors = load_weights(DATA / version / "model.safetensors")
        base.lm_head.weight = torch.nn.Parameter(
            torch.tensor(tensors["lm_head.weight"].astype(np.float32))
        )
    # In float64, or half of the difference would be PyTorch's own rounding (7e-6 in 1.1).
    model = theirs.PeftModel.from_pretrained(base, folder).eval().double()
    with np.load(DATA / version / "expected.npz") as file:
        inputs, targets, plain = file["inputs"], file["targets"], file["logits"]
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(inputs),
            attention_mask=torch.tensor(inputs > 0).long(),
            decoder_input_ids=torch.tensor(shifted),
        ).logits.numpy()
    expert = library.load_expert(tmp_path / "library", "movies")
    logits = our_logits(version, expert.lora, inputs, targets)
    real = targets > 0
    assert np.abs(expected - plain)[real].max() > 0.1  # the adapter does something
    np.testing.assert_allclose(logits[real], expected[real], rtol=0, atol=1e-5)


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
