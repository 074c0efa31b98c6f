"""Google Cloud Storage as fsspec has it by gcsfs, with the order in which a folder is removed.

gcsfs removes the objects of a folder in any order, and a kill may leave any of them. Here the
objects that make a folder count go first, so that what a kill leaves is not taken for a whole one:
orbax's commit_success.txt, our manifests and cards. The class is gcsfs's plain one; the one that
gcsfs prefers asks for the kind of a bucket by gRPC, once per call where it gets no answer.
"""

import asyncio
import contextlib
import time

from fsspec import asyn
from gcsfs.core import GCSFileSystem
from gcsfs.retry import is_retriable

FIRST = ("commit_success.txt", "card.json", "meta.json")


class GoogleStorage(GCSFileSystem):
    """gcsfs whose `rm` removes what makes a folder count before the rest."""

    async def _rm(self, path, recursive=False, maxdepth=None, batchsize=100):
        if recursive and isinstance(path, str):
            found = [name for name in await self._find(path) if name.rpartition("/")[2] in FIRST]
            for name in sorted(found, key=lambda name: name.count("/")):
                with contextlib.suppress(FileNotFoundError):  # another process was faster
                    await self._rm_file(name)
        return await super()._rm(path, recursive, maxdepth, batchsize)

    rm = asyn.sync_wrapper(_rm)

    async def _answer(self, bucket: str, seconds: float) -> None:
        """Wait for an answer, as long as that; then raise what the last request met.

        gcsfs would repeat each request for half a minute, and there are several per question.
        """
        once = GCSFileSystem._request.__wrapped__  # without its retries
        end, pause = time.monotonic() + seconds, 1.0
        while True:
            try:
                left = max(1.0, end - time.monotonic())
                await asyncio.wait_for(once(self, "GET", "b/{}/o", bucket, maxResults=1), left)
                return
            except FileNotFoundError:  # an answer: there is no such bucket
                return
            except Exception as error:
                if not is_retriable(error) or getattr(error, "code", None) in (401, "401"):
                    raise
                if time.monotonic() + pause > end:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, 4)

    answer = asyn.sync_wrapper(_answer)
