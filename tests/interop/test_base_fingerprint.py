"""A base is hashed once, and again when one of its files has changed."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pemt_jax.common.errors import PemtError
from pemt_jax.common.hashing import fingerprint, write_checksums
from pemt_jax.common.lazy_array import lazy
from pemt_jax.interop import base, base_fingerprint, t5x
from pemt_jax.interop.base import identify_base, load_base

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def hashed(monkeypatch):
    """The bases that are hashed, by the number of their parameters."""
    found = []
    taken = lambda stored: found.append(len(stored)) or fingerprint(stored)  # noqa: E731
    monkeypatch.setattr(base, "fingerprint", taken)
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A base whose files are an hour old, and an empty cache."""
    monkeypatch.setenv("PEMT_JAX_CACHE", str(tmp_path / "cache"))
    path = shutil.copytree(DATA / "hf_t5_1_1", tmp_path / "base")
    age(path)
    return path


@pytest.fixture(scope="module")
def t5x_run(tmp_path_factory):
    """The same base as a run of T5X."""
    path = tmp_path_factory.mktemp("t5x")
    t5x.save_t5x(path / "checkpoint_3", load_base(DATA / "hf_t5_1_1")[1])
    write_checksums(path / "checkpoint_3")
    age(path)
    return path


def age(folder: Path, seconds: int = 3600) -> None:
    for file in folder.rglob("*"):
        then = file.stat().st_mtime - seconds
        os.utime(file, (then, then))


def flip(file: Path) -> None:
    """Change a number in a file of numbers."""
    content = bytearray(file.read_bytes())
    content[-2] ^= 64
    file.write_bytes(content)


def identify(path: Path) -> str:
    return identify_base(path, lambda name: np.dtype("bfloat16")).fingerprint


def test_a_base_is_hashed_once(folder, hashed, tmp_path, monkeypatch):
    expected = fingerprint(load_base(folder)[1])
    monkeypatch.chdir(tmp_path)  # whatever it is called
    assert [identify(path) for path in (folder, folder, Path("base"))] == [expected] * 3
    assert len(hashed) == 1
    shutil.rmtree(tmp_path / "cache")
    assert identify(folder) == expected and len(hashed) == 2


@pytest.mark.parametrize("change", ["time", "size", "numbers"])
def test_a_changed_file_is_hashed_again(folder, hashed, change):
    first, file = identify(folder), folder / "model.safetensors"
    if change == "time":
        os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 1))
    elif change == "size":  # of a file that is not read, but might be
        (folder / "spiece.model").write_bytes(b"pieces")
    else:
        flip(file)
    again = identify(folder)
    assert len(hashed) == 2
    assert (again == first) == (change != "numbers")


def test_what_was_written_just_now_is_not_trusted(folder, hashed):
    """Within one tick of the clock a file may change twice and look the same."""
    (folder / "config.json").touch()
    assert identify(folder) == identify(folder) and len(hashed) == 2


def test_another_base_under_the_same_path_is_hashed(folder, hashed):
    first = identify(folder)
    shutil.rmtree(folder)
    shutil.copytree(DATA / "hf_t5_1_0", folder)
    age(folder)
    assert identify(folder) != first and len(hashed) == 2


def test_a_damaged_note_and_a_cache_that_cannot_be_written_cost_time_only(folder, hashed, tmp_path):
    first = identify(folder)
    (note,) = (tmp_path / "cache" / "fingerprints").iterdir()
    assert json.loads(note.read_text())["fingerprint"] == first
    for content in ("", "[]", '{"facts": {}}'):
        note.write_text(content)
        assert identify(folder) == first
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file")
    assert identify(folder) == first and len(hashed) == 5


def test_damage_is_found_at_every_start(folder, hashed):
    write_checksums(folder)
    age(folder)
    identify(folder)
    flip(folder / "model.safetensors")
    age(folder)
    for _ in range(2):
        with pytest.raises(PemtError, match="model.safetensors is damaged or exchanged"):
            identify(folder)
    assert len(hashed) == 1


def test_a_t5x_checkpoint_is_hashed_again_for_any_of_its_files(folder, hashed, t5x_run):
    assert identify(t5x_run) == identify(t5x_run) == identify(folder)
    assert len(hashed) == 2
    flip(t5x_run / "checkpoint_3" / "target.encoder.encoder_norm.scale" / "0")
    with pytest.raises(PemtError, match="target.encoder.encoder_norm.scale/0 is damaged"):
        identify(t5x_run)


def test_a_sample_differs_between_trained_bases(folder):
    _, params = load_base(folder)
    same = {name: lazy(array.astype(np.float32)) for name, array in params.items()}
    assert base_fingerprint.sample(params) == base_fingerprint.sample(same)
    for name in ("encoder/encoder_norm/scale", "token_embedder/embedding"):
        other = params | {name: params[name] + np.float32(0.5)}
        assert base_fingerprint.sample(other) != base_fingerprint.sample(params)


def test_kept_parameters_are_those_stored_in_their_dtype(folder):
    _, params = load_base(folder)
    norm = "decoder/decoder_norm/scale"
    kept = identify_base(folder, lambda name: np.dtype("float32" if name == norm else "bfloat16"))
    assert kept.params.keys() == params.keys()
    for name, array in kept.params.items():
        assert array.dtype == ("float32" if name == norm else "bfloat16")
        np.testing.assert_array_equal(np.asarray(array), params[name].astype(array.dtype))
    rows = kept.embedding_rows([5, 0, 5])
    np.testing.assert_array_equal(rows, params["token_embedder/embedding"][[5, 0, 5]])
