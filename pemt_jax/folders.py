"""Folders that come into being whole, under a name that was free."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pemt_jax.errors import PemtError, UsageError


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary folder beside `path` to fill, and rename it to `path` at the end.

    Raises:
      UsageError: something stands at `path`. PemtError: it cannot be written. Nothing is left
        behind in either case, nor when the caller fails.
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
        partial.chmod(0o755)  # mkdtemp gives a private folder
        check_free(path)
        os.rename(partial, path)  # onto nothing or an empty folder: never replaces anything
    except OSError as error:
        raise PemtError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_free(path: Path) -> None:
    """Raise UsageError when anything but an empty folder stands at `path`."""
    empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    if os.path.lexists(path) and not empty:
        raise UsageError(f"{path} exists already, expected a new name; nothing was written.")
