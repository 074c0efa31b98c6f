"""Rows of files that are read at once: the part that JSON lines and raw distributions share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import tensorflow as tf


class ListedRows(ABC):
    """The rows of one task, each split in one file."""

    @abstractmethod
    def sizes(self) -> dict[str, int] | None:
        """Rows of the splits whose number is known; None when the data are not on disk."""

    @abstractmethod
    def size(self, split: str) -> int:
        """Rows of a split."""

    @abstractmethod
    def shards(self, split: str) -> list[str]:
        """The one file of a split."""

    @abstractmethod
    def identity(self, split: str) -> list:
        """A value that changes when the rows of a split do."""

    @abstractmethod
    def columns(self, split: str, fields: Sequence[str]) -> dict[str, np.ndarray | list]:
        """Some fields of all rows of a split; lists of texts stay lists."""

    def check_fields(self, split: str, fields: Sequence[str]) -> None:
        """Raise PemtError when a row of a split lacks a field."""
        self.columns(split, fields)

    def read(
        self,
        split: str,
        fields: Sequence[str],
        named: str,
        keep: np.ndarray | None = None,
        shards: Sequence[str] | None = None,
        shuffle: bool = False,
        seed: int | None = None,
    ) -> tf.data.Dataset:
        """As TfdsRows.read, with one file per split."""
        del shards
        numbers = np.arange(self.size(split))
        numbers = numbers if keep is None else numbers[keep]
        if shuffle:
            numbers = np.random.default_rng(seed).permutation(numbers)
        columns: dict[str, Any] = {"row": numbers, "split": [named] * len(numbers)}
        for field, values in self.columns(split, fields).items():
            columns[field] = (
                tf.ragged.constant([values[i] for i in numbers], dtype=tf.string)
                if isinstance(values, list)
                else values[numbers]
            )
        return tf.data.Dataset.from_tensor_slices(cast(Any, columns))
