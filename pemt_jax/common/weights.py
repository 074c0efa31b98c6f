"""Arrays on disk: the one place that writes safetensors; `safetensors_file` reads them.

Every weight file of the project goes through `save_weights`. It writes each array in the order of
its indices: safetensors 0.8.0 takes a transposed view's memory in its own order and writes wrong
numbers without a word, and every kernel that comes from PyTorch is a transposed view. And it writes
one array after the other, where the library's own writer wants all of them in memory; the bytes are
the same. A file is written beside its place, flushed to the disk and renamed, so a reader never
meets half a file. bfloat16 is kept, as NumPy's `ml_dtypes.bfloat16`. Nothing is ever unpickled.
"""

import json
import os
from collections.abc import Iterator, Mapping

import numpy as np

from pemt_jax.common.errors import PemtError
from pemt_jax.common.lazy_array import LazyArray
from pemt_jax.common.safetensors_file import DTYPES, open_weights
from pemt_jax.common.storage import replacing

CODES = {dtype: code for code, dtype in DTYPES.items()}
PART_BYTES = 2**20  # written at once


def save_weights(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray | LazyArray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named arrays to `path` as safetensors, whole or not at all.

    Args:
      path: the file; its folder is made when it is missing.
      arrays: name -> array (NumPy or JAX, any strides, or lazy: read when its turn comes), each
        kept in its own dtype.
      metadata: text that goes into the file's header.

    Raises:
      PemtError: the file cannot be written; what stood at `path` before stands there still.
    """
    codes = {}
    for name, array in arrays.items():
        dtype = np.dtype(array.dtype).newbyteorder("=")
        if dtype not in CODES:
            raise PemtError(
                f"Cannot write {path}: {name!r} is an array of {array.dtype}, "
                f"expected one of {', '.join(map(str, CODES))}."
            )
        codes[name] = CODES[dtype]
    names = sorted(codes, key=lambda name: (list(DTYPES).index(codes[name]), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        start, end = end, end + nbytes(arrays[name])
        header[name] = {
            "dtype": codes[name],
            "shape": list(arrays[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as partial:
        with open(partial, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                for part in _parts(np.asarray(arrays[name])):
                    file.write(part.view(np.uint8))
        partial.chmod(0o644)  # whatever the umask: weights are shared


def nbytes(array: np.ndarray | LazyArray) -> int:
    """The size of an array that need not be in memory."""
    return int(np.prod(array.shape, dtype=np.int64)) * np.dtype(array.dtype).itemsize


def load_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read every array of the safetensors file `path`, each in its stored dtype.

    Raises:
      PemtError: no such file, or one that is truncated or not safetensors.
    """
    return {name: np.asarray(array) for name, array in open_weights(path).items()}


def _parts(array: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers of `array` in order, little-endian, as flat arrays of which none is large."""
    little = array.dtype.newbyteorder("<")
    rows = array if array.ndim else array[None]
    step = max(1, PART_BYTES // max(1, nbytes(rows) // max(1, len(rows))))
    for start in range(0, len(rows), step):  # a transposed array never has a whole copy
        yield np.asarray(rows[start : start + step], little, order="C").reshape(-1)
