"""Folders of a disk that are replaced as one, in two renames, for no portable call exchanges names:

    FOLDER -> .FOLDER.before, then .FOLDER.partial-XXXX -> FOLDER

A kill between them leaves the old folder under its hidden name. Readers ask `current` and find it
there; the next writer moves it back. `buckets/folders.py` has the same functions for buckets.
"""

import os
import shutil
import tempfile
from pathlib import Path


def partial_folder(folder: Path) -> Path:
    """Make a hidden folder beside `folder`, on the same disk, to fill."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=_partial(folder), dir=folder.parent))


def put_in_place(partial: Path, folder: Path) -> None:
    """Let a folder made by `partial_folder` take the place of `folder`."""
    partial.chmod(0o755)  # mkdtemp gives a private folder, a library is shared
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


def put_new(partial: Path, folder: Path) -> None:
    """Let a folder made by `partial_folder` become `folder`, onto nothing or an empty folder."""
    partial.chmod(0o755)
    os.rename(partial, folder)


def remove(folder: Path) -> None:
    """Remove a folder: readers find it complete, or not at all."""
    aside = tempfile.mkdtemp(prefix=f".{folder.name}.removed.", dir=folder.parent)
    os.rename(folder, aside)
    shutil.rmtree(aside)


def current(folder: Path) -> Path:
    """Where to read `folder`: its hidden predecessor if a kill left only that."""
    before = _before(folder)
    return before if not folder.exists() and before.is_dir() else folder


def recover(folder: Path) -> None:
    """Move back what a killed writer of `folder` had set aside, and remove what it left."""
    before = _before(folder)
    if before.is_dir() and not folder.exists():
        os.rename(before, folder)
    for left in (before, *folder.parent.glob(f"{_partial(folder)}*")):
        shutil.rmtree(left, ignore_errors=True)


def names(folder: Path) -> set[str]:
    """Names of the folders in `folder`, those that have only a predecessor too."""
    found = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
    before = {name[1 : -len(".before")] for name in found if name.endswith(".before")}
    return {name for name in found if not name.startswith(".")} | before


def _before(folder: Path) -> Path:
    folder = folder if folder.name else folder.absolute()  # "." has none
    if not folder.name:
        return folder / ".before"  # of the root, which nobody replaces
    return folder.with_name(f".{folder.name}.before")


def _partial(folder: Path) -> str:
    return f".{folder.name}.partial-"
