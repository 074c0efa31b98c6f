"""SHA256SUMS: the sha256 of every file of a folder, in the form of the command `sha256sum`.

It stands in what is written here in the form of others, which has no room for it: a base, converted
or made by a run of method full or decoder, and an expert for PEFT. `sha256sum -c SHA256SUMS` checks
it without this package.
"""

import hashlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError
from pemt_jax.common.lazy_array import LazyArray

SUMS = "SHA256SUMS"
PART_BYTES = 2**20  # hashed at once


def sha256_file(path: str | os.PathLike) -> str:
    """Hex sha256 of the bytes of `path`."""
    try:
        with storage.check_plain(storage.path(path)).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PemtError(f"Cannot read {path}: {storage.reason(error)}.") from error


def fingerprint(arrays: Mapping[str, np.ndarray | LazyArray]) -> str:
    """Hex sha256 of names, shapes and float32 values: the identity of a set of weights.

    The same for the same weights in any order, layout in memory or file format, and for bfloat16
    weights read as bfloat16 or as float32.
    """
    digest = Fingerprint()
    for name in sorted(arrays):
        digest.update(name, arrays[name])
    return digest.hexdigest()


class Fingerprint:
    """`fingerprint` of arrays that are given one by one, in the order of their names."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def update(self, name: str, array: np.ndarray | LazyArray) -> None:
        values = np.asarray(array)
        self._digest.update(f"{name}\0{','.join(map(str, values.shape))}\0".encode())
        rows = np.atleast_1d(values)
        step = max(1, PART_BYTES // max(1, 4 * rows[:1].size))
        for start in range(0, len(rows), step):  # never all of a large array as float32
            part = rows[start : start + step].astype("<f4", order="C", copy=False)
            self._digest.update(part.reshape(-1).view(np.uint8))

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS of the files in `folder` and its sub-folders."""
    names = sorted(_files(folder))
    text = "".join(f"{sha256_file(folder / name)}  {name}\n" for name in names)
    with storage.replacing(folder / SUMS) as partial:
        partial.write_text(text, encoding="utf-8")


def verify_checksums(folder: Path, names: Collection[str] | None = None) -> None:
    """Raise PemtError when a file of `folder` is not as its SHA256SUMS says; without one, pass.

    Only `names` are looked at where they are given. What is missing the reader says, where it
    matters, and what is not listed has come from elsewhere.
    """
    sums = folder / SUMS
    if not sums.is_file():
        if sums.exists():
            raise PemtError(f"{sums} is no plain file, expected the sha256 of the files beside it.")
        return
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines()
    listed = {name: expected for expected, _, name in (line.partition("  ") for line in lines)}
    found_here = _files(folder) if names is None else _files(folder) & set(names)
    for name in sorted(found_here & listed.keys()):
        if (found := sha256_file(folder / name)) != listed[name]:
            raise PemtError(
                f"{folder / name} is damaged or exchanged: found sha256 {found[:12]}, "
                f"expected {listed[name][:12]} as in its {SUMS}."
            )


def unlisted(folder: Path) -> list[str]:
    """What is in `folder` and no SHA256SUMS of it or of its sub-folders lists, sorted.

    Empty for a folder that was written here and has not been added to.
    """
    listed = set()
    for sums in [folder / SUMS, *folder.glob(f"*/{SUMS}")]:
        if sums.is_file():
            inside = sums.parent.relative_to(folder)
            lines = sums.read_text(encoding="utf-8", errors="replace").splitlines()
            names = [line.partition("  ")[2] for line in lines]
            listed |= {(inside / name).as_posix() for name in (*names, SUMS)}
    folders = {parent.as_posix() for name in listed for parent in Path(name).parents}
    here = not storage.is_remote(folder)
    return sorted(
        name
        for path in folder.rglob("*")
        if (name := path.relative_to(folder).as_posix()) not in listed
        and not (here and path.is_dir() and not path.is_symlink() and name in folders)
    )


def _files(folder: Path) -> set[str]:
    """Names of the files, relative to `folder`; the listing itself is none of them."""
    return set(storage.files_in(folder)) - {SUMS}
