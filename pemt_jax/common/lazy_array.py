"""Arrays that are still on disk, so that a model larger than memory passes through it in parts.

What names, checks, cuts, transposes or casts parameters uses `shape`, `dtype`, slices, `T` and
`astype` only, which a NumPy array has too; the numbers are read where `np.asarray` is called, anew
at each call, and of a slice only those in it.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

ALIGNMENT = 64  # bytes
COLUMNS = 512  # copied at once: a transposed array is read through the processor's caches

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array by its shape, its dtype, and a function that reads a part of it.

    The function takes a slice for each axis, with a start and a stop inside the array and no step.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        array = self.read(tuple(slice(0, size) for size in self.shape))
        return array if dtype is None else array.astype(dtype, copy=False)

    def __getitem__(self, index: slice | Index) -> "LazyArray":
        """The part in these slices, unread; as in NumPy, axes that are not named are complete."""
        index = (index,) if isinstance(index, slice) else index
        part = (*index, *(slice(None),) * (len(self.shape) - len(index)))
        ranges = [range(size)[piece] for piece, size in zip(part, self.shape, strict=True)]
        if any(numbers.step != 1 for numbers in ranges):
            raise ValueError(f"Found steps in {index}, expected slices of adjacent entries.")
        starts = [numbers.start for numbers in ranges]

        def read(inside: Index) -> np.ndarray:
            return self.read(
                tuple(
                    slice(start + piece.start, start + piece.stop)
                    for start, piece in zip(starts, inside, strict=True)
                )
            )

        return LazyArray(tuple(map(len, ranges)), self.dtype, read)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def T(self) -> "LazyArray":  # noqa: N802  (NumPy's name)
        return LazyArray(self.shape[::-1], self.dtype, lambda index: self.read(index[::-1]).T)

    def astype(self, dtype) -> "LazyArray":
        dtype = np.dtype(dtype)
        return LazyArray(
            self.shape, dtype, lambda index: self.read(index).astype(dtype, copy=False)
        )


def lazy(array: np.ndarray | LazyArray) -> LazyArray:
    """`array`, which may be in memory or mapped from a file, as a lazy one."""
    if isinstance(array, LazyArray):
        return array
    return LazyArray(array.shape, array.dtype, array.__getitem__)


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that begins at a multiple of 64 bytes: a CPU device uses its memory as it is,
    where it would copy any other."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def for_device(array: np.ndarray) -> np.ndarray:
    """`array`, or a copy of it, in memory that a CPU device uses as it is; see `aligned`."""
    if array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        return array
    copy = aligned(array.shape, array.dtype)
    source, target = np.atleast_1d(array), np.atleast_1d(copy)
    for start in range(0, source.shape[-1], COLUMNS):
        target[..., start : start + COLUMNS] = source[..., start : start + COLUMNS]
    return copy
