"""Before a run a bucket has some seconds to answer; gcsfs alone would ask for a minute or two."""

import asyncio
import errno
import time

import pytest

pytest.importorskip("gcsfs", reason='needs gcsfs: pip install "pemt_jax[gs]"')

from gcsfs.core import GCSFileSystem
from gcsfs.retry import HttpError

from pemt_jax.common.buckets import path as buckets
from pemt_jax.common.buckets.google import GoogleStorage
from pemt_jax.common.storage import check_answers


@pytest.fixture
def bucket(monkeypatch):
    """A path in a bucket whose requests are answered by `answers`, one after the other."""
    answers, asked = [], []

    async def request(self, method, path, *arguments, **options):
        asked.append(arguments)
        answer = answers.pop(0) if answers else ConnectionError("nobody there")
        if answer == "hangs":
            await asyncio.sleep(60)
        if isinstance(answer, Exception):
            raise answer

    storage = GoogleStorage(token="anon", skip_instance_cache=True)
    monkeypatch.setattr(GCSFileSystem._request, "__wrapped__", request)
    monkeypatch.setattr(buckets.BucketPath, "fs", storage)
    monkeypatch.setattr(buckets, "ANSWER_SECONDS", 1.5)
    return buckets.bucket_path("gs://mine/runs/x"), answers, asked


def unavailable():
    return HttpError({"code": 503, "message": "later"})


def test_a_bucket_that_answers_in_time_is_asked_no_more(bucket):
    place, answers, asked = bucket
    answers += [unavailable(), None]
    check_answers(place)
    assert asked == [("mine",)] * 2
    answers += [FileNotFoundError("no such bucket")]  # is an answer; what it means is said later
    check_answers(place)


@pytest.mark.parametrize("answer", ["hangs", unavailable()])
def test_one_that_does_not_is_an_error_soon(bucket, answer):
    place, answers, _ = bucket
    answers += [answer, answer, answer]
    start = time.monotonic()
    with pytest.raises(OSError, match="the storage does not answer") as caught:
        check_answers(place)
    assert caught.value.errno == errno.EIO and time.monotonic() - start < 5


def test_wrong_credentials_are_not_asked_again(bucket):
    place, answers, asked = bucket
    answers += [HttpError({"code": 401, "message": "Invalid Credentials"})]
    with pytest.raises(PermissionError, match="does not accept the credentials"):
        check_answers(place)
    assert len(asked) == 1


def test_a_folder_of_this_machine_is_not_asked(tmp_path):
    check_answers(tmp_path / "nowhere")
