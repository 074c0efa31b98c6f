"""A lease has one holder, and passes on when that process or its machine is gone."""

import json
import os
import signal
import threading
import time

import pytest
from bucket import bucket_folder_fixture, storage_fixture  # noqa: F401

from pemt_jax.common.errors import UsageError
from pemt_jax.common.writing import holder, lease
from pemt_jax.common.writing.disk_lease import DiskLease

ELSEWHERE = {"host": "other", "pid": 7, "since": "then", "boot": "another", "token": "x"}


@pytest.fixture(params=["disk", "bucket"])
def file(request, tmp_path):
    if request.param == "disk":
        return tmp_path / "run" / "run.lock"
    return request.getfixturevalue("bucket_folder") / "run.lock"


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.05)
    monkeypatch.setattr(holder, "EXPIRES", 0.5)
    monkeypatch.setattr(lease, "POLL", 0.05)


def leave(file, holder, age=0.0):
    """What a holder has left that is not of this machine."""
    text = json.dumps(holder)
    if "://" in str(file):
        file.with_name("run.lock.3").write_text(text)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        os.utime(file, (time.time() - age,) * 2)


def test_a_second_holder_is_refused_by_a_sentence_with_the_first_until_that_ends(file):
    with lease.held(file, "The run"):
        with pytest.raises(
            UsageError, match=rf"The run is in use by process {os.getpid()} on \S+ s"
        ):
            with lease.held(file, "The run"):
                pass
    with lease.held(file, "The run"):
        pass


def test_nothing_is_left_on_a_disk(tmp_path):
    with lease.held(tmp_path / "run.lock", "The run"):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    assert not any(tmp_path.iterdir())


def test_a_killed_holder_of_this_machine_does_not_count(tmp_path):
    file, (reading, writing) = tmp_path / "run.lock", os.pipe()
    if not (pid := os.fork()):
        with lease.held(file, "The run"):
            os.write(writing, b"x")
            time.sleep(60)
    os.read(reading, 1)
    with pytest.raises(holder.Held, match=f"process {pid} "):
        with lease.held(file, "The run"):
            pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert file.exists()
    with lease.held(file, "The run"):
        assert json.loads(file.read_text())["pid"] == os.getpid()


def test_an_ended_process_of_this_machine_does_not_count_in_a_bucket(bucket_folder):
    leave(bucket_folder / "run.lock", holder.this_process() | {"pid": 2**22 + 1})
    with lease.held(bucket_folder / "run.lock", "The run"):
        left = [path.name for path in bucket_folder.iterdir()]
        assert left == ["run.lock.4"]  # numbers never fall


def test_an_old_lease_of_another_machine_is_taken_over_at_once(tmp_path):
    leave(tmp_path / "run.lock", ELSEWHERE, age=3600)
    start = time.monotonic()
    with lease.held(tmp_path / "run.lock", "The run"):
        assert time.monotonic() - start < 1


def test_a_machine_that_is_gone_is_waited_for_and_then_succeeded(file, short):
    leave(file, ELSEWHERE)
    start = time.monotonic()
    with lease.held(file, "The run"):
        assert time.monotonic() - start >= 0.4


def test_a_machine_that_lives_keeps_its_lease(file, short):
    leave(file, ELSEWHERE)
    ended = threading.Event()

    def beat():
        for count in range(10**6):
            if ended.wait(0.1):
                return
            leave(file, ELSEWHERE | {"beat": count})

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UsageError, match="process 7 on other since then"):
            with lease.held(file, "The run"):
                pass
    finally:
        ended.set()
        thread.join()


def test_the_holder_beats(file, short):
    with lease.held(file, "The run"):
        place = file if file.exists() else file.with_name("run.lock.1")
        facts = lambda: (place.stat().st_mtime_ns, place.read_text())  # noqa: E731
        before = facts()
        deadline = time.monotonic() + 5
        while facts() == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_holder_whose_lease_was_taken_over_knows_it(tmp_path):
    held = DiskLease(tmp_path / "run.lock")
    assert held.take(expired=False)
    held.beat()
    (tmp_path / "run.lock").write_text(json.dumps(ELSEWHERE))
    with pytest.raises(holder.Lost):
        held.beat()


def test_half_a_lease_is_nobodys_and_a_users_file_is_kept(tmp_path):
    (tmp_path / "half").write_text('{"host": "vm", "p')
    with lease.held(tmp_path / "half", "The run"):
        pass
    (tmp_path / "notes").write_text("precious")
    with pytest.raises(UsageError, match="notes is no lock of a run"):
        with lease.held(tmp_path / "notes", "The run"):
            pass
    assert (tmp_path / "notes").read_text() == "precious"
