"""Before hours of training: can every process write to the run's folders, and do all see the same?

Each process writes a small file, every process reads that of process 0 and process 0 reads all, and
each removes its own. Whether a bucket may be written to is known only by writing, and the disks of
two machines have folders of the same name.
"""

import contextlib
import errno
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from pemt_jax.checkpoints.agreement import everywhere
from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.parallel import processes

REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


def check_answers(folders: Mapping[str, Path]) -> None:
    """Raise, in all processes, UsageError or PemtError where a folder's bucket does not answer."""
    _everywhere(storage.check_answers, folders)


def probe(folders: Mapping[str, Path]) -> None:
    """Write to, read from and clean up folders, by the names of their settings, in all processes.

    Raises:
        UsageError: in every process, where one may not write or does not see what process 0 sees.
        PemtError: in every process, where the storage of one fails otherwise.
    """
    token = processes.from_first(uuid.uuid4().hex)
    index, count = jax.process_index(), jax.process_count()
    settings = {folder: name for name, folder in folders.items()}
    names = [f".probe-{token}-{number}" for number in range(count)]
    missing = [place for folder in folders.values() for place in _missing(folder)]

    def write(folder: Path) -> None:
        storage.check_writable(settings[folder], folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[index]).write_text(token)

    def read(folder: Path) -> None:
        for number in range(count) if index == 0 else (0,):
            if not (file := folder / names[number]).is_file() or file.read_text() != token:
                raise _Apart(max(number, index))

    def remove(folder: Path) -> None:
        (folder / names[index]).unlink(missing_ok=True)

    try:
        for action in (write, read, remove):
            _everywhere(action, folders)
    finally:
        for folder in folders.values():
            with contextlib.suppress(OSError):
                remove(folder)
        for place in missing if index == 0 else ():
            with contextlib.suppress(OSError):  # it is in use meanwhile
                place.rmdir()


class _Apart(Exception):
    """The process of this number has another storage than process 0."""


def _missing(folder: Path) -> list[Path]:
    """The folders that writing will make, the deepest first."""
    if storage.is_remote(folder):
        return []
    return [place for place in (folder, *folder.parents) if not place.exists()]


def _everywhere(action: Callable[[Path], None], folders: Mapping[str, Path]) -> None:
    """Do it in every process, and raise in all of them what the first one met that failed."""
    failure = None
    for name, folder in folders.items():
        try:
            action(folder)
        except _Apart as error:
            failure = [
                UsageError.exit_code,
                f"Process {error} does not see the {name} {folder} that process 0 sees, expected "
                "storage that all processes share.",
            ]
            break
        except UsageError as error:
            failure = [error.exit_code, str(error)]
            break
        except OSError as error:
            who = f" in process {jax.process_index()}" if jax.process_count() > 1 else ""
            wrong = error.errno in REFUSED
            expected = ", expected storage to write to" if wrong else ""
            failure = [
                UsageError.exit_code if wrong else PemtError.exit_code,
                f"The {name} {folder} cannot be used{who}: {storage.reason(error)}{expected}.",
            ]
            break
    for found in everywhere(failure):
        if found is not None:
            code, sentence = found
            raise (UsageError if code == UsageError.exit_code else PemtError)(sentence)
