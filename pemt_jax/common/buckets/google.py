"""Google Cloud Storage as fsspec has it by gcsfs, with the order in which a folder is removed.

gcsfs removes the objects of a folder in any order, and a kill may leave any of them. Here the
objects that make a folder count go first, so that what a kill leaves is not taken for a whole one:
orbax's commit_success.txt, our manifests and cards. The class is gcsfs's plain one; the one that
gcsfs prefers asks for the kind of a bucket by gRPC, once per call where it gets no answer.
"""

import contextlib

from fsspec import asyn
from gcsfs.core import GCSFileSystem

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
