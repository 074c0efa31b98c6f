"""T5X's checkpoints in and out, against checkpoints and logits that T5X made (data/)."""

import json
import shutil
import tarfile
from pathlib import Path

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pemt_jax.common.errors import PemtError
from pemt_jax.common.hashing import fingerprint
from pemt_jax.config import PemtConfig
from pemt_jax.interop import t5x
from pemt_jax.interop.base import load_base
from pemt_jax.model.network import Transformer

DATA = Path(__file__).parents[1] / "data"
VERSIONS, FORMS = ["t5x_1_0", "t5x_1_1"], ["legacy", "orbax"]
KERNEL = "encoder/layers_0/attention/query/kernel"


def unpack(folder: Path, version: str, form: str) -> Path:
    """A run folder with T5X's own checkpoint_4."""
    with tarfile.open(DATA / f"{version}_{form}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(params=FORMS)
def run(request, tmp_path):
    """A T5X run with a T5 1.1, to damage."""
    return unpack(tmp_path / "run", "t5x_1_1", request.param)


@pytest.fixture
def ours(tmp_path):
    """A checkpoint that we wrote, to damage."""
    _, params = load_base(unpack(tmp_path / "theirs", "t5x_1_0", "legacy"))
    t5x.save_t5x(tmp_path / "ours" / "checkpoint_0", params)
    return tmp_path / "ours" / "checkpoint_0"


def sentence(path) -> str:
    with pytest.raises(PemtError) as caught:
        load_base(path)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


@pytest.mark.parametrize("field", ["shape", "chunks"])
def test_an_array_that_no_memory_can_hold_is_refused_before_it_is_read(ours, field):
    file = ours / "target.token_embedder.embedding" / ".zarray"
    facts = json.loads(file.read_text())
    facts[field][0] = 10**15
    file.write_text(json.dumps(facts))
    assert "takes at least" in sentence(ours) and "GiB that are here" in sentence(ours)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("version", VERSIONS)
def test_logits_equal_t5x(version, form, tmp_path):
    config, flat = load_base(unpack(tmp_path, version, form))
    assert config.logits_via_embedding == (version == "t5x_1_0")
    assert (config.num_heads, config.head_dim) == (2, 3)
    with np.load(DATA / f"{version}.npz") as file:
        inputs, targets, expected = file["inputs"], file["targets"], file["logits"]
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    logits = jax.jit(Transformer(config, PemtConfig()).apply)(
        {"params": params}, inputs, shifted, targets, np.ones(len(inputs))
    )
    real = targets > 0
    np.testing.assert_allclose(logits[real], expected[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_written_is_the_same_model(version, dtype, tmp_path):
    config, flat = load_base(unpack(tmp_path, version, "orbax"))
    folder = tmp_path / "new" / "checkpoint_7"
    t5x.save_t5x(folder, flat, dtype, step=7)
    config_again, again = load_base(folder)
    assert config_again == config
    if dtype == "float32":
        assert fingerprint(again) == fingerprint(flat)
        t5x.save_t5x(tmp_path / "again" / "checkpoint_7", again, step=7)
        names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        for name in names:
            assert (tmp_path / "again" / "checkpoint_7" / name).read_bytes() == (
                folder / name
            ).read_bytes()
    for path, array in flat.items():
        np.testing.assert_allclose(again[path], array, rtol=2**-8, err_msg=path)
        assert again[path].dtype == np.float32 and again[path].flags.c_contiguous


def test_both_forms_are_one_model(tmp_path):
    prints = {fingerprint(load_base(unpack(tmp_path / form, "t5x_1_1", form))[1]) for form in FORMS}
    assert len(prints) == 1


@pytest.mark.parametrize("options", [{"use_ocdbt": False}, {"use_zarr3": True}], ids=str)
def test_other_forms_of_orbax(options, tmp_path, run):
    _, flat = load_base(run)
    tree = {
        "target": flax.traverse_util.unflatten_dict(flat, sep="/"),
        "state": {"step": np.int32(4), "param_states": {"m": np.ones(3, np.float32)}},
    }
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(tmp_path / "other" / "checkpoint_4" / "state", tree)
    assert fingerprint(load_base(tmp_path / "other")[1]) == fingerprint(flat)


def test_arrays_in_the_msgpack_file_itself(tmp_path, ours):
    whole = fingerprint(load_base(ours)[1])
    shutil.rmtree(ours / "target.encoder.encoder_norm.scale")
    tree = flax.serialization.msgpack_restore((ours / "checkpoint").read_bytes())
    _, params = load_base(tmp_path / "theirs")
    scale = params["encoder/encoder_norm/scale"]
    tree["optimizer"]["target"]["encoder"]["encoder_norm"]["scale"] = scale
    (ours / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))
    assert fingerprint(load_base(ours)[1]) == whole


def test_newest_finished_checkpoint_is_read(tmp_path, run):
    old = fingerprint(load_base(run)[1])
    new = unpack(tmp_path / "new", "t5x_1_0", "legacy")
    shutil.move(new / "checkpoint_4", run / "checkpoint_10")
    newest = fingerprint(load_base(run)[1])
    assert newest != old and fingerprint(load_base(run / "checkpoint_4")[1]) == old
    for unfinished in ("checkpoint_11", "checkpoint_12.orbax-checkpoint-tmp-1", "checkpoint_x"):
        (run / unfinished).mkdir()
    assert fingerprint(load_base(run)[1]) == newest
    assert fingerprint(load_base(run / "checkpoint_10" / "checkpoint")[1]) == newest


def test_arrays_are_found_beside_the_file_whatever_it_says(ours):
    """The file of a stranger could name any place."""
    whole = fingerprint(load_base(ours)[1])
    tree = flax.serialization.msgpack_restore((ours / "checkpoint").read_bytes())
    for leaf in ("query", "key"):
        spec = tree["optimizer"]["target"]["encoder"]["layers_0"]["attention"][leaf]["kernel"]
        spec["kvstore"] = {"driver": "file", "path": "/etc/passwd"}
    (ours / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))
    assert fingerprint(load_base(ours)[1]) == whole


def place_of(path: str) -> str:
    return f"target.{path.replace('/', '.')}"


def test_another_model_is_one_sentence(ours, tmp_path):
    for path, array, message in [
        (KERNEL, None, f"expected a parameter '{KERNEL}'"),
        ("encoder/layers_1/mlp/wo/kernel", None, "'encoder/layers_1/mlp/wo/kernel' is missing"),
        ("encoder/encoder_norm/scale", None, "'encoder/encoder_norm/scale' is missing"),
        (KERNEL, np.ones((10, 7), np.float32), "width 7 for 2 heads"),
        (KERNEL, np.ones((10, 2, 6), np.float32), "shape [10, 2, 6], expected 2 axes"),
        (
            "decoder/logits_dense/kernel",
            np.ones((10, 40), np.float32),
            "shape [10, 40], expected [10, 48]",
        ),
        (
            "decoder/layers_0/mlp/wo/kernel",
            np.ones((15, 10), np.float32),
            "shape [15, 10], expected [14, 10]",
        ),
        (
            "encoder/layers_0/mlp/gate/kernel",
            np.ones((10, 2), np.float32),
            "1 parameters that are no part of a T5, the first is "
            "'encoder/layers_0/mlp/gate/kernel'",
        ),
        (KERNEL, np.ones((10, 6), np.int32), "is of int32"),
    ]:
        other = tmp_path / "other" / "checkpoint_0"
        shutil.copytree(ours, other)
        if array is None:
            shutil.rmtree(other / place_of(path))
        else:
            t5x.save_t5x(other, {path: array})  # beside the others
        assert message in sentence(other), path
        shutil.rmtree(other)
    load_base(ours)


def test_damage_is_one_sentence(tmp_path, ours, run):
    chunk = ours / place_of(KERNEL) / "0.0"
    values = chunk.read_bytes()
    chunk.write_bytes(values[:-3])
    assert "damaged" in sentence(ours)
    chunk.unlink()  # tensorstore would make zeros of it
    assert "damaged" in sentence(ours)
    chunk.write_bytes(values)
    load_base(ours)
    (chunk.parent / ".zarray").write_text("{")
    assert "damaged" in sentence(ours)
    (ours / "checkpoint").write_bytes(b"\x81\xa1")
    assert "damaged" in sentence(ours)
    (ours / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1"')
    assert "TensorFlow checkpoint" in sentence(ours)
    for file in (*run.rglob("d/*"), *run.rglob("target.*/0*")):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "damaged" in sentence(run)


def test_no_checkpoint_is_one_sentence(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "file").write_text("precious")
    assert "is no model folder, expected a Hugging Face T5" in sentence(tmp_path / "run")
    assert "is no model folder" in sentence(tmp_path / "file")
    assert "nearest: 'run'" in sentence(tmp_path / "runs")
    with pytest.raises(PemtError, match="holds none, expected a T5X checkpoint"):
        t5x.open_t5x(tmp_path / "run")
    with pytest.raises(PemtError, match="does not exist"):
        t5x.open_t5x(tmp_path / "nothing")


def test_writing_where_it_cannot_is_one_sentence(tmp_path, ours):
    (tmp_path / "file").write_text("precious")
    _, params = load_base(ours)
    with pytest.raises(PemtError, match=r"^Cannot write .*\.$"):
        t5x.save_t5x(tmp_path / "file" / "checkpoint_0", params)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.t5x
@pytest.mark.parametrize("optimizer", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("version", VERSIONS)
def test_t5x_reads_what_we_write(version, optimizer, tmp_path):
    pytest.importorskip("t5x", reason="needs T5X, see pemt_jax/t5x/README.md")
    import seqio
    from t5x import adafactor, checkpoints, models, partitioning, utils
    from t5x.examples.t5 import network

    config, flat = load_base(unpack(tmp_path, version, "orbax"))
    path = tmp_path / "ours" / "checkpoint_7"
    t5x.save_t5x(path, flat, step=7)
    lazily = checkpoints.load_t5x_checkpoint(str(path))
    assert fingerprint(flax.traverse_util.flatten_dict(lazily["target"], sep="/")) == fingerprint(
        flat
    )

    vocabulary = seqio.PassThroughVocabulary(config.vocab_size)
    theirs = network.T5Config(
        vocab_size=config.vocab_size,
        emb_dim=config.emb_dim,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        mlp_dim=config.mlp_dim,
        num_encoder_layers=config.num_encoder_layers,
        num_decoder_layers=config.num_decoder_layers,
        mlp_activations=config.mlp_activations,
        logits_via_embedding=config.logits_via_embedding,
    )
    model = models.EncoderDecoderModel(
        network.Transformer(theirs), vocabulary, vocabulary, adafactor.Adafactor(0.1)
    )
    with jax.numpy_rank_promotion("allow"):
        initializer = utils.TrainStateInitializer(
            model.optimizer_def if optimizer else None,
            model.get_initial_variables,
            dict.fromkeys(
                (
                    "encoder_input_tokens",
                    "decoder_input_tokens",
                    "decoder_target_tokens",
                    "decoder_loss_weights",
                ),
                (2, 5),
            ),
            partitioning.PjitPartitioner(num_partitions=1),
        )
        restored = initializer.from_checkpoint(
            [
                utils.RestoreCheckpointConfig(
                    path=str(path),
                    mode="specific",
                    fallback_to_scratch=optimizer,
                    assignment_map=((r"^state/param_states.*$", None),) if optimizer else None,
                )
            ],
            init_rng=jax.random.key(0),
        )
    params = flax.traverse_util.flatten_dict(flax.core.unfreeze(restored.params), sep="/")
    assert fingerprint(params) == fingerprint(flat)
    assert int(restored.step) == 7
