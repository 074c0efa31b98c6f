"""Arrays that are still on disk, so that a model larger than memory passes through it one by one.

What names, checks, transposes or casts parameters uses `shape`, `dtype`, `T` and `astype` only,
which a NumPy array has too; the numbers are read where `np.asarray` is called, anew at each call.
"""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array by its shape, its dtype, and a function that reads it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        array = self.read()
        return array if dtype is None else array.astype(dtype, copy=False)

    @property
    def T(self) -> "LazyArray":  # noqa: N802  (NumPy's name)
        return LazyArray(self.shape[::-1], self.dtype, lambda: self.read().T)

    def astype(self, dtype) -> "LazyArray":
        dtype = np.dtype(dtype)
        return LazyArray(self.shape, dtype, lambda: self.read().astype(dtype, copy=False))
