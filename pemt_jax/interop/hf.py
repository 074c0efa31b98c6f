"""T5 as Hugging Face keeps it on disk: config.json and weight files, in and out.

Weights are read from safetensors or PyTorch's own files, whole or in shards, and written as
safetensors.  `hf_names` says which tensor is which parameter, `hf_config` what config.json means.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, nearest
from pemt_jax.common.hashing import verify_checksums
from pemt_jax.common.lazy_array import LazyArray
from pemt_jax.common.safetensors_file import open_weights
from pemt_jax.common.storage import replacing
from pemt_jax.common.user_input.files import read_object
from pemt_jax.common.weights import nbytes, save_weights
from pemt_jax.config import T5Config
from pemt_jax.interop.hf_config import describe, read_config
from pemt_jax.interop.hf_names import has_own_head, rename, to_hf_names
from pemt_jax.interop.torch_files import load_torch_file

CONFIG, WHOLE, TORCH = "config.json", "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"  # after the name of the file that the shards are of
SHARD_BYTES = 5 * 10**9  # a larger model is written in shards


def load_hf(folder: str | os.PathLike) -> tuple[T5Config, dict[str, np.ndarray]]:
    """Read a Hugging Face T5 folder: its configuration and flat float32 parameters.

    Raises:
      PemtError: a file or tensor is missing or damaged, or does not fit config.json.
    """
    verify_checksums(Path(folder))
    config, params = open_hf(folder)
    return config, {
        path: np.asarray(array, np.float32, order="C") for path, array in params.items()
    }


def open_hf(folder: str | os.PathLike) -> tuple[T5Config, dict[str, LazyArray | np.ndarray]]:
    """As `load_hf`, but parameters in their stored dtypes, each read when it is asked for.

    SHA256SUMS is not looked at: that would read everything.
    """
    folder = storage.path(folder)
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise PemtError(
            f"There is no model folder {folder}, expected one with config.json and "
            f"model.safetensors{nearest(folder.name, siblings)}."
        )
    _ = read_config(folder / CONFIG)  # whatever its weights are, it is a T5's
    tensors: dict[str, LazyArray | np.ndarray] = {}
    for file in _weight_files(folder):
        tensors |= open_weights(file) if file.suffix == ".safetensors" else load_torch_file(file)
    config = read_config(folder / CONFIG, lambda: has_own_head(tensors))
    return config, rename(config, tensors, source=str(folder))


def save_hf(
    folder: str | os.PathLike,
    config: T5Config,
    params: Mapping[str, np.ndarray | LazyArray],
    dtype: str | None = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `params` (flat, T5X's names) as a folder that Hugging Face and `load_hf` read.

    Args:
      folder: made when missing; other files in it are left alone.
      config: the shape of the model.
      params: path -> array; entries that are not T5's (an expert's) are left out.
      dtype: "bfloat16" or "float32", how numbers are stored; None as they are.
      shard_bytes: most bytes of tensors in one file.
    """
    folder = Path(folder)
    tensors = to_hf_names(config, params)
    if dtype is not None:
        tensors = {name: array.astype(np.dtype(dtype)) for name, array in tensors.items()}
    shards: list[dict[str, np.ndarray | LazyArray]] = [{}]
    size = 0
    for name, array in tensors.items():
        if shards[-1] and size + nbytes(array) > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += nbytes(array)
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else WHOLE
        save_weights(folder / file, shard, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = sum(map(nbytes, tensors.values()))
        _write_json(
            folder / (WHOLE + INDEX), {"metadata": {"total_size": total}, "weight_map": weight_map}
        )
        (folder / WHOLE).unlink(missing_ok=True)  # it would be read instead
    stored = str(np.dtype(tensors["shared.weight"].dtype))
    _write_json(folder / CONFIG, describe(config, stored))


def is_hf(folder: str | os.PathLike) -> bool:
    """Whether `folder` looks like a Hugging Face model, whole or not."""
    folder = storage.path(folder)
    return folder.is_dir() and ((folder / CONFIG).is_file() or bool(_found(folder)))


def _weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder: a whole one, or the shards that an index names."""
    for name in (WHOLE, TORCH):
        if (folder / name).is_file():
            return [folder / name]
        if (folder / (name + INDEX)).is_file():
            return _shards(folder / (name + INDEX), os.path.splitext(name)[1])
    raise PemtError(
        f"Expected {WHOLE} or {TORCH} (or an index of shards) in {folder}, found "
        f"{', '.join(_found(folder)) or 'no weight file'}."
    )


def _shards(index: Path, suffix: str) -> list[Path]:
    """The files that an index names, which must be in its folder."""
    shards = read_object(index, "the index of a model's shards").get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise PemtError(f"{index} has no weight_map, expected tensor names and their files.")
    files = sorted(set(map(str, shards.values())))
    for file in files:
        if "/" in file or "\\" in file or not file.endswith(suffix):
            raise PemtError(
                f"{index} names the file {file!r}, expected a {suffix} file inside its own folder."
            )
    return [index.parent / file for file in files]


def _found(folder: Path) -> list[str]:
    """Names of what could be weight files."""
    kinds = (".safetensors", ".bin", ".h5", ".msgpack")
    return sorted(p.name for p in folder.iterdir() if p.suffix in kinds and p.is_file())


def _write_json(path: Path, values: dict) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
