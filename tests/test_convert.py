"""Conversion: the same bits under another name, complete or not at all, in little memory."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_system import snapshot

from pemt_jax import convert
from pemt_jax.common.errors import PemtError
from pemt_jax.common.hashing import fingerprint
from pemt_jax.common.lazy_array import LazyArray
from pemt_jax.common.weights import load_weights
from pemt_jax.config import T5Config
from pemt_jax.interop import hf, hf_names, t5x
from pemt_jax.interop.base import load_base

DATA = Path(__file__).parent / "data"
GATED, PLAIN = ("gelu", "linear"), ("relu",)


def random_model(tied=True, activations=PLAIN, seed=0):
    """A T5 of any kind, its numbers exact in bfloat16 so that no format rounds them."""
    config = T5Config(
        vocab_size=40,
        emb_dim=12,
        num_heads=2,
        head_dim=5,
        mlp_dim=14,
        num_encoder_layers=2,
        num_decoder_layers=1,
        mlp_activations=activations,
        logits_via_embedding=tied,
    )
    random = np.random.default_rng(seed)
    return config, {
        entry.path: random.integers(-99, 99, entry.shape).astype(np.float32)
        for entry in hf_names.parameter_table(config)
    }


@pytest.fixture
def run(capsys):
    """Run the command; return its exit code and its error message, one sentence."""

    def run(*flags):
        code = convert.main([str(flag) for flag in flags])
        out, err = capsys.readouterr()
        assert bool(err) == bool(code) and len(err.splitlines()) <= 1
        return code, err

    return run


@pytest.fixture
def base(tmp_path):
    """A Hugging Face folder with its vocabulary."""
    folder = tmp_path / "base"
    hf.save_hf(folder, *random_model(tied=False, activations=GATED), "float32")
    (folder / "spiece.model").write_bytes(b"pieces")
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("activations", [PLAIN, GATED], ids=["relu", "gated"])
def test_round_trips_are_equal_to_the_bit(tmp_path, run, activations, tied, dtype):
    config, params = random_model(tied, activations)
    hf.save_hf(tmp_path / "hf", config, params, dtype)
    t5x.save_t5x(tmp_path / "t5x" / "checkpoint_0", params, dtype)
    for first, other in (("hf", "t5x"), ("t5x", "hf")):
        between, back = tmp_path / f"{first}-{other}", tmp_path / f"{first}-{other}-{first}"
        assert run("--from", tmp_path / first, "--to", between, "--format", other) == (0, "")
        assert run("--from", between, "--to", back, "--format", first) == (0, "")
        (back / ("checkpoint_0" if first == "t5x" else "") / "SHA256SUMS").unlink()
        assert snapshot(back) == snapshot(tmp_path / first)
        config_between, params_between = load_base(between)
        assert config_between == config and fingerprint(params_between) == fingerprint(params)


def test_dtype_and_vocabulary(tmp_path, run, base):
    assert not run("--from", base, "--to", tmp_path / "run", "--format", "t5x")[0]
    assert (tmp_path / "run" / "spiece.model").read_bytes() == b"pieces"
    assert not run(
        "--from",
        tmp_path / "run",
        "--to",
        tmp_path / "half",
        "--format",
        "hf",
        "--dtype",
        "bfloat16",
    )[0]
    assert (tmp_path / "half" / "spiece.model").read_bytes() == b"pieces"
    stored = load_weights(tmp_path / "half" / "model.safetensors")
    assert {str(array.dtype) for array in stored.values()} == {"bfloat16"}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert fingerprint(load_base(tmp_path / "half")[1]) == fingerprint(load_base(base)[1])


@pytest.mark.parametrize(
    "form, name",
    [
        ("hf", "model.safetensors"),
        ("t5x", "checkpoint_0/checkpoint"),
        ("t5x", "checkpoint_0/target.token_embedder.embedding/0.0"),
    ],
)
def test_a_damaged_conversion_is_refused(tmp_path, run, base, form, name):
    assert not run("--from", base, "--to", tmp_path / "made", "--format", form)[0]
    content = (tmp_path / "made" / name).read_bytes()
    (tmp_path / "made" / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(PemtError, match=f"{name} is damaged or exchanged: .* in its SHA256SUMS"):
        load_base(tmp_path / "made")


def test_a_checkpoint_beside_others(tmp_path, run, base):
    (tmp_path / "run" / "checkpoint_3").mkdir(parents=True)
    place = tmp_path / "run" / "checkpoint_5"
    for _ in range(2):  # the second replaces the first
        assert not run("--from", base, "--to", place, "--format", "t5x")[0]
    assert (place / "checkpoint").is_file() and (tmp_path / "run" / "checkpoint_3").is_dir()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoint_3", "checkpoint_5"}


def test_nothing_is_overwritten_that_was_not_written_here(tmp_path, run, base):
    t5x_run = tmp_path / "trained"
    config, params = random_model()
    t5x.save_t5x(t5x_run / "checkpoint_0", params)
    (t5x_run / "checkpoint_0" / "state.param_states.step").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "precious.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    mine = tmp_path / "mine"
    assert not run("--from", base, "--to", mine, "--format", "hf")[0]
    (mine / "README.md").write_text("precious")
    (tmp_path / "pieces").mkdir()
    (tmp_path / "pieces" / "tokenizer.json").write_text("precious")
    (tmp_path / "odd" / "model.safetensors").mkdir(parents=True)
    (tmp_path / "odd" / "model.safetensors" / "precious.txt").write_text("precious")
    assert not run("--from", base, "--to", tmp_path / "added", "--format", "t5x")[0]
    assert not run("--from", base, "--to", tmp_path / "added", "--format", "t5x")[0]  # its own
    (tmp_path / "added" / "checkpoint_0" / "target.foo").mkdir()
    (tmp_path / "added" / "checkpoint_0" / "target.foo" / "precious.txt").write_text("precious")
    before = snapshot(tmp_path)
    for target, form, message in [
        (t5x_run, "t5x", "'checkpoint_0'"),
        (t5x_run / "checkpoint_0", "t5x", "'checkpoint'"),
        (tmp_path / "pieces", "hf", "'tokenizer.json'"),
        (tmp_path / "odd", "hf", "'model.safetensors'"),
        (tmp_path / "added", "t5x", "'checkpoint_0/target.foo'"),
        (t5x_run, "hf", "'checkpoint_0'"),
        (tmp_path / "notes", "hf", "'precious.txt'"),
        (mine, "hf", "'README.md'"),
        (tmp_path / "file", "hf", "is a file or a link"),
        (tmp_path / "link", "hf", "is a file or a link"),
        (base, "hf", "is or contains the source"),
        (tmp_path, "t5x", "is or contains the source"),
        ("gx://bucket/model", "t5x", "expected a folder, or one of gs://"),
    ]:
        code, said = run("--from", base, "--to", target, "--format", form)
        assert code == 2 and message in said, said
    assert snapshot(tmp_path) == before


def test_wrong_use_is_one_sentence(tmp_path, run, base):
    to = tmp_path / "new"
    for flags, message in [
        (("--from", base, "--to", to, "--format", "t5"), "nearest: 't5x'"),
        (("--from", base, "--to", to, "--format", "hf", "--dtype", "float23"), "'float32'"),
    ]:
        code, said = run(*flags)
        assert code == 2 and message in said
    assert not to.exists()


def test_an_unfit_source_leaves_nothing_behind(tmp_path, run, base):
    path = base / "model.safetensors"
    whole = path.read_bytes()
    tampered = bytearray(whole)
    tampered[8:9] = b"?"
    before = {p.name for p in tmp_path.iterdir()}
    for content in (whole[:-9], bytes(tampered), b""):
        path.write_bytes(content)
        code, said = run("--from", base, "--to", tmp_path / "new", "--format", "t5x")
        assert code == 1 and "model.safetensors" in said
    code, said = run("--from", tmp_path / "bases", "--to", tmp_path / "new", "--format", "hf")
    assert code == 1 and "nearest: 'base'" in said
    # A fault that shows only when a part has been written.
    config, params = random_model()
    folder = tmp_path / "theirs" / "checkpoint_0"
    t5x.save_t5x(folder, params)
    (folder / "target.encoder.layers_1.mlp.wo.kernel" / "0.0").unlink()
    code, said = run("--from", folder, "--to", tmp_path / "new", "--format", "hf")
    assert code == 1 and "damaged" in said
    assert {p.name for p in tmp_path.iterdir()} == before | {"theirs"}


def test_help_is_printed_by_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "pemt_jax.convert", "--help"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "--format hf|t5x" in done.stdout and not done.stderr


# Not getrusage: its maximum is inherited from the process that starts this one.
MEASURE = """
import re, sys
from pemt_jax import convert
import pemt_jax.interop.convert  # what it imports is not measured
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
before = peak()
code = convert.main(sys.argv[1:])
print(code, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_is_a_few_times_the_largest_array_whatever_the_model(tmp_path):
    width = 1024
    config = T5Config(
        vocab_size=16 * width,
        emb_dim=width,
        num_heads=16,
        head_dim=64,
        mlp_dim=2048,
        num_encoder_layers=6,
        num_decoder_layers=4,
        mlp_activations=GATED,
        logits_via_embedding=False,
    )
    random = np.random.default_rng(0)

    def draw(shape):
        return LazyArray(
            shape, np.dtype(np.float32), lambda index: random.random(shape, dtype=np.float32)[index]
        )

    params = {entry.path: draw(entry.shape) for entry in hf_names.parameter_table(config)}
    sizes = [4 * int(np.prod(array.shape)) for array in params.values()]
    hf.save_hf(tmp_path / "base", config, params, None, shard_bytes=10**8)
    assert len(list((tmp_path / "base").glob("model-*.safetensors"))) >= 4
    assert sum(sizes) > 6 * max(sizes)
    for source, target, form, *flags in [
        ("base", "t5x", "t5x"),
        ("t5x", "back", "hf"),
        ("base", "half", "hf", "--dtype", "bfloat16"),
    ]:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                MEASURE,
                "--from",
                tmp_path / source,
                "--to",
                tmp_path / target,
                "--format",
                form,
                *flags,
            ],
            capture_output=True,
            text=True,
            timeout=300,
        )
        code, extra = map(int, done.stdout.split()[-2:])
        print(f"{source} to {target}: {extra / max(sizes):.2f} times the largest array")
        assert code == 0 and max(sizes) / 2 < extra < 3 * max(sizes), done.stdout
    shutil.rmtree(tmp_path)
