"""Hashing behind a save, and the checkpoints of an earlier version."""

import json
import tarfile
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.checkpoints import folder
from pemt_jax.checkpoints import manifest as manifests
from pemt_jax.checkpoints.manager import Checkpoints
from pemt_jax.checkpoints.restore import nested
from pemt_jax.common.errors import PemtError


def state_of(value):
    return {"step": jnp.int32(value), "trainable": {"w": jnp.full((40, 30), float(value))}}


def test_a_save_does_not_wait_for_the_hashes(tmp_path, monkeypatch):
    hashing, leaf_record = threading.Event(), manifests.leaf_record

    def late(array):
        assert hashing.wait(10), "save waited for a hash"
        return leaf_record(array)

    monkeypatch.setattr(manifests, "leaf_record", late)
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    with Checkpoints(tmp_path, {"run": 1}) as checkpoints:
        state = step(state_of(6))
        checkpoints.save(7, state)
        state = step(state)  # the training goes on in the same memory
        assert not (tmp_path / "7").exists()
        hashing.set()
        checkpoints.wait()
        monkeypatch.undo()
        found = checkpoints.restore(7, state_of(0))
    np.testing.assert_array_equal(found["trainable"]["w"], 7.0)
    np.testing.assert_array_equal(state["trainable"]["w"], 8.0)


def test_a_failure_while_hashing_leaves_no_checkpoint(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, {"run": 1}) as checkpoints:
        checkpoints.save(1, state_of(1))
        checkpoints.wait()

        def fail(_):
            raise MemoryError

        monkeypatch.setattr(manifests, "leaf_record", fail)
        with pytest.raises(PemtError, match="A checkpoint could not be written to .*: MemoryError"):
            checkpoints.save(2, state_of(2))
            checkpoints.wait()
        monkeypatch.undo()
    # A process that fails ends; in this one, orbax's threads may still write what was given up.
    while any(tmp_path.rglob("*.__lock")):
        time.sleep(0.05)
    with Checkpoints(tmp_path, {"run": 1}) as checkpoints:
        assert checkpoints.steps() == [1]


@pytest.fixture
def golden(tmp_path):
    """A checkpoint of stage 2 that commit 9ae7fb2 wrote, at step 10."""
    with tarfile.open(Path(__file__).with_name("checkpoint_9ae7fb2.tar.gz")) as archive:
        archive.extractall(tmp_path / "golden", filter="data")
    return tmp_path / "golden"


def test_a_checkpoint_of_an_earlier_version_is_read_and_written_alike(golden, tmp_path):
    text = (golden / "10/manifest/metadata").read_text()
    old = json.loads(text)
    t5 = old["identity"]["t5"]
    assert "remat_policy" not in t5  # a field that the configuration has got since
    identity = old["identity"] | {"t5": t5 | {"remat_policy": "none"}}
    target = nested(
        {
            path: jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"])
            for path, leaf in old["leaves"].items()
        }
    )
    with Checkpoints(golden, identity, "accuracy") as checkpoints:
        assert checkpoints.steps() == [10] and checkpoints.best_step() is None
        state = checkpoints.restore(10, target)
        trained = manifests.flatten_state(state["trainable"])
        step, values, metrics = checkpoints.restore_best(10, trained)
    assert int(state["step"]) == step == 10 and metrics == {}
    for path, value in values.items():
        np.testing.assert_array_equal(value, trained[path])
    details = {name: old[name] for name in ("progress", "window", "data_step", "seed", "versions")}
    with Checkpoints(tmp_path / "new", old["identity"], "accuracy") as checkpoints:
        checkpoints.save(10, state, **details)
    new = json.loads((tmp_path / "new/10/manifest/metadata").read_text())
    assert new == old  # the sha256 of the manifest too
    assert list(new) == list(old)
    assert text == json.dumps(old)


@pytest.mark.parametrize(
    "change, found",
    [
        ({"step": None}, "its step is None"),
        ({"identity": "x"}, "its identity is 'x'"),
        ({"leaves": [1]}, r"its leaves is \[1\]"),
        ({"metrics": ...}, "its metrics is None"),
        ({"score": "x"}, "its score is 'x'"),
        ({"score": {"value": "x"}}, "its score is"),
        ({"leaves": {"a": {"shape": [], "dtype": "int8"}}}, "its record of a has no sha256"),
        ({"leaves": {"a": "x"}}, "its record of a has no sha256"),
        (
            {"leaves": {"a": {"sha256": "", "shape": [], "dtype": "x"}}},
            "its record of a has the dtype 'x'",
        ),
    ],
)
def test_a_whole_manifest_of_another_version_is_one_sentence(tmp_path, change, found):
    facts = {"step": 3, "identity": {}, "leaves": {}, "metrics": {}, "score": {}} | change
    facts = {name: value for name, value in facts.items() if value is not ...}
    (tmp_path / "3" / "manifest").mkdir(parents=True)
    (tmp_path / "3" / "manifest" / "metadata").write_text(json.dumps(manifests.sealed(facts)))
    with pytest.raises(PemtError, match=f"metadata is of another version: {found}"):
        Checkpoints(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_folder_with_a_superscript_for_a_name_is_no_checkpoint(tmp_path):
    for name in ("10\u00b2", "\u0663", "1e1", "030"):
        (tmp_path / name).mkdir()
    assert folder.manifests(tmp_path) == {}
