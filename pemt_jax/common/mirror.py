"""A folder on this machine for what must be appended to, brought to a bucket now and then.

An object cannot be appended to, and the libraries that write TensorBoard files and profiles write
to this machine. On a disk the mirror of a folder is the folder itself and nothing is copied.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from pemt_jax.common import storage


class Mirror:
    """Stands for `folder`: `local` is where to write, `upload` brings changed files to the folder.

    Args:
      folder: on a disk or in a bucket.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = storage.path(folder)
        self.is_copy = storage.is_remote(folder)
        self.local = Path(tempfile.mkdtemp(prefix="pemt_jax.")) if self.is_copy else self.folder
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._last = time.monotonic()

    def upload(self, after: float = 0) -> None:
        """Bring what has changed to the bucket, unless that was done less than `after` seconds ago.

        Raises:
          OSError: it cannot be written there.
        """
        if not self.is_copy or time.monotonic() - self._last < after:
            return
        for name in storage.files_in(self.local):
            stat = (self.local / name).stat()
            if self._uploaded.get(name) != (facts := (stat.st_size, stat.st_mtime_ns)):
                place: Any = self.folder / name
                place.upload(self.local / name)
                self._uploaded[name] = facts
        self._last = time.monotonic()

    def close(self) -> None:
        """Remove the copy on this machine, whether or not it was uploaded."""
        if self.is_copy:
            shutil.rmtree(self.local, ignore_errors=True)
