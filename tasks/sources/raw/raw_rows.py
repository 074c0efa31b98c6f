"""The rows of a data set in its authors' files, by number, in place of TFDS's."""

import csv
import functools
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.common.hashing import sha256_file
from pemt_jax.tasks.sources.listed_rows import ListedRows
from pemt_jax.tasks.sources.raw import folder
from pemt_jax.tasks.sources.raw.layouts import Layout

FOREIGN = (  # what a file that is another one makes of its reader
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    EOFError,
    OSError,
    csv.Error,
)


class RawRows(ListedRows):
    """Reads the data set that TFDS calls `name` for one task; rows are in their original order."""

    def __init__(self, name: str, task: str):
        self.name, self.task = name, task

    def __str__(self) -> str:
        return f"raw {self.name.partition(':')[0]}"

    def here(self) -> bool:
        """Whether a folder of raw data is configured and has a file of the data set."""
        return folder.found(self.name) is not None

    def sizes(self) -> dict[str, int] | None:
        return {} if self.here() else None  # counting would read the files

    def size(self, split: str) -> int:
        return len(next(iter(self._columns(split).values())))

    def shards(self, split: str) -> list[str]:
        return [str(self._file(split)[1])]

    def identity(self, split: str) -> list:
        layout, file = self._file(split)
        status = file.stat()
        digest = _sha256(str(file), status.st_size, int(status.st_mtime))
        return ["raw", self.name.partition(":")[0], layout.files[split], digest]

    def columns(self, split: str, fields: Sequence[str]) -> dict[str, np.ndarray | list]:
        have = self._columns(split)
        for field in fields:
            if field not in have:
                raise PemtError(
                    f"Row 0 of split {split!r} of task {self.task!r} has no field {field!r} "
                    f"({self._file(split)[1]}){nearest(field, have)}."
                )
        return {field: have[field] for field in fields}

    def _columns(self, split: str) -> dict[str, np.ndarray | list]:
        layout, file = self._file(split)
        status = file.stat()
        try:
            return _read(layout, split, str(file), status.st_size, int(status.st_mtime))
        except Foreign as error:
            raise PemtError(
                f"The file {file} of split {split!r} of task {self.task!r} cannot be read after "
                f"{error}, expected {layout.suite}'s {layout.folders[0]}/{layout.files[split]}."
            ) from error

    def _file(self, split: str) -> tuple[Layout, Path]:
        here = folder.found(self.name)
        assert here is not None  # a task asks `here` first
        layout, place = here
        if split not in layout.files:
            raise PemtError(
                f"{layout.suite}'s {layout.folders[0]} of task {self.task!r} has no split "
                f"{split!r}{nearest(split, layout.files)}."
            )
        file = folder.file(place / layout.files[split])
        if not file.is_file():
            raise UsageError(
                f"The file {file} of split {split!r} of task {self.task!r} does not exist, "
                f"expected {layout.suite}'s {layout.folders[0]}/{layout.files[split]} there."
            )
        return layout, file


class Foreign(Exception):
    """A file is not what its name says."""


@functools.lru_cache(256)
def _sha256(path: str, size: int, changed: int) -> str:
    del size, changed  # part of the cache's key
    return sha256_file(path)


@functools.lru_cache(4)  # of big data sets each has some 100 MB
def _read(
    layout: Layout, split: str, path: str, size: int, changed: int
) -> dict[str, np.ndarray | list]:
    del size, changed  # part of the cache's key
    rows: list[dict] = []
    try:
        for row in _lines(layout, path):
            rows.append(row)
    except FOREIGN as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        reason = f"no {reason}" if isinstance(error, KeyError) else reason
        raise Foreign(f"{len(rows)} rows ({reason})") from error
    if not rows:
        raise Foreign("0 rows (it has none)")
    return {field: _column([row[field] for row in rows]) for field in rows[0]}


def _lines(layout: Layout, path: str) -> Iterator[dict]:
    file = storage.local_copy(storage.path(path))
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8-sig") as text:  # some begin with a byte-order mark
        yield from layout.read(text)


def _column(values: list) -> np.ndarray | list:
    if isinstance(values[0], str):
        return np.array([value.encode() for value in values], object)
    return values if isinstance(values[0], list) else np.array(values)
