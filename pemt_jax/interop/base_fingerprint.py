"""The fingerprint of a base, taken once: it is a hash of all weights, of which a process reads few.

It is kept in the folder of caches under the names, sizes and times of the base's files, together
with the fact that they were as their SHA256SUMS says. The first process of a run looks it up, or
takes it, for all of them.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError
from pemt_jax.common.lazy_array import LazyArray

FORMAT = 1
SETTLED = 2 * 10**9  # nanoseconds: a file may change twice within one tick of its time
SAMPLED = 2**16  # numbers: smaller arrays are part of a sample
REQUESTS = 16  # to a bucket at once

log = logging.getLogger(__name__)


class KnownFingerprint:
    """What is known of a base.

    Args:
      folder: where it is.
      has_folders: whether it has files in folders of that folder. They are looked at on a disk; in
        a bucket they are thousands, and nothing there changes without a new manifest.

    Attributes:
      value: its fingerprint; None if it has to be taken, or was taken of other files.
    """

    def __init__(self, folder: Path, has_folders: bool):
        folder, deep = folder.absolute(), has_folders and not storage.is_remote(folder)
        files = folder.rglob("*") if deep else folder.iterdir()
        with ThreadPoolExecutor(REQUESTS) as pool:
            found = [entry for entry in pool.map(_about, files) if entry]
        self._facts = {"format": FORMAT, "files": sorted(found)}
        name = hashlib.sha256(os.fspath(folder).encode()).hexdigest()[:20]
        self._path = storage.cache_folder() / "fingerprints" / f"{name}.json"
        self._seen = time.time_ns()
        try:
            note = json.loads(self._path.read_text(encoding="utf-8"))
            self.value = note["fingerprint"] if note["facts"] == self._facts else None
        except (OSError, ValueError, KeyError, TypeError):  # none, or half of one
            self.value = None

    def remember(self, value: str) -> None:
        """Keep the fingerprint for later runs; without a place to keep it they take it again."""
        self.value = value
        if max((changed for *_, changed in self._facts["files"]), default=0) > self._seen - SETTLED:
            return
        try:
            with storage.replacing(self._path) as partial:
                text = json.dumps({"fingerprint": value, "facts": self._facts})
                partial.write_text(text, encoding="utf-8")
        except PemtError as error:
            log.info("The fingerprint of the base is not kept: %s", error)


def sample(stored: Mapping[str, LazyArray | np.ndarray]) -> str:
    """A hash of the small arrays and some rows of the embedding: what differs between any two
    trained bases, and is quick to read where each process has a copy of its own."""
    digest = hashlib.sha256()
    for name in sorted(stored):
        array = stored[name]
        digest.update(f"{name} {array.shape}".encode())
        if name == "token_embedder/embedding":
            array = array[:1]
        if np.prod(array.shape) < SAMPLED:
            digest.update(np.asarray(array, np.float32, order="C"))
    return digest.hexdigest()


def _about(file: Path) -> list | None:
    """[path, bytes, time in nanoseconds] of a file; None for what is none."""
    if not file.is_file():
        return None
    stat = file.stat()
    return [os.fspath(file), stat.st_size, stat.st_mtime_ns]
