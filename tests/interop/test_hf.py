"""Hugging Face folders in and out, against the numbers of its own PyTorch T5 (data/)."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np
import pytest

from pemt_jax import convert
from pemt_jax.common.errors import PemtError
from pemt_jax.common.hashing import fingerprint
from pemt_jax.common.weights import load_weights, save_weights
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.interop import hf, hf_config, hf_names
from pemt_jax.model.layers import relative_position_bucket
from pemt_jax.model.network import Transformer

DATA = Path(__file__).parents[1] / "data"
VERSIONS = ["hf_t5_1_0", "hf_t5_1_1"]


@pytest.fixture
def folder(tmp_path):
    """A T5 1.1 to damage."""
    return shutil.copytree(DATA / "hf_t5_1_1", tmp_path / "base")


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(folder, edit):
    tensors = load_weights(folder / "model.safetensors")
    edit(tensors)
    save_weights(folder / "model.safetensors", tensors)


@pytest.mark.parametrize("version", VERSIONS)
def test_logits_equal_hugging_face(version):
    config, flat = hf.load_hf(DATA / version)
    assert config.logits_via_embedding == (version == "hf_t5_1_0")
    assert config.num_heads * config.head_dim != config.emb_dim
    with np.load(DATA / version / "expected.npz") as file:
        inputs, targets, expected = file["inputs"], file["targets"], file["logits"]
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    logits = jax.jit(Transformer(config, PemtConfig()).apply)(
        {"params": params}, inputs, shifted, targets, np.ones(len(inputs))
    )
    # What stands behind the last target depends on how padding is attended to, and counts nowhere.
    real = targets > 0
    np.testing.assert_allclose(logits[real], expected[real], rtol=0, atol=1e-5)


def test_position_buckets_equal_hugging_face():
    with np.load(DATA / "hf_buckets.npz") as file:
        for name in set(file.files) - {"distances"}:
            way, buckets, distance = name.split("_")
            ours = relative_position_bucket(
                file["distances"], way == "both", int(buckets), int(distance)
            )
            np.testing.assert_array_equal(ours, file[name], err_msg=name)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_folder_is_the_same_model(version, dtype, tmp_path):
    config, flat = hf.load_hf(DATA / version)
    expert = {"encoder/layers_0/mlp/expert/lora_a": np.ones((40, 4), np.float32)}
    hf.save_hf(tmp_path / "new", config, flat | expert, dtype)
    config_again, again = hf.load_hf(tmp_path / "new")
    assert config_again == config
    if dtype == "float32":
        assert fingerprint(again) == fingerprint(flat)
    for path, array in flat.items():
        np.testing.assert_allclose(again[path], array, rtol=2**-8, err_msg=path)
        assert again[path].dtype == np.float32 and again[path].flags.c_contiguous


def test_checkpoints_that_people_have_load_alike(tmp_path):
    tensors = load_weights(DATA / "hf_t5_1_0" / "model.safetensors")
    config, flat = hf.load_hf(DATA / "hf_t5_1_0")
    shared = tensors["shared.weight"]
    without = {name: array for name, array in tensors.items() if name != "shared.weight"}
    variants = {
        "copies": tensors
        | {
            "encoder.embed_tokens.weight": shared,
            "lm_head.weight": shared,
            "decoder.embed_tokens.weight": shared,
        },
        "another name": without | {"decoder.embed_tokens.weight": shared},
        "wrapped": {f"model.{name}": array for name, array in tensors.items()},
        "first T5": tensors | {hf_names.UNREAD: np.ones((32, 3), np.float32)},
        "a head": tensors | {"classification_head.dense.weight": shared},
        "double": {name: array.astype(np.float64) for name, array in tensors.items()},
    }
    for name, variant in variants.items():
        assert fingerprint(hf_names.from_hf_names(config, variant)) == fingerprint(flat), name


def test_config_defaults_are_those_of_old_files(tmp_path):
    path = tmp_path / "config.json"
    sizes = {"vocab_size": 10, "d_model": 8, "d_ff": 16, "num_layers": 3, "num_heads": 2}
    path.write_text(json.dumps(sizes | {"num_decoder_layers": None}))
    assert hf_config.read_config(path) == T5Config(10, 8, 2, 64, 16, 3, 3)
    path.write_text(
        json.dumps(
            sizes
            | {
                "feed_forward_proj": "gated-gelu",
                "tie_word_embeddings": False,
                "num_decoder_layers": 1,
            }
        )
    )
    config = hf_config.read_config(path)
    assert config.mlp_activations == ("gelu", "linear") and config.num_decoder_layers == 1
    assert not config.logits_via_embedding
    path.write_text(json.dumps(sizes | {"model_type": "mt5"}))
    assert not hf_config.read_config(path).logits_via_embedding


def test_shards_are_read_by_their_index(folder):
    whole = fingerprint(hf.load_hf(folder)[1])
    tensors = load_weights(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {}
    for i, names in enumerate((list(tensors)[::2], list(tensors)[1::2])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save_weights(folder / file, {name: tensors[name] for name in names})
        index |= dict.fromkeys(names, file)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert fingerprint(hf.load_hf(folder)[1]) == whole
    for outside in ("../model.safetensors", "/etc/passwd", "..", "a\\b"):
        path.write_text(json.dumps({"weight_map": index | {"shared.weight": outside}}))
        with pytest.raises(PemtError, match="inside its own folder"):
            hf.load_hf(folder)
    missing = {"shared.weight": "model-00003-of-00002.safetensors"}
    path.write_text(json.dumps({"weight_map": index | missing}))
    with pytest.raises(PemtError, match="no weight file .*nearest: 'model-0000"):
        hf.load_hf(folder)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_large_model_is_written_in_shards(version, tmp_path, folder):
    config, flat = hf.load_hf(DATA / version)
    hf.save_hf(tmp_path / "new", config, flat, "float32")  # a whole file, which shards replace
    hf.save_hf(tmp_path / "new", config, flat, "float32", shard_bytes=20_000)
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "new").glob("*.safetensors"))
    assert files == [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    assert len(files) > 3 and set(index["weight_map"].values()) == set(files)
    sizes = [
        sum(array.nbytes for array in load_weights(tmp_path / "new" / file).values())
        for file in files
    ]
    assert max(sizes) <= 20_000 and sum(sizes) == index["metadata"]["total_size"]
    assert fingerprint(hf.load_hf(tmp_path / "new")[1]) == fingerprint(flat)


def test_opened_parameters_are_read_when_they_are_asked_for(folder):
    config, params = hf.open_hf(folder)
    whole = hf.load_hf(folder)[1]
    assert params.keys() == whole.keys()
    (folder / "model.safetensors").rename(folder / "moved")
    assert params["token_embedder/embedding"].shape == (48, 24)
    with pytest.raises(PemtError, match="no weight file"):
        np.asarray(params["token_embedder/embedding"])
    (folder / "moved").rename(folder / "model.safetensors")
    for path, array in whole.items():
        np.testing.assert_array_equal(np.asarray(params[path]), array)


def to_bin(folder: Path, torch, shards: int = 1) -> dict[str, str]:
    """Put the weights into PyTorch's own files instead; return where each tensor is."""
    tensors = load_weights(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i in range(shards):
        file = f"pytorch_model-{i + 1:05}-of-{shards:05}.bin" if shards > 1 else "pytorch_model.bin"
        part = {name: torch.tensor(tensors[name]) for name in list(tensors)[i::shards]}
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


@pytest.mark.parity
@pytest.mark.parametrize("shards", [1, 3])
def test_pytorch_files_are_read(folder, shards):
    torch = pytest.importorskip("torch", reason='needs torch: pip install "pemt_jax[torch]"')
    whole = fingerprint(hf.load_hf(folder)[1])
    to_bin(folder, torch, shards)
    assert fingerprint(hf.load_hf(folder)[1]) == whole


@pytest.mark.parity
def test_unfit_pytorch_files_are_one_sentence(folder):
    torch = pytest.importorskip("torch", reason='needs torch: pip install "pemt_jax[torch]"')
    weight_map = to_bin(folder, torch, 2)
    index = folder / "pytorch_model.bin.index.json"

    def refuse(message, **changes):
        index.write_text(json.dumps({"weight_map": weight_map | changes}))
        with pytest.raises(PemtError, match=message) as caught:
            hf.load_hf(folder)
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)

    refuse("no weight file", **{"shared.weight": "pytorch_model-00003-of-00002.bin"})
    refuse("inside its own folder", **{"shared.weight": "../evil.bin"})
    refuse("expected a .bin file", **{"shared.weight": "config.json"})
    first, second = sorted(set(weight_map.values()))
    whole = (folder / second).read_bytes()
    (folder / second).write_bytes(whole[: len(whole) // 2])
    refuse("truncated, damaged")

    class Hostile:
        def __reduce__(self):
            return open, (str(folder / "victim"), "w")

    torch.save({"shared.weight": Hostile()}, folder / second)
    refuse("asks to run .*nothing was executed")
    assert not (folder / "victim").exists()


def test_a_hostile_pickle_is_not_executed_with_torch_or_without(folder):
    """The command that meets one leaves nothing behind either."""

    class Hostile:
        def __reduce__(self):
            return open, (str(folder / "victim"), "w")

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"shared.weight": Hostile()}))
    with pytest.raises(PemtError, match="needs torch|asks to run|truncated, damaged"):
        hf.load_hf(folder)
    target = folder.parent / "new"
    assert convert.main(["--from", str(folder), "--to", str(target), "--format", "hf"]) == 1
    assert not (folder / "victim").exists() and not target.exists()


def test_without_torch_the_sentence_says_how_to_get_it(folder, monkeypatch):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(PemtError, match=r'pip install "pemt_jax\[torch\]"'):
        hf.load_hf(folder)


def drop(name):
    return lambda folder: edit_weights(folder, lambda tensors: tensors.pop(name))


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def extra_block(folder):
    name = "encoder.block.9.layer.0.layer_norm.weight"
    edit_weights(folder, lambda tensors: tensors.update({name: np.ones(24, np.float32)}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.move(folder, folder.parent / "bases"), "no model folder .*'bases'"),
        (lambda folder: (folder / "config.json").unlink(), "no file .*config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is no JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json holds a list"),
        (lambda folder: edit_config(folder, d_model="wide"), "d_model = 'wide'"),
        (lambda folder: edit_config(folder, d_model=32), r"\[48, 24\], expected \[48, 32\]"),
        (lambda folder: edit_config(folder, vocab_size=50), r"\[48, 24\], expected \[50, 24\]"),
        (lambda folder: edit_config(folder, num_layers=4), "'encoder.block.3.* is missing"),
        (lambda folder: edit_config(folder, model_type="bert"), "type 'bert'"),
        (lambda folder: edit_config(folder, dense_act_fn="tanh"), "with activation 'tanh'"),
        (lambda folder: edit_config(folder, layer_norm_epsilon=1e-5), "layer_norm_epsilon"),
        (
            lambda folder: edit_config(folder, scale_decoder_outputs=None),
            "'lm_head.weight' .* differ",
        ),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "tf_model.h5"),
            "Expected model.safetensors .* found tf_model.h5",
        ),
        (drop("encoder.final_layer_norm.weight"), "'encoder.final_layer_norm.weight' is missing"),
        (drop("shared.weight"), "'shared.weight' is missing"),
        (extra_block, "does not account for.*'encoder.block.9"),
        (truncate, "truncated"),
    ],
)
def test_unfit_folder_is_one_sentence(folder, damage, message):
    damage(folder)
    with pytest.raises(PemtError, match=message) as caught:
        hf.load_hf(folder)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_saving_needs_every_parameter(tmp_path):
    config, flat = hf.load_hf(DATA / "hf_t5_1_0")
    wrong = dict(flat)
    del wrong["encoder/encoder_norm/scale"]
    with pytest.raises(PemtError, match="'encoder/encoder_norm/scale' is missing"):
        hf.save_hf(tmp_path / "new", config, wrong)
    wrong = flat | {"encoder/encoder_norm/scale": np.ones(3, np.float32)}
    with pytest.raises(PemtError, match=r"shape \[3\], expected \[24\]"):
        hf.save_hf(tmp_path / "new", config, wrong)
    assert not (tmp_path / "new").exists()
