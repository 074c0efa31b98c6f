"""Files and folders in a bucket: what a reader finds at any moment, and what failures become."""

import json
import os

import pytest
from bucket import bucket_folder_fixture, here, needed, served, storage_fixture  # noqa: F401

from pemt_jax.checkpoints.folder import check_supported
from pemt_jax.common import storage
from pemt_jax.common.buckets import path as buckets
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.hashing import sha256_file, verify_checksums, write_checksums
from pemt_jax.common.mirror import Mirror
from pemt_jax.training.metrics_log import MetricsLog, read_metrics

OLD, NEW = {"a": "old a", "sub/b": "old b"}, {"a": "new a", "c": "new c"}


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def write(folder, files):
    with storage.replacing_folder(folder) as partial:
        for name, text in files.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(text)


def content(folder):
    place = storage.current(folder)
    return {name: (place / name).read_text() for name in storage.files_in(place)}


def killed_at(monkeypatch, moment):
    """Let the writing operation of this number, and all after it, not happen."""
    made = []

    def counted(original):
        def operation(self, *args, **kwargs):
            made.append(original)
            if len(made) >= moment:
                raise Killed
            return original(self, *args, **kwargs)

        return operation

    for name in ("upload", "write_bytes", "copy_to", "unlink", "rmtree"):
        original = getattr(buckets.BucketPath, name)
        monkeypatch.setattr(buckets.BucketPath, name, counted(original))


def test_a_path_is_on_this_machine_or_in_a_bucket(bucket_folder):
    assert storage.path("runs/x") == storage.Path("runs/x")
    assert str(bucket_folder / "x" / "..") and str(bucket_folder.parent).startswith("gs://")
    assert storage.path(bucket_folder) == bucket_folder == storage.path(str(bucket_folder))
    assert bucket_folder.resolve() == bucket_folder.absolute() == bucket_folder
    assert os.fspath(bucket_folder) == str(bucket_folder)
    assert storage.absolute(bucket_folder) == str(bucket_folder)


@pytest.mark.parametrize(
    "url, sentence",
    [
        ("gx://b/x", "gx://b/x is on gx://, expected a folder, or one of gs://, s3://, az://"),
        ("az://b/x", "az://b/x needs adlfs, which is not installed, expected after pip install"),
        ("gs:///x", "gs:///x names no bucket, expected gs://BUCKET/PATH."),
    ],
)
def test_a_path_that_nothing_here_can_reach_is_one_sentence(monkeypatch, url, sentence):
    found = buckets.importlib.util.find_spec
    monkeypatch.setattr(
        buckets.importlib.util, "find_spec", lambda name: None if name == "adlfs" else found(name)
    )
    if url.startswith("gs://"):
        needed()
    with pytest.raises(UsageError) as raised:
        storage.path(url)
    assert str(raised.value).startswith(sentence)


def test_checkpoints_are_stored_on_a_disk_or_on_gs_only(tmp_path):
    check_supported(tmp_path)
    check_supported(buckets.BucketPath("gs://b/x"))
    with pytest.raises(UsageError, match="expected a folder or gs:// as MODEL_DIR"):
        check_supported(buckets.BucketPath("s3://b/x"))


def test_an_object_has_the_methods_of_a_file(bucket_folder):
    file = bucket_folder / "one.txt"
    assert not file.exists() and not file.is_file() and not bucket_folder.is_dir()
    with storage.replacing(file) as partial:
        partial.write_text("n\u00fc\n", encoding="utf-8")
    assert file.is_file() and not file.is_dir() and bucket_folder.is_dir()
    assert file.stat().st_size == 4 and file.read_text() == "n\u00fc\n"
    with file.open(encoding="utf-8") as lines:
        assert list(lines) == ["n\u00fc\n"]
    (bucket_folder / "sub" / "two").write_bytes(b"2")
    assert [path.name for path in bucket_folder.iterdir()] == ["one.txt", "sub"]
    assert [path.name for path in bucket_folder.glob("*.txt")] == ["one.txt"]
    assert storage.files_in(bucket_folder) == ["one.txt", "sub/two"]
    with storage.fetched(bucket_folder) as copy:
        assert (copy / "sub" / "two").read_bytes() == b"2"
    write_checksums(bucket_folder)
    verify_checksums(bucket_folder)
    assert len(sha256_file(file)) == 64
    file.write_text("other")
    with pytest.raises(PemtError, match="is damaged or exchanged"):
        verify_checksums(bucket_folder)
    file.unlink()
    assert not file.exists()


@pytest.mark.parametrize("moment", range(1, 12))
def test_a_kill_while_a_folder_is_replaced_leaves_the_old_or_the_new(
    bucket_folder, monkeypatch, moment
):
    folder = bucket_folder / "folder"
    write(folder, OLD)
    with monkeypatch.context() as killing:
        killed_at(killing, moment)
        try:
            write(folder, NEW)
            ended = True
        except Killed:
            ended = False
    assert content(folder) == (OLD if moment <= 5 else NEW)
    assert storage.folder_names(bucket_folder) == ["folder"]
    assert ended == (moment == 11)
    write(folder, {"a": "next"})
    assert content(folder) == {"a": "next"}
    assert storage.files_in(bucket_folder) == ["folder/a"]


@pytest.mark.parametrize("moment", range(1, 6))
def test_a_kill_while_a_folder_is_removed_leaves_all_of_it_or_nothing(
    bucket_folder, monkeypatch, moment
):
    folder = bucket_folder / "folder"
    write(folder, OLD)
    with monkeypatch.context() as killing:
        killed_at(killing, moment)
        with pytest.raises(Killed):
            storage.remove_folder(folder)
    assert content(folder) == (OLD if moment <= 2 else {})
    storage.recover(folder)
    if moment > 2:
        storage.check_free(folder)
        assert storage.files_in(bucket_folder) == []


def test_nothing_is_written_over_a_folder_that_is_there(bucket_folder):
    with storage.new_folder(bucket_folder / "x") as partial:
        (partial / "a").write_text("1")
    with pytest.raises(UsageError, match="exists already, expected a new name"):
        with storage.new_folder(bucket_folder / "x"):
            raise AssertionError
    with pytest.raises(ZeroDivisionError), storage.new_folder(bucket_folder / "y") as partial:
        (partial / "a").write_text("1")
        print(1 / 0)
    assert storage.files_in(bucket_folder) == ["x/a"]


def test_a_copy_follows_the_object(bucket_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PEMT_JAX_CACHE", str(tmp_path))
    (bucket_folder / "v").write_text("1")
    first = storage.local_copy(bucket_folder / "v")
    assert first.read_text() == "1" and storage.local_copy(bucket_folder / "v") == first
    (bucket_folder / "v").write_text("2")
    assert storage.local_copy(bucket_folder / "v").read_text() == "2"


def test_a_mirror_uploads_what_has_changed(bucket_folder, monkeypatch):
    mirror = Mirror(bucket_folder)
    (mirror.local / "a").write_text("1")
    mirror.upload(after=60)
    assert storage.files_in(bucket_folder) == []
    mirror.upload()
    with (mirror.local / "a").open("a") as file:
        file.write("2")
    (mirror.local / "b").write_text("b")
    mirror.upload()
    monkeypatch.setattr(buckets.BucketPath, "upload", None)  # there is nothing left to do
    mirror.upload()
    assert (bucket_folder / "a").read_text() == "12"
    mirror.close()
    assert not mirror.local.exists() and (bucket_folder / "b").read_text() == "b"


def test_lines_of_the_metrics_are_in_the_bucket_before_a_checkpoint_counts_on_them(bucket_folder):
    path = bucket_folder / "metrics.jsonl"
    with MetricsLog(bucket_folder, tensorboard=False) as log:
        for step in (5, 10):
            log.write(step, "train", {"loss": 1.0})
        log.flush()
        assert [row["step"] for row in read_metrics(path)] == [5, 10]
        log.write(15, "train", {"loss": 1.0})
        log._mirror.upload = lambda after=0: None  # the machine is lost here
    before = path.read_bytes()
    with MetricsLog(bucket_folder, tensorboard=False) as log:
        log.resume(5)
        assert path.read_bytes() == before
        log.write(10, "train", {"loss": 2.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [(5, 1.0), (10, 2.0)]


@pytest.mark.parametrize(
    "status, says",
    [(403, "the storage refuses it (403 Forbidden)"), (401, "does not accept the credentials")],
)
def test_a_bucket_that_refuses_is_one_sentence(tmp_path, status, says):
    needed()
    with served(tmp_path, faults=True) as bucket, here(bucket):
        folder = storage.path(f"{bucket.url}/x")
        write(folder, OLD)
        bucket.answer(status, writes_only=True)
        with pytest.raises(PemtError) as raised, storage.replacing(folder / "a") as partial:
            partial.write_text("new")
        assert str(raised.value).startswith(f"Cannot write {folder}/a: ") and says in str(
            raised.value
        )
        with pytest.raises(PermissionError):
            write(folder, NEW)
        assert content(folder) == OLD
        bucket.answer(status)
        with pytest.raises(PermissionError):
            (folder / "a").read_text()
        bucket.answer(None)
        with pytest.raises(FileNotFoundError):
            (folder / "nothing").read_bytes()


def test_a_server_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    needed()
    from gcsfs.core import GCSFileSystem

    with served(tmp_path, faults=True) as bucket, here(bucket):
        folder = storage.path(f"{bucket.url}/x")
        monkeypatch.setattr(GCSFileSystem, "_location", "http://127.0.0.1:9")  # nobody listens
        monkeypatch.setattr("gcsfs.retry.is_retriable", lambda error: False)
        with pytest.raises(OSError) as raised:
            folder.read_bytes()
    assert str(folder) in str(raised.value)
    assert raised.value.strerror.startswith("the storage does not answer (Cannot connect to host")


def test_a_folder_is_removed_beginning_with_what_makes_it_count(bucket_folder, monkeypatch):
    for name in ("1/a", "1/commit_success.txt", "1/sub/commit_success.txt", "1/z"):
        (bucket_folder / name).write_text(json.dumps(name))
    from pemt_jax.common.buckets.google import GoogleStorage

    removed, original = [], GoogleStorage._rm_file

    async def remove(self, path, **kwargs):
        removed.append(path.partition("/1/")[2])
        return await original(self, path, **kwargs)

    monkeypatch.setattr(GoogleStorage, "_rm_file", remove)
    (bucket_folder / "1").rmtree()
    assert removed[:2] == ["commit_success.txt", "sub/commit_success.txt"]
    assert set(removed) >= {"a", "z"} and not (bucket_folder / "1").exists()
