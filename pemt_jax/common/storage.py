"""Files and folders that appear whole: the one place that replaces something on disk.

A file is written beside its final location, flushed and renamed. A folder takes the place of
another in two renames, because no portable call exchanges two names:

    FOLDER -> .FOLDER.before, then .FOLDER.partial-XXXX -> FOLDER

A kill between them leaves the old folder under its hidden name. Readers ask `current` and find it
there; the next writer moves it back. A folder has one writer, the run that it belongs to.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pemt_jax.common.errors import PemtError, UsageError


def cache_folder() -> Path:
    """Where tokens, downloads and compiled steps are kept: $PEMT_JAX_CACHE, else
    ~/.cache/pemt_jax. It need not exist; everything in it can be made again."""
    return Path(os.environ.get("PEMT_JAX_CACHE") or "~/.cache/pemt_jax").expanduser()


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path to write to; flush it to the disk and rename it to `path` at the end.

    Raises:
      PemtError: the file cannot be written; what `path` was before is unchanged.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise PemtError(f"Cannot write {path}: {reason}.") from error
    finally:
        with contextlib.suppress(OSError):  # the parent may not be a folder
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give a hidden folder beside `folder` to fill; it replaces `folder` at the end.

    Raises:
      OSError: it cannot be written; `folder` is what it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    partial = Path(tempfile.mkdtemp(prefix=_partial(folder), dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp gives a private folder, a library is shared
        _put_in_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def current(folder: Path) -> Path:
    """The location to read `folder` from: its hidden predecessor if a kill left only that."""
    before = _before(folder)
    return before if not folder.exists() and before.is_dir() else folder


def recover(folder: Path) -> None:
    """Move back what a killed writer of `folder` had set aside, and remove what it left."""
    before = _before(folder)
    if before.is_dir() and not folder.exists():
        os.rename(before, folder)
    for left in (before, *folder.parent.glob(f"{_partial(folder)}*")):
        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary folder beside `path` to fill, and rename it to `path` at the end.

    Raises:
      UsageError: `path` exists. PemtError: it cannot be written. Nothing is left behind in either
        case, nor when the caller fails.
    """
    path = Path(path).absolute()
    check_free(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise PemtError(f"Cannot write {path}: {error.strerror}.") from error
    try:
        yield partial
        partial.chmod(0o755)
        check_free(path)
        os.rename(partial, path)  # onto nothing or an empty folder: never replaces anything
    except OSError as error:
        raise PemtError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_free(path: Path) -> None:
    """Raise UsageError when `path` is anything but free or an empty folder."""
    empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    if os.path.lexists(path) and not empty:
        raise UsageError(f"{path} exists already, expected a new name; nothing was written.")


def _put_in_place(partial: Path, folder: Path) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        os.replace(partial, folder)  # onto nothing or an empty folder
        return
    before = _before(folder)
    os.replace(folder, before)
    try:
        os.replace(partial, folder)
    except OSError:
        os.replace(before, folder)
        raise
    shutil.rmtree(before)


def _before(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.before")


def _partial(folder: Path) -> str:
    return f".{folder.name}.partial-"


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
