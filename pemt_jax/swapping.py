"""A folder that takes the place of another: at any moment the old one stands there or the new one.

On Linux the kernel exchanges the two names in one step. Where the file system cannot, there are two
renames, and a kill between them leaves the old folder under the hidden name `.NAME.before`, from
where the next writing brings it back. What killed writings have left unfinished goes then, too: a
folder has one writer, the run that it belongs to.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give a hidden folder beside `folder` to fill, and put it in its place at the end.

    Raises:
      OSError: it cannot be written; what stood at `folder` before stands there still.
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


def recover(folder: Path) -> None:
    """Bring back what a killed writing of `folder` has set aside, and remove what it has left."""
    before = _before(folder)
    if before.is_dir() and not folder.exists():
        os.rename(before, folder)
    for left in (before, *folder.parent.glob(f"{_partial(folder)}*")):
        shutil.rmtree(left, ignore_errors=True)


def _put_in_place(partial: Path, folder: Path) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        os.replace(partial, folder)  # onto nothing or an empty folder
        return
    if _exchange(partial, folder):
        return
    before = _before(folder)
    os.replace(folder, before)
    try:
        os.replace(partial, folder)
    except OSError:
        os.replace(before, folder)
        raise
    shutil.rmtree(before)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system has no such step."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        if (code := ctypes.get_errno()) in _UNSUPPORTED:
            return False
        raise OSError(code, os.strerror(code), str(other))
    return True


def _before(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.before")


def _partial(folder: Path) -> str:
    return f".{folder.name}.partial-"
