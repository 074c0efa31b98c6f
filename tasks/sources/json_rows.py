"""The rows of JSON-lines files, by number: one object per line, one file per split.

    {"premise": "A man sleeps.", "hypothesis": "He is awake.", "label": "contradiction"}

Values are texts, numbers, true or false, or lists of texts; a field that a task reads has the same
type in all rows of a split. Empty lines are skipped and not numbered.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError, nearest, shortened
from pemt_jax.common.user_input.files import parse_json, read_text
from pemt_jax.tasks.sources.listed_rows import ListedRows

LARGEST = 2**36  # bytes of a file


class JsonRows(ListedRows):
    """Reads `files`, a mapping from split to path, for one task."""

    def __init__(self, files: Mapping[str, str], task: str):
        self.files, self.task = _paths(files), task

    def __str__(self) -> str:
        return "json " + ", ".join(path.name for path in self.files.values())

    def sizes(self) -> dict[str, int] | None:
        """Rows of each split; None when a file is missing."""
        if not all(path.is_file() for path in self.files.values()):
            return None
        return {split: len(self._rows(split)) for split in self.files}

    def size(self, split: str) -> int:
        return len(self._rows(split))

    def shards(self, split: str) -> list[str]:
        return [str(self._file(split))]

    def identity(self, split: str) -> list:
        return [split, hashlib.sha256(self._file(split).read_bytes()).hexdigest()]

    def columns(self, split: str, fields: Sequence[str]) -> dict[str, np.ndarray | list]:
        return {field: self._column(split, field) for field in fields}

    def _column(self, split: str, field: str) -> np.ndarray | list:
        values = [self._value(split, number, field) for number in range(len(self._rows(split)))]
        for number, value in enumerate(values):
            if _kind(value) is None:
                wanted = "a text, a number, true or false, or a list of texts"
                wanted = "a number of at most 64 bits" if isinstance(value, int) else wanted
                raise PemtError(
                    f"Row {number} of split {split!r} of task {self.task!r} has "
                    f"{shortened(value)} in the field {field!r}, expected {wanted}."
                )
            if _kind(value) != _kind(values[0]):
                raise PemtError(
                    f"Row {number} of split {split!r} of task {self.task!r} has "
                    f"{shortened(value)} in the field {field!r}, expected {_kind(values[0])} as in "
                    "row 0."
                )
        if values and isinstance(values[0], str):
            return np.array([str(value).encode() for value in values], object)
        return np.array(values) if not values or not isinstance(values[0], list) else values

    def _value(self, split: str, number: int, field: str) -> object:
        value = row = self._rows(split)[number]
        for part in field.split("/"):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            others = [name for name in row if name != field]
            raise PemtError(
                f"Row {number} of split {split!r} of task {self.task!r} has no field "
                f"{field!r} ({self._file(split)}){nearest(field, others)}."
            )
        return value

    def _rows(self, split: str) -> list[dict]:
        file = self._file(split)
        return _parse(file, file.stat().st_mtime_ns, self.task)

    def _file(self, split: str) -> Path:
        if split not in self.files:
            raise PemtError(
                f"Task {self.task!r} has no file of a split {split!r}{nearest(split, self.files)}."
            )
        if not self.files[split].is_file():
            there = self.files[split].exists()
            raise UsageError(
                f"The file {self.files[split]} of split {split!r} of task {self.task!r} "
                f"{'is no plain file' if there else 'does not exist'}, expected JSON lines there."
            )
        return self.files[split]


def _paths(files: Mapping[str, str]) -> dict[str, Path]:
    return {split: storage.path(path) for split, path in files.items()}


def _kind(value: object) -> str | None:
    """What kind of value it is, None for what rows cannot have."""
    if isinstance(value, list):
        return "a list of texts" if all(isinstance(item, str) for item in value) else None
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return None
    for types, name in ((bool, "true or false"), (int | float, "a number"), (str, "a text")):
        if isinstance(value, types):
            return name
    return None


@functools.lru_cache(16)
def _parse(path: Path, changed: int, task: str) -> list[dict]:
    del changed  # part of the cache's key
    rows = []
    text = read_text(path, f"JSON lines for task {task!r}", largest=LARGEST)
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise PemtError(
                f"Line {number} of {path} of task {task!r} is not JSON ({error}), "
                "expected one object per line."
            ) from error
        if not isinstance(row, dict):
            raise PemtError(
                f"Line {number} of {path} of task {task!r} is not an object, expected "
                '{"field": value, ...}.'
            )
        rows.append(row)
    return rows
