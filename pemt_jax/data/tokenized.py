"""Tokenised rows in flat arrays, and the other features of each row as JSON.

`Ragged` holds rows of different lengths in one array that may lie in a file. `TokenizedSplit` is
one split of a task, as pemt_jax.data makes and caches it.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import seqio

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: `values[offsets[i]:offsets[i + 1]]`."""

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @staticmethod
    def of(rows: list[np.ndarray], dtype: type) -> "Ragged":
        values = np.concatenate(rows) if rows else np.zeros(0)
        return Ragged(values.astype(dtype), np.cumsum([0, *map(len, rows)]))


@runtime_checkable
class OnlineTransform(Protocol):
    """The last preprocessor of a task that makes new pairs in each epoch: SpanCorruption."""

    def lengths(self, raw_lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lengths of the inputs and targets that chunks of these lengths become."""
        ...

    def apply(
        self,
        chunks: list[np.ndarray],
        seed: int,
        epochs: np.ndarray,
        rows: np.ndarray,
        vocabulary: seqio.Vocabulary,
    ) -> list[Pair]:
        """The pair of each chunk, which depends on the seed, the epoch and the row alone."""
        ...


@dataclass(frozen=True)
class TokenizedSplit:
    """One split of one task as tokens.

    Attributes:
      task_name, split: what it is.
      lengths: the limits {"inputs": n, "targets": n}.
      columns: int32 tokens by feature; with an online transform only its "targets", the chunks.
      other: one JSON object a row: the features that postprocessing and metrics may ask for.
      dtypes: the types of those features.
      online: the online transform, or None.
      sha256: of the contents, in hexadecimal.
    """

    task_name: str
    split: str
    lengths: Mapping[str, int]
    columns: Mapping[str, Ragged]
    other: Ragged
    dtypes: Mapping[str, object]
    online: OnlineTransform | None
    sha256: str

    def __len__(self) -> int:
        return len(self.columns["targets"])

    @functools.cached_property
    def token_lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Lengths of the inputs and of the targets of every row."""
        if self.online is None:
            return self.columns["inputs"].lengths, self.columns["targets"].lengths
        return self.online.lengths(self.columns["targets"].lengths)

    @property
    def input_lengths(self) -> np.ndarray:
        return self.token_lengths[0]

    @property
    def target_lengths(self) -> np.ndarray:
        return self.token_lengths[1]

    def pairs(
        self, rows: np.ndarray, epochs: np.ndarray | None = None, seed: int = 0
    ) -> list[Pair]:
        """(inputs, targets) of rows; `epochs` and `seed` matter to an online transform only."""
        if self.online is None:
            inputs, targets = self.columns["inputs"], self.columns["targets"]
            return [(inputs[row], targets[row]) for row in rows]
        rows = np.asarray(rows)
        epochs = np.zeros_like(rows) if epochs is None else epochs
        chunks = [self.columns["targets"][row] for row in rows]
        return self.online.apply(chunks, seed, epochs, rows, self.vocabulary)

    @property
    def vocabulary(self) -> seqio.Vocabulary:
        return seqio.TaskRegistry.get(self.task_name).output_features["targets"].vocabulary

    def inputs(self, row: int) -> np.ndarray:
        return self.pairs(np.array([row]))[0][0]

    def targets(self, row: int) -> np.ndarray:
        return self.pairs(np.array([row]))[0][1]

    def example(self, row: int) -> dict[str, object]:
        """The features of a row besides its tokens, as SeqIO hands them to postprocessing."""
        found = json.loads(self.other[row].tobytes())
        return {name: from_json(value, self.dtypes[name]) for name, value in found.items()}


def to_json(value: object) -> object:
    """Bytes become text byte by byte (latin-1), which loses nothing; arrays become lists."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist())
    if isinstance(value, Mapping):
        return {name: to_json(part) for name, part in value.items()}
    if isinstance(value, list):
        return [to_json(part) for part in value]
    return value


def type_names(spec: Any) -> object:
    """Names of types, in dictionaries where features are nested."""
    if isinstance(spec, Mapping):
        return {name: type_names(part) for name, part in spec.items()}
    return spec.dtype.name


def from_json(value: Any, dtype: Any) -> object:
    if isinstance(dtype, Mapping):
        return {name: from_json(value[name], part) for name, part in dtype.items()}
    if dtype != "string":
        return np.array(value, dtype)[()]
    return value.encode("latin-1") if isinstance(value, str) else np.array(_encoded(value), object)


def _encoded(value: Any) -> object:
    if isinstance(value, list):
        return [_encoded(part) for part in value]
    return value.encode("latin-1")
