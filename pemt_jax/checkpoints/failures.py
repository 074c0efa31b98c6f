"""Why a checkpoint could not be read: because it is damaged, or because reading failed.

A damaged checkpoint is set aside and the run goes on without it, so damage must be certain. Memory
that ran out, a disk that does not answer, or a folder that may not be read says nothing about the
bytes of a checkpoint: the run stops and everything stays where it is.
"""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError

# A file that is missing, or of another kind than was saved, inside a folder that can be listed.
DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
# Statuses of tensorstore and XLA that are about the machine or the storage service.
_FAILURE = re.compile(
    r"RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED"
    r"|Out of memory|bad_alloc"
)
_OS_ERROR = re.compile(r"\[OS error (\d+)")  # how tensorstore reports one
_CHUNK = 1 << 20


def unreadable(path: Path, reason: str | None) -> PemtError:
    """Return the error for a file or folder whose reading failed."""
    return PemtError(f"{path} cannot be read: {reason or 'no reason given'}.")


def reason_of_failure(error: BaseException) -> str | None:
    """Return why a read failed, or None when `error` does not say more than damaged files would."""
    for cause in _causes(error):
        if isinstance(cause, MemoryError):
            return "out of memory"
        numbers = [int(number) for number in _OS_ERROR.findall(str(cause))]
        if isinstance(cause, OSError) and cause.errno is not None:
            numbers.append(cause.errno)
        for number in numbers:
            if number not in DAMAGE:
                own = isinstance(cause, OSError) and cause.errno == number and cause.strerror
                return own or os.strerror(number)
        if found := _FAILURE.search(str(cause)):
            return found.group().lower().replace("_", " ")
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those behind it."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        error = waiting.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        waiting += [error.__cause__, error.__context__, *getattr(error, "exceptions", ())]


def reason_of_files(checkpoint: Path) -> str | None:
    """Return why a file of the folder cannot be read, or None when all can be, to the last byte."""
    folders = [checkpoint]
    try:
        while folders:
            for entry in list(folders.pop().iterdir()):  # unlike rglob it raises where it may not
                if entry.is_dir() and not entry.is_symlink():
                    folders.append(entry)
                else:
                    _read_to_end(entry)
    except OSError as error:
        return storage.reason(error)
    return None


def _read_to_end(file: Path) -> None:
    try:
        with file.open("rb") as content:
            while content.read(_CHUNK):
                pass
    except OSError as error:
        if error.errno not in DAMAGE:
            raise
