"""A safetensors file read in parts: its header, and of a tensor the bytes that are asked for.

A file is 8 bytes of length, a JSON header {name: {dtype, shape, data_offsets}} and the tensors'
bytes in C order. The library safetensors reads local files only and maps them into memory, where
every page that was touched counts as memory of the process; this reads any path that opens.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, nearest, shortened
from pemt_jax.common.lazy_array import Index, LazyArray, aligned
from pemt_jax.common.user_input.files import decoded, parse_json

# The format's names of dtypes, in the order in which a file has its arrays.
DTYPES = {
    code: np.dtype(kind)
    for code, kind in {
        "U64": np.uint64,
        "I64": np.int64,
        "F64": np.float64,
        "F32": np.float32,
        "U32": np.uint32,
        "I32": np.int32,
        "BF16": ml_dtypes.bfloat16,
        "F16": np.float16,
        "U16": np.uint16,
        "I16": np.int16,
        "I8": np.int8,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
FACTS = ("data_offsets", "shape")  # lists of integers of every tensor
LONGEST_HEADER = 10**8  # bytes, as the library
PART_BYTES = 2**20  # read at once
# Shorter runs of adjacent bytes are read together with the bytes between them: a disk reads pages
# in any case, and a bucket answers a request in the time in which it sends a megabyte.
RUN_BYTES, REMOTE_RUN_BYTES = 2**12, 2**20


def open_weights(path: str | os.PathLike) -> dict[str, LazyArray]:
    """The arrays of the safetensors file `path`, each read when it is asked for.

    Raises:
      PemtError: no such file, or one that is truncated or not safetensors; when an array is read,
        a file that is no longer there or has become shorter.
    """
    path = storage.path(path)
    with _opened(path) as file:
        header, start = _read_header(file)
        return {name: _array(path, name, start, entry) for name, entry in sorted(header.items())}


def _read_header(file: IO[bytes]) -> tuple[dict[str, dict[str, Any]], int]:
    """The tensors' entries in the header, and where their bytes start; ValueError if damaged."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    start = 8 + length
    if length > LONGEST_HEADER or start > size:
        raise ValueError("its header is too long")
    header = parse_json(decoded(file.read(length)))
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if not _is_entry(entry):
            raise ValueError(f"the entry of {shortened(name)} has no shape and data_offsets")
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, after = entry["data_offsets"]
        if begin != end or after < begin:
            raise ValueError(f"the place of {shortened(name)} is wrong")
        end = after
    if start + end != size:
        raise ValueError(f"{start + end} bytes were expected")
    return header, start


def _is_entry(entry: Any) -> bool:
    """Whether what a header says of a tensor has lists of integers where they are read."""
    found = [entry.get(fact) if isinstance(entry, dict) else None for fact in FACTS]
    if not all(isinstance(numbers, list) and set(map(type, numbers)) <= {int} for numbers in found):
        return False
    return len(entry["data_offsets"]) == 2


def _array(path: Path, name: str, start: int, entry: dict[str, Any]) -> LazyArray:
    """One tensor of the file `path`, whose bytes begin at `start`."""
    if not isinstance(code := entry.get("dtype"), str) or code not in DTYPES:
        raise PemtError(
            f"Tensor {shortened(name)} in {path} is of dtype {shortened(code)}, expected one of "
            f"{', '.join(DTYPES)}."
        )
    shape, dtype = tuple(entry["shape"]), DTYPES[code]
    begin, end = entry["data_offsets"]
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"the size of {shortened(name)} is wrong")
    shortest = REMOTE_RUN_BYTES if storage.is_remote(path) else RUN_BYTES

    def read(index: Index) -> np.ndarray:
        part = aligned(tuple(piece.stop - piece.start for piece in index), dtype)
        if part.size:
            with _opened(path) as file:
                as_bytes = part.reshape(-1).view(np.uint8).reshape(*part.shape, dtype.itemsize)
                every_byte = slice(0, dtype.itemsize)
                place = start + begin, (*shape, dtype.itemsize), (*index, every_byte)
                _read_part(file, *place, as_bytes, shortest)
        return part

    return LazyArray(shape, dtype, read)


def _read_part(
    file: IO[bytes],
    start: int,
    shape: tuple[int, ...],
    index: Index,
    part: np.ndarray,
    shortest: int,
) -> None:
    """Fill `part` with the entries `index` of the array of bytes of this shape that is at `start`.

    Runs of adjacent bytes shorter than `shortest` are read together with those between them.
    """
    rows, row_bytes = index[0], math.prod(shape[1:])
    if part.shape[1:] == shape[1:]:
        _read_bytes(file, start + rows.start * row_bytes, part.reshape(-1))
        return
    cut = max(axis for axis in range(1, part.ndim) if part.shape[axis] < shape[axis])
    if math.prod(part.shape[cut:]) < shortest:
        step = max(1, PART_BYTES // row_bytes)
        for first in range(rows.start, rows.stop, step):
            block = np.empty((min(step, rows.stop - first), *shape[1:]), np.uint8)
            _read_bytes(file, start + first * row_bytes, block.reshape(-1))
            at = first - rows.start
            part[at : at + len(block)] = block[(slice(None), *index[1:])]
        return
    for row in range(rows.start, rows.stop):
        within = part[row - rows.start]
        _read_part(file, start + row * row_bytes, shape[1:], index[1:], within, shortest)


def _read_bytes(file: IO[bytes], position: int, part: np.ndarray) -> None:
    file.seek(position)
    at = 0
    while at < len(part):
        found = file.read(min(PART_BYTES, len(part) - at))
        if not found:
            raise ValueError(f"it ends at byte {position + at}")
        part[at : at + len(found)] = np.frombuffer(found, np.uint8)
        at += len(found)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The safetensors file `path`; PemtError in place of what reading a damaged one raises."""
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise PemtError(f"There is no weight file {path}{nearest(path.name, siblings)}.")
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise PemtError(f"{path} cannot be read: {storage.reason(error)}.") from error
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise PemtError(
            f"Expected a whole safetensors file at {path}, found one that is truncated, damaged or "
            f"of another format ({error})."
        ) from error
