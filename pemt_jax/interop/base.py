"""A pretrained T5 from wherever it comes: what every path of a base may be.

A Hugging Face folder (`hf`), or a T5X checkpoint or run, local or gs:// (`t5x`).
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from etils import epath

from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.common.hashing import Fingerprint, sha256_file
from pemt_jax.common.lazy_array import LazyArray
from pemt_jax.common.storage import current
from pemt_jax.config import T5Config
from pemt_jax.interop import hf, t5x

ALIGNMENT = 64  # bytes


def load_base(path: str | os.PathLike) -> tuple[T5Config, dict[str, np.ndarray]]:
    """Read a pretrained T5: its shape and flat float32 parameters under T5X's names.

    Raises:
      PemtError: nothing there, nothing known, or a file that is damaged or does not fit.
    """
    config, params = open_base(path)
    return config, {
        name: np.asarray(array, np.float32, order="C") for name, array in params.items()
    }


def open_base(path: str | os.PathLike) -> tuple[T5Config, dict[str, LazyArray | np.ndarray]]:
    """As `load_base`, but parameters in their stored dtypes, each read when it is asked for."""
    path = os.fspath(path)
    path = path if "://" in path else os.fspath(current(Path(path)))
    if "://" not in path and hf.is_hf(path):
        return hf.open_hf(path)
    if t5x.is_t5x(path):
        return t5x.open_t5x(path)
    expected = "expected a Hugging Face T5 (config.json, model.safetensors) or a T5X checkpoint"
    place = epath.Path(path)
    if not place.exists():
        siblings = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
        raise PemtError(
            f"There is no model folder {path}, {expected}{nearest(place.name, siblings)}."
        )
    raise PemtError(f"{path} is no model folder, {expected}.")


@dataclasses.dataclass(frozen=True)
class Base:
    """A pretrained T5 in memory.

    Attributes:
      t5: its shape.
      params: flat, under T5X's names, each in the dtype in which it is kept.
      fingerprint: hashing.fingerprint of the stored values, whatever dtype they are kept in.
      stored_embedding: the embedding as it is stored.
    """

    t5: T5Config
    params: dict[str, np.ndarray]
    fingerprint: str
    stored_embedding: LazyArray | np.ndarray

    def embedding_rows(self, tokens: Sequence[int]) -> np.ndarray:
        """Float32 embedding rows [len(tokens), D], from what is stored and not what is kept."""
        return np.asarray(self.stored_embedding)[list(tokens)].astype(np.float32)


def read_base(path: str | os.PathLike, kept_dtype: Callable[[str], np.dtype]) -> Base:
    """Read a pretrained T5 array by array: at most one more than is kept is in memory.

    Args:
      kept_dtype: parameter path -> dtype in which it is kept.

    Raises:
      PemtError: as `load_base`.
    """
    t5, stored = open_base(path)
    digest, params = Fingerprint(), {}
    with ThreadPoolExecutor(1) as hashing:  # in the order of names, beside the next reading
        before = None
        for name in sorted(stored):
            values = np.asarray(stored[name])
            if before:
                before.result()
            before = hashing.submit(digest.update, name, values)
            params[name] = aligned(values.shape, kept_dtype(name))
            params[name][...] = values
        assert before  # a T5 has parameters
        before.result()
    return Base(t5, params, digest.hexdigest(), stored["token_embedder/embedding"])


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that begins at a multiple of 64 bytes: a CPU device uses its memory as it is,
    where it would copy any other."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def check_vocabulary(vocabulary, t5: T5Config, base: str | None) -> None:
    """Raise UsageError when the vocabulary cannot be the one the base was trained with."""
    own = Path(base or "") / "spiece.model"
    if base and own.is_file() and sha256_file(own) != vocabulary.sha256:
        raise UsageError(
            f"The vocabulary {vocabulary} is not the one beside the base, expected {own}; set "
            "VOCABULARY to it."
        )
    # Embeddings are padded to a multiple of 128 rows at most.
    if not 0 <= t5.vocab_size - vocabulary.vocab_size < 128:
        raise UsageError(
            f"The vocabulary {vocabulary} has {vocabulary.vocab_size} entries but the checkpoint "
            f"has {t5.vocab_size} embedding rows, expected a vocabulary made for it."
        )


def absolute(path: str | os.PathLike) -> str:
    """The path of a base as a card keeps it, so that it is found from anywhere."""
    path = os.fspath(path)
    return path if "://" in path else str(Path(path).resolve())
