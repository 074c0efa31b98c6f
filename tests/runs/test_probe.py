"""The probe of MODEL_DIR and LIBRARY; several processes are in tests/parallel."""

import os

import pytest
from bucket import bucket_folder_fixture, here, needed, served, storage_fixture  # noqa: F401

from pemt_jax.checkpoints import agreement
from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.runs import probe as module
from pemt_jax.runs.probe import probe


def test_a_probe_leaves_nothing(tmp_path):
    (tmp_path / "library").mkdir()
    probe({"MODEL_DIR": tmp_path / "runs" / "x", "LIBRARY": tmp_path / "library"})
    assert os.listdir(tmp_path) == ["library"] and not os.listdir(tmp_path / "library")


def test_a_probe_leaves_nothing_in_a_bucket(bucket_folder):
    probe({"MODEL_DIR": bucket_folder / "x", "LIBRARY": bucket_folder})
    assert storage.files_in(bucket_folder) == []


@pytest.mark.parametrize(
    "status, error, says",
    [
        (403, UsageError, "(403 Forbidden), expected storage to write to."),
        (401, UsageError, "(401 Unauthorized), expected storage to write to."),
        (400, PemtError, "does not answer"),
    ],
)
def test_a_bucket_that_cannot_be_written_to_is_one_sentence(tmp_path, status, error, says):
    needed()
    with served(tmp_path, faults=True) as bucket, here(bucket):
        folder = storage.path(f"{bucket.url}/run")
        bucket.answer(status, writes_only=True)
        with pytest.raises(PemtError) as raised:
            probe({"MODEL_DIR": folder})
    assert type(raised.value) is error and says in str(raised.value)
    assert str(raised.value).startswith(f"The MODEL_DIR {folder} cannot be used: the storage ")


def test_the_failure_of_another_process_is_that_of_all(tmp_path, monkeypatch):
    other = [2, "The LIBRARY x cannot be used in process 1: read-only, expected storage."]
    monkeypatch.setattr(module, "everywhere", lambda failure: [failure, other])
    with pytest.raises(UsageError, match="in process 1"):
        probe({"MODEL_DIR": tmp_path / "x"})
    assert os.listdir(tmp_path) == []


def test_a_process_without_the_file_of_process_0_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module.jax, "process_index", lambda: 1)
    monkeypatch.setattr(module.jax, "process_count", lambda: 2)
    monkeypatch.setattr(module.processes, "from_first", lambda value: value)
    monkeypatch.setattr(module, "everywhere", lambda failure: [None, failure])
    with pytest.raises(UsageError) as raised:
        probe({"MODEL_DIR": tmp_path})
    assert str(raised.value) == (
        f"Process 1 does not see the MODEL_DIR {tmp_path} that process 0 sees, expected storage "
        "that all processes share."
    )
    assert os.listdir(tmp_path) == []


def test_what_one_process_says_is_heard_by_itself():
    assert agreement.everywhere({"a": [1]}) == [{"a": [1]}]
