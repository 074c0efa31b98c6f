"""Reads that fail for another reason than damage."""

import errno
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from pemt_jax.checkpoints import manifest as manifests
from pemt_jax.checkpoints.manager import Checkpoints
from pemt_jax.checkpoints.newest import restore_newest
from pemt_jax.checkpoints.restore import DamagedCheckpoint
from pemt_jax.common.errors import PemtError


def state_of(value):
    return {"step": jnp.int32(value), "trainable": {"w": jnp.full((40, 30), float(value))}}


class Restored:
    """What restore_newest needs of a trainer."""

    def restore(self, checkpoints, step):
        self.state = checkpoints.restore(step, state_of(0))


@pytest.fixture
def folder(tmp_path):
    with Checkpoints(tmp_path / "kept", {"run": 1}) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, state_of(step))
    return tmp_path / "kept"


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def assert_failure(folder, reason):
    """Restoring ends with one sentence that is not about damage, and every file stays."""
    before = contents(folder)
    with Checkpoints(folder, {"run": 1}) as checkpoints:
        with pytest.raises(PemtError) as error:
            restore_newest(Restored(), checkpoints)
    assert not isinstance(error.value, DamagedCheckpoint) and error.value.exit_code == 1
    assert str(error.value) == f"{folder / '20'} cannot be read: {reason}."
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (OSError(errno.ESTALE, "Stale file handle"), os.strerror(errno.ESTALE)),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (MemoryError(), "out of memory"),
        (ExceptionGroup("reads", [ValueError(), MemoryError()]), "out of memory"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
            "resource exhausted",
        ),
        (
            ValueError(
                'UNKNOWN: Error reading "w/0.0" in "x": [OS error 5: EIO Input/output error]'
            ),
            "Input/output error",
        ),
        (ValueError("UNAVAILABLE: the bucket does not answer"), "unavailable"),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value)[:30],
)
def test_a_failed_read_is_an_error_and_not_damage(folder, monkeypatch, capfd, error, reason):
    def fail(*_, **__):
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("a layer above") from cause

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", fail)
    assert_failure(folder, reason)
    assert capfd.readouterr().err == ""


def test_memory_that_runs_out_while_checking_is_not_damage(folder, monkeypatch):
    def fail(_):
        raise MemoryError

    monkeypatch.setattr(manifests, "leaf_record", fail)
    assert_failure(folder, "out of memory")


def test_a_folder_that_goes_away_while_it_is_read_is_not_damage(folder, monkeypatch):
    restore, before = ocp.PyTreeCheckpointHandler.restore, contents(folder)

    def unmounted(*args, **kwargs):
        (folder / "20").rename(folder.parent / "away")
        return restore(*args, **kwargs)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", unmounted)
    with Checkpoints(folder, {"run": 1}) as checkpoints:
        with pytest.raises(PemtError, match="20 cannot be read: No such file or dir") as error:
            restore_newest(Restored(), checkpoints)
    assert not isinstance(error.value, DamagedCheckpoint)
    (folder.parent / "away").rename(folder / "20")
    assert contents(folder) == before


@pytest.mark.parametrize("unreadable", ["kept", "kept/20/manifest/metadata"])
def test_a_folder_that_cannot_be_listed_or_read_is_not_opened(folder, monkeypatch, unreadable):
    """A run in it would start anew, or set aside what is complete."""
    path = folder.parent / unreadable
    before = contents(folder)

    def refusing(function):
        def call(argument, *args, **kwargs):
            if Path(argument) == path:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return function(argument, *args, **kwargs)

        return call

    for owner, name in (
        (os, "listdir"),
        (os, "scandir"),
        (Path, "read_bytes"),
        (Path, "read_text"),
    ):
        monkeypatch.setattr(owner, name, refusing(getattr(owner, name)))
    with pytest.raises(PemtError) as error:
        Checkpoints(folder, {"run": 1})
    assert str(error.value) == f"{path} cannot be read: Permission denied."
    monkeypatch.undo()
    assert contents(folder) == before


@pytest.mark.slow
def test_files_that_are_missing_or_of_another_kind_are_damage(folder, capfd):
    for break_it in (
        lambda step: shutil.rmtree(step / "state"),
        lambda step: shutil.rmtree(step / "state" / "d"),
        lambda step: [(p.unlink(), p.mkdir()) for p in (step / "state" / "d").iterdir()],
        lambda step: [(p.unlink(), p.symlink_to(p)) for p in (step / "state" / "d").iterdir()],
    ):
        broken = shutil.copytree(folder, folder.parent / "broken")
        break_it(broken / "20")
        with Checkpoints(broken, {"run": 1}) as checkpoints:
            trainer = Restored()
            assert restore_newest(trainer, checkpoints)[0] == 10
            assert int(trainer.state["step"]) == 10
            assert checkpoints.steps() == [10]
        assert "is damaged: the bytes of step and 1 more differ" in capfd.readouterr().err
        shutil.rmtree(broken)
