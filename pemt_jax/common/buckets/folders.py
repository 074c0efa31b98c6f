"""Folders of a bucket that are replaced as one, though a bucket can only replace an object.

The objects of the new folder are written beside it, and then the manifest, which lists them with
their sha256. That one object is the decision:

    .NAME.new/...        the new objects
    .NAME.new.json       {"files": {name: sha256}}, written last
    NAME/...             then copied to where they belong, and what is not listed is removed;
                         at last .NAME.new.json and .NAME.new/ go

Until the manifest is there readers find the old folder untouched, and from there on they read the
new one beside it (`current`), whatever is being copied. A kill leaves either state; the next writer
(`recover`) removes objects without a manifest, or copies those that have one. A folder is removed
by replacing it with an empty one. This keeps the names of a folder on disk, so that
`gcloud storage cp -r` makes one from the other; versioned names with a pointer would not.

A folder has one writer. Who reads while it is replaced may find objects of two versions or none;
hashes (cards, SHA256SUMS) tell, and reading again helps, as on a disk.
"""

import hashlib
import json
import tempfile
from pathlib import Path

from pemt_jax.common.buckets.path import BucketPath


def partial_folder(folder: BucketPath) -> Path:
    """Make a folder on this machine to fill."""
    return Path(tempfile.mkdtemp(prefix="pemt_jax."))


def put_in_place(partial: Path, folder: BucketPath) -> None:
    """Let `folder` have the files of `partial` and nothing else. OSError where that fails."""
    recover(folder)
    files = {
        path.relative_to(partial).as_posix(): path for path in partial.rglob("*") if path.is_file()
    }
    for name, path in sorted(files.items()):
        (_beside(folder) / name).upload(path)
    sums = {name: _sha256(path) for name, path in sorted(files.items())}
    _manifest(folder).write_text(json.dumps({"files": sums}))
    _finish(folder)


put_new = put_in_place  # the caller has looked whether the name is free


def remove(folder: BucketPath) -> None:
    """Remove a folder: readers find it complete, or not at all."""
    recover(folder)
    _manifest(folder).write_text(json.dumps({"files": {}}))
    _finish(folder)


def current(folder: BucketPath) -> BucketPath:
    """Where to read `folder`: beside it, while what replaces it is not in its place yet."""
    return _beside(folder) if _manifest(folder).is_file() else folder


def recover(folder: BucketPath) -> None:
    """Finish what a killed writer had decided, and remove what it had not."""
    if _manifest(folder).is_file():
        _finish(folder)
    else:
        _beside(folder).rmtree(missing_ok=True)


def names(folder: BucketPath) -> set[str]:
    """Names of the folders in `folder`, those that are still beside their place too."""
    if not folder.is_dir():
        return set()
    found = [path.name for path in folder.iterdir()]
    beside = [name[1 : -len(".new.json")] for name in found if name.endswith(".new.json")]
    return {name for name in found if not name.startswith(".")} | set(beside)


def _finish(folder: BucketPath) -> None:
    files = json.loads(_manifest(folder).read_text())["files"]
    for name in files:
        try:
            (_beside(folder) / name).copy_to(folder / name)
        except FileNotFoundError:  # another process, which finishes it too, has copied it
            if not (folder / name).is_file():
                raise
    for path in folder.rglob("*") if folder.is_dir() else ():
        if path.relative_to(folder).as_posix() not in files:
            path.unlink(missing_ok=True)
    _manifest(folder).unlink(missing_ok=True)
    _beside(folder).rmtree(missing_ok=True)


def _beside(folder: BucketPath) -> BucketPath:
    return folder.with_name(f".{folder.name}.new")


def _manifest(folder: BucketPath) -> BucketPath:
    return folder.with_name(f".{folder.name}.new.json")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
