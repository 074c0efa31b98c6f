"""Tokens that machines share in a bucket: one tokenises a data set, the others download it.

A folder of tokens is the same bytes whoever made it, so it needs no lock: `meta.json`, which has
the sha256 of all, is uploaded last, and a folder without it is none. A bucket that does not answer
costs only the time to tokenise.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

from pemt_jax.common import storage

META = "meta.json"

log = logging.getLogger(__name__)


def download(place: Path, folder: Path) -> bool:
    """Copy the tokens at `place` to the new folder `folder`; False where there are none."""
    try:
        if not (place / META).is_file():
            return False
        folder.mkdir()
        for name in storage.files_in(place):
            file: Any = place / name
            file.download(folder / name)
        return True
    except OSError as error:
        log.warning("%s cannot be read (%s), it is made here.", place, storage.reason(error))
        shutil.rmtree(folder, ignore_errors=True)
        return False


def upload(folder: Path, place: Path) -> None:
    """Copy the tokens in `folder` to `place` for others."""
    names = sorted(path.name for path in folder.iterdir())
    try:
        for name in sorted(names, key=lambda name: name == META):
            file: Any = place / name
            file.upload(folder / name)
    except OSError as error:
        log.warning("%s cannot be written (%s), others tokenise too.", place, storage.reason(error))
