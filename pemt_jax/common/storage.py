"""Files and folders that appear whole, on a disk or in a bucket: the one place that knows which.

`path` makes the path of a text: a pathlib.Path, or one with its interface (buckets/path.py). What
writes goes through `replacing`, `replacing_folder` and `new_folder`, which give a path on this
machine to fill and bring it to its place at the end. On a disk a file is written beside its final
location, flushed and renamed, and a folder takes the place of another by renaming
(disk_folders.py). In a bucket an object is replaced as one by its upload, and a folder by a
manifest that is written last (buckets/folders.py); what is uploaded is first in $TMPDIR.

A folder has one writer, the run that it belongs to. Readers ask `current` where it is.
"""

import contextlib
import errno
import hashlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pemt_jax.common import disk_folders
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.user_input.paths import check_text


def path(text: str | os.PathLike) -> Path:
    """The path that a text means: on this machine, or in a bucket where it has a scheme.

    A path in a bucket is no pathlib.Path, but has those of its methods that make sense there.

    Raises:
      UsageError: the text is no path; its scheme is unknown, or needs a package that is not
        installed.
    """
    check_text(os.fspath(text))
    if not is_remote(text):
        return Path(text)
    buckets: Any = importlib.import_module("pemt_jax.common.buckets.path")
    return buckets.bucket_path(os.fspath(text))


def is_remote(text: str | os.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return "://" in os.fspath(text)


def absolute(text: str | os.PathLike) -> str:
    """A path as a card keeps it, so that it is found from anywhere."""
    return str(path(text).resolve())


def reason(error: OSError) -> str:
    """Why an operation failed, for a sentence."""
    return error.strerror or str(error) or type(error).__name__


def cache_folder() -> Path:
    """Where tokens, downloads and compiled steps are kept: $PEMT_JAX_CACHE, else
    ~/.cache/pemt_jax, also where the variable names a bucket (see `shared_cache`). It need not
    exist; everything in it can be made again."""
    named = os.environ.get("PEMT_JAX_CACHE")
    return Path(named if named and not is_remote(named) else "~/.cache/pemt_jax").expanduser()


def shared_cache() -> Path | None:
    """The bucket that $PEMT_JAX_CACHE names, in which machines share what takes long to make; None
    where it names none."""
    named = os.environ.get("PEMT_JAX_CACHE") or ""
    return path(named) if is_remote(named) else None


@contextlib.contextmanager
def fetched(place: Path) -> Iterator[Path]:
    """Give a path on this machine with the content of a file or folder, while the context lasts.

    Raises:
      OSError: it cannot be read.
    """
    if not is_remote(place):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="pemt_jax.") as folder:
        copy = Path(folder, place.name)
        for name in files_in(place) or [""]:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            _remote(place / name).download(copy / name)
        yield copy


def local_copy(file: Path) -> Path:
    """A path on this machine with the content of a file, kept in the cache folder.

    Raises:
      OSError: it cannot be read.
    """
    if not is_remote(file):
        return file
    facts = f"{file}\n{_remote(file).stat().version}"
    kept = cache_folder() / "copies" / hashlib.sha256(facts.encode()).hexdigest()[:20] / file.name
    if not kept.is_file():
        with replacing(kept) as partial:
            _remote(file).download(partial)
    return kept


def check_answers(place: Path) -> None:
    """Raise OSError where a path is in a bucket that does not answer soon."""
    if is_remote(place):
        _remote(place).check_answers()


def check_plain(file: Path) -> Path:
    """Return `file` unless it exists and is no plain file: reading a pipe would never end.

    Raises:
      OSError: it is a pipe, a device or a socket.
    """
    if not is_remote(file) and file.exists() and not file.is_file() and not file.is_dir():
        raise OSError(errno.EINVAL, "it is a pipe or device, expected a plain file", str(file))
    return file


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path to write to; at the end it becomes `path`, flushed or uploaded.

    Raises:
      PemtError: the file cannot be written; what `path` was before is unchanged.
    """
    try:
        with _replacing_remote(path) if is_remote(path) else _replacing(Path(path)) as partial:
            yield partial
    except OSError as error:
        raise PemtError(f"Cannot write {path}: {reason(error)}.") from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # the parent may not be a folder
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _replacing_remote(path: str | os.PathLike) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pemt_jax.") as folder:
        partial = Path(folder, os.path.basename(path))
        yield partial
        _remote(path).upload(partial)


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give a folder on this machine to fill; it replaces `folder` at the end.

    Raises:
      OSError: it cannot be written; `folder` is what it was.
    """
    recover(folder)
    with _partial_folder(folder) as partial:
        yield partial
        _home(folder).put_in_place(partial, folder)


@contextlib.contextmanager
def new_folder(where: str | os.PathLike) -> Iterator[Path]:
    """Give a folder on this machine to fill, which becomes the new folder `where` at the end.

    Raises:
      UsageError: `where` exists. PemtError: it cannot be written. Nothing is left behind in either
        case, nor when the caller fails.
    """
    folder = path(where).absolute()
    check_free(folder)
    try:
        with _partial_folder(folder) as partial:
            yield partial
            check_free(folder)
            _home(folder).put_new(partial, folder)
    except OSError as error:
        raise PemtError(f"Cannot write {folder}: {reason(error)}.") from error


@contextlib.contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    partial = _home(folder).partial_folder(folder)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder; readers meet it complete or not at all. OSError where that fails."""
    _home(folder).remove(folder)


def remove_tree(folder: Path) -> None:
    """Remove a folder with everything in it, in no order. OSError where that fails."""
    if is_remote(folder):
        _remote(folder).rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder)


def move_folder(folder: Path, target: Path) -> None:
    """Give a folder another name beside it, in place of what has it. OSError where that fails."""
    if target.exists():
        remove_tree(target)
    if not is_remote(folder):
        folder.rename(target)
        return
    for file in folder.rglob("*"):
        _remote(file).copy_to(target / file.relative_to(folder).as_posix())
    remove_tree(folder)


def current(folder: Path) -> Path:
    """The location to read `folder` from, after a kill or during its replacement too: on a disk its
    hidden predecessor if only that is left, in a bucket its successor if that is complete."""
    return _home(folder).current(folder)


def recover(folder: Path) -> None:
    """Bring what a killed writer of `folder` has left into order."""
    _home(folder).recover(folder)


def folder_names(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted; `current` may find them elsewhere."""
    return sorted(_home(folder).names(folder))


def check_writable(name: str, folder: Path) -> None:
    """Raise UsageError when the setting `name` is a folder on this disk that cannot be written to.

    In a bucket only writing tells, see runs/probe.py.
    """
    if is_remote(folder):
        return
    around = (folder, *folder.absolute().parents)
    place = next(path for path in around if path.is_symlink() or path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        state = "is read-only" if place.is_dir() else "is a file"
        state = state if place.exists() else "is a link to nothing"
        raise UsageError(f"{name} is {folder} but {place} {state}, expected a folder to write to.")


def files_in(folder: Path) -> list[str]:
    """Names of the files in `folder` and its sub-folders, relative to it, sorted."""
    found = folder.rglob("*") if folder.is_dir() else ()
    here = not is_remote(folder)  # a bucket lists objects only
    files = [path for path in found if not here or path.is_file()]
    return sorted(path.relative_to(folder).as_posix() for path in files)


def check_free(folder: Path) -> None:
    """Raise UsageError when `folder` is anything but free or an empty folder."""
    place = current(folder) if is_remote(folder) else folder
    empty = place.is_dir() and not place.is_symlink() and not any(place.iterdir())
    if (place.is_symlink() or place.exists()) and not empty:
        raise UsageError(f"{folder} exists already, expected a new name; nothing was written.")


def _home(folder: Path) -> Any:
    """The module that replaces folders where `folder` is."""
    if is_remote(folder):
        return importlib.import_module("pemt_jax.common.buckets.folders")
    return disk_folders


def _remote(file: str | os.PathLike) -> Any:
    return path(file)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
