"""Files that a user names as output: plain files are replaced as one, pipes are written."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.writing.contents import check_outside

OF_A_RUN = ("config.gin", "metrics.jsonl", "run.lock")
SIGNS_OF_A_RUN = ("checkpoints", "artefact", "base")


def check_output(setting: str, target: str, inputs: Sequence[str] = ()) -> None:
    """Raise UsageError where writing `target` would destroy something.

    Args:
      setting: its name, for the sentence.
      inputs: files that are read meanwhile.
    """
    place = storage.path(target)
    for name in inputs:
        if _is_same(place, storage.path(name)):
            raise UsageError(f"{setting} {target} is the input {name}, expected another file.")
    if storage.is_remote(place) or not _is_written_directly(place):
        check_outside(setting, place)
        siblings = (place.parent / name for name in SIGNS_OF_A_RUN)
        if place.name in OF_A_RUN and any(folder.is_dir() for folder in siblings):
            raise UsageError(f"{setting} {target} is a file of a run, expected another file.")


@contextlib.contextmanager
def output(setting: str, target: str, inputs: Sequence[str] = ()) -> Iterator[IO[str]]:
    """Give a text file to write `target` to; a link to a file has that file written.

    Raises:
      UsageError: as `check_output`. PemtError: it cannot be written.
    """
    check_output(setting, target, inputs)
    place = storage.path(target)
    if storage.is_remote(place) or not _is_written_directly(place):
        with storage.replacing(place.resolve()) as partial:
            with open(partial, "w", encoding="utf-8") as file:
                yield file
        return
    try:
        with open(place, "w", encoding="utf-8") as file:
            yield file
    except BrokenPipeError:
        raise  # its reader has seen enough
    except OSError as error:
        raise PemtError(f"Cannot write {target}: {storage.reason(error)}.") from error


def _is_written_directly(place: Path) -> bool:
    """Whether a path is no plain file of a folder: a device, pipe or open file (/dev/stdout)."""
    special = place.exists() and not place.is_file() and not place.is_dir()
    return special or place.absolute().parts[1:2] in (("dev",), ("proc",))


def _is_same(one: Path, other: Path) -> bool:
    if storage.is_remote(one) or storage.is_remote(other):
        return os.fspath(one) == os.fspath(other)
    with contextlib.suppress(OSError):
        return one.is_file() and other.is_file() and one.samefile(other)
    return False
