"""A pretrained T5 from wherever it comes: what every path of a base may be.

A Hugging Face folder (`hf`), or a T5X checkpoint or run (`t5x`), local or remote, or a name on the
hub (`library.hub_names`). A base is opened and not read: each process of a run reads the parts that
its devices hold (parallel/partitioning).
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.common.hashing import fingerprint, sha256_file, verify_checksums
from pemt_jax.common.lazy_array import LazyArray, lazy
from pemt_jax.config import T5Config
from pemt_jax.interop import hf, t5x
from pemt_jax.interop.base_fingerprint import KnownFingerprint, sample
from pemt_jax.library.hub_names import local_folder
from pemt_jax.parallel import processes


def load_base(path: str | os.PathLike) -> tuple[T5Config, dict[str, np.ndarray]]:
    """Read a pretrained T5: its shape and flat float32 parameters under T5X's names.

    Raises:
      PemtError: nothing there, nothing known, or a file that is damaged or does not fit.
    """
    verify_base(path)
    config, params = open_base(path)
    return config, {
        name: np.asarray(array, np.float32, order="C") for name, array in params.items()
    }


def open_base(path: str | os.PathLike) -> tuple[T5Config, dict[str, LazyArray]]:
    """As `load_base`, but parameters in their stored dtypes, each read when it is asked for.

    Only shapes are checked; see `verify_base`.
    """
    folder, is_t5x = _locate(path)
    config, params = t5x.open_t5x(folder) if is_t5x else hf.open_hf(folder)
    return config, {name: lazy(array) for name, array in params.items()}


def verify_base(path: str | os.PathLike) -> None:
    """Raise PemtError when a file is not as the SHA256SUMS of its base says; without one, pass."""
    folder, _ = _locate(path)
    verify_checksums(folder)


def _locate(path: str | os.PathLike) -> tuple[Path, bool]:
    """The folder that has a base's files, and whether it is T5X's."""
    path = os.fspath(local_folder(path))
    place = storage.current(storage.path(path))
    if hf.is_hf(path):
        return place, False
    if t5x.is_t5x(path):
        return t5x.find_checkpoint(path), True
    expected = "expected a Hugging Face T5 (config.json, model.safetensors) or a T5X checkpoint"
    if place.is_symlink() and not place.exists():
        raise PemtError(f"{path} is a link to nothing, {expected}.")
    if not place.exists():
        siblings = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
        raise PemtError(
            f"There is no model folder {path}, {expected}{nearest(place.name, siblings)}."
        )
    raise PemtError(f"{path} is no model folder, {expected}.")


@dataclasses.dataclass(frozen=True)
class Base:
    """A pretrained T5.

    Attributes:
      t5: its shape.
      params: flat, under T5X's names, each in the dtype in which it is kept; unread.
      fingerprint: hashing.fingerprint of the stored values, whatever dtype they are kept in.
      stored_embedding: the embedding as it is stored.
    """

    t5: T5Config
    params: Mapping[str, LazyArray]
    fingerprint: str
    stored_embedding: LazyArray

    def embedding_rows(self, tokens: Sequence[int]) -> np.ndarray:
        """Float32 embedding rows [len(tokens), D], from what is stored and not what is kept."""
        rows = [np.asarray(self.stored_embedding[token : token + 1]) for token in tokens]
        return np.concatenate(rows).astype(np.float32)


def identify_base(path: str | os.PathLike, kept_dtype: Callable[[str], np.dtype]) -> Base:
    """Open a pretrained T5 and find its fingerprint, in every process of a run.

    Args:
      kept_dtype: parameter path -> dtype in which it is kept.

    Raises:
      PemtError: as `load_base`, or the processes have different bases under this path.
    """
    with processes.first_alone():  # it reads everything, where no run has done so before
        folder, is_t5x = _locate(path)
        known = KnownFingerprint(folder, has_folders=is_t5x) if processes.is_first() else None
        if known and known.value is None:
            verify_base(path)
        t5, stored = open_base(path)
        if known and known.value is None:
            known.remember(fingerprint(stored))
    found = processes.from_first(known.value if known else None)
    assert found is not None  # the first process has one
    if jax.process_count() > 1 and not storage.is_remote(folder):
        processes.agree(base=sample(stored))
    params = {name: array.astype(kept_dtype(name)) for name, array in stored.items()}
    return Base(t5, params, found, stored["token_embedder/embedding"])


def check_vocabulary(vocabulary, t5: T5Config, base: str | None) -> None:
    """Raise UsageError when the vocabulary cannot be the one the base was trained with."""
    own = base and storage.path(local_folder(base)) / "spiece.model"
    if own and own.is_file() and sha256_file(own) != vocabulary.sha256:
        raise UsageError(
            f"The vocabulary {vocabulary} is not the one beside the base, expected {own}; set "
            "VOCABULARY to it."
        )
    # Embeddings are padded to a multiple of 128 rows at most.
    fits = 0 <= t5.vocab_size - vocabulary.vocab_size < 128
    if not fits and base and vocabulary.is_fallback:
        raise UsageError(
            f"The base {base} has no tokenizer, expected a spiece.model or a tokenizer.json in its "
            "folder, or VOCABULARY set to such a file ('bytes' for a ByT5)."
        )
    if not fits:
        raise UsageError(
            f"The vocabulary {vocabulary} has {vocabulary.vocab_size} entries but the checkpoint "
            f"has {t5.vocab_size} embedding rows, expected a vocabulary made for it."
        )
