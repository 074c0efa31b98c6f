"""T5X checkpoints as backbones, in and out, without T5X.

T5X writes three forms, all of which are read; only the parameters (`target`), never the optimizer:

    checkpoint_N/checkpoint, target.encoder.layers_0.../    legacy: msgpack, a zarr array each
    checkpoint_N/state/checkpoint, target.encoder.../       orbax of 2023, much the same
    checkpoint_N/state/_METADATA, manifest.ocdbt, d/        orbax: zarr arrays in one OCDBT store

Arrays are found by the names they are stored under.  What a checkpoint says about their places is
not followed: it is a stranger's file, and could point anywhere.  A chunk that is missing is an
error, not the zeros that tensorstore makes of it.

Written is the legacy form, which every T5X reads (`RestoreCheckpointConfig` as well as
`load_t5x_checkpoint`) and which is written array by array with flax and tensorstore alone.
Paths are local or gs://.  The configuration is read from the arrays' shapes (t5x_shapes.py).
"""

import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import flax.traverse_util
import numpy as np
import tensorstore

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.common.lazy_array import Index, LazyArray, aligned
from pemt_jax.common.user_input.files import decoded, parse_json
from pemt_jax.common.weights import nbytes
from pemt_jax.config import T5Config
from pemt_jax.interop.hf_names import FLOATS, parameter_table
from pemt_jax.interop.t5x_shapes import infer_config
from pemt_jax.parallel.memory import check_memory

STEP = re.compile(r"checkpoint_(\d+)")
INDEX, OCDBT, METADATA, STATE = "checkpoint", "manifest.ocdbt", "_METADATA", "state"
ARRAY = re.compile(r"target\.([\w.]+)/(\.zarray|zarr\.json)")
CHUNK_BYTES = 64 * 2**20  # as T5X; what is freed of this size returns to the system at once
VERSION = 3  # of T5X's legacy form
DRIVERS = {"gs": "gcs", "s3": "s3"}  # of tensorstore


def open_t5x(path: str | os.PathLike) -> tuple[T5Config, dict[str, LazyArray | np.ndarray]]:
    """Open a T5X checkpoint: its shape and flat parameters in their stored dtypes, mostly unread.

    SHA256SUMS is not looked at: that would read everything.

    Args:
      path: a checkpoint_N, or a folder of several, of which the newest is opened.

    Raises:
      PemtError: no checkpoint, a damaged one, or one of another model than a T5.
    """
    found = open_target(path)
    config = infer_config({name: array.shape for name, array in found.items()}, str(path))
    params = {}
    for entry in parameter_table(config):
        if entry.path not in found:
            raise PemtError(
                f"Parameter {entry.path!r} is missing in {path}{nearest(entry.path, found)}."
            )
        array = params[entry.path] = found[entry.path]
        if array.shape != entry.shape:
            raise PemtError(
                f"Parameter {entry.path!r} in {path} has shape {list(array.shape)}, "
                f"expected {list(entry.shape)} as its other parameters have it."
            )
    if unknown := sorted(found.keys() - params.keys()):
        raise PemtError(
            f"{path} has {len(unknown)} parameters that are no part of a T5, the first "
            f"is {unknown[0]!r}."
        )
    return config, params


def open_target(path: str | os.PathLike) -> dict[str, LazyArray | np.ndarray]:
    """Every parameter of a T5X checkpoint of any model, by its '/'-joined path."""
    folder = find_checkpoint(path)
    arrays: dict[str, LazyArray | np.ndarray] = dict(_inline(folder))
    try:
        kvstore = _store(folder, ocdbt=(folder / OCDBT).exists())
        for file in () if storage.is_remote(folder) else folder.rglob("*"):
            storage.check_plain(file)  # tensorstore would wait for a pipe
        stored = tensorstore.KvStore.open(kvstore).result()
        for key in stored.list().result():
            if match := ARRAY.fullmatch(key.decode()):
                parse_json(decoded(stored.read(key).result().value))  # it crashes on a deep one
                name = match[1].replace(".", "/")
                driver = "zarr" if match[2] == ".zarray" else "zarr3"
                arrays[name] = _array(folder, kvstore, f"target.{match[1]}", driver)
    except ValueError as error:
        raise _damaged(folder, error) from error
    if not arrays:
        raise PemtError(f"{folder} holds no parameters, expected arrays named target.*.")
    for name, array in arrays.items():
        if array.dtype not in FLOATS:
            raise PemtError(
                f"Parameter {name!r} in {folder} is of {array.dtype}, expected floating"
                "-point numbers."
            )
    return arrays


def is_t5x(path: str | os.PathLike) -> bool:
    """Whether `path` is, or holds, a T5X checkpoint."""
    return _find(storage.path(path)) is not None


def find_checkpoint(path: str | os.PathLike) -> Path:
    """The folder of arrays that `path` means: its own, or that of its newest checkpoint_N.

    Raises:
      PemtError: there is none.
    """
    path = storage.path(path)
    if found := _find(path):
        return found
    state = "holds none" if path.is_dir() else "does not exist"
    raise PemtError(f"{path} {state}, expected a T5X checkpoint or a folder of checkpoint_N.")


def save_t5x(
    folder: str | os.PathLike,
    params: Mapping[str, np.ndarray | LazyArray],
    dtype: str | None = None,
    step: int = 0,
) -> None:
    """Write `params` (flat) as the legacy T5X checkpoint `folder`, which has no optimizer state.

    T5X wants the folder to be named checkpoint_N.  It counts as a checkpoint when it is whole: the
    file that makes it one comes last.

    Args:
      folder: local or gs://; made when missing.
      params: path -> array.
      dtype: "bfloat16" or "float32", how numbers are stored; None as they are.
      step: the training step that T5X continues from.

    Raises:
      PemtError: it cannot be written.
    """
    folder = storage.path(folder)
    specs = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, array in params.items():
            name = "target." + path.replace("/", ".")
            number = np.dtype(dtype or array.dtype)
            row = max(1, nbytes(array) // max(1, array.shape[0] if array.shape else 1))
            chunks = [
                min(size, max(1, CHUNK_BYTES // row)) if i == 0 else size
                for i, size in enumerate(array.shape)
            ]
            metadata = {"shape": list(array.shape), "chunks": chunks, "compressor": None}
            store = tensorstore.open(
                {"driver": "zarr", "kvstore": _store(folder, name), "metadata": metadata},
                create=True,
                delete_existing=True,
                dtype=number,
            ).result()
            parts = (
                [
                    slice(start, min(start + chunks[0], array.shape[0]))
                    for start in range(0, array.shape[0], chunks[0])
                ]
                if array.shape
                else [...]
            )
            values = np.asarray(array)
            for part in parts:  # a transposed or cast array never has a whole copy
                store[part].write(
                    values[part].astype(number, order="C"),
                    can_reference_source_data_indefinitely=True,
                ).result()
            del values
            driver = (
                {"driver": "file"}
                if not storage.is_remote(folder)
                else {"driver": "gcs", "bucket": "t5x-dummy-bucket"}
            )  # T5X fills in the real one
            specs[("target", *path.split("/"))] = {
                "driver": "zarr",
                "dtype": str(number),
                "kvstore": driver | {"path": f"{name}/"},
                "metadata": metadata,
            }
        tree = flax.traverse_util.unflatten_dict(specs | {("state", "step"): np.int32(step)})
        content = flax.serialization.msgpack_serialize({"version": VERSION, "optimizer": tree})
        (folder / INDEX).write_bytes(content)
    except (OSError, ValueError) as error:
        raise PemtError(
            f"Cannot write {folder}: {getattr(error, 'strerror', None) or error}."
        ) from error


def _find(path: Path) -> Path | None:
    """Where the arrays of the checkpoint at `path`, or of the newest in it, are; None for none."""
    path = path.parent if path.name == INDEX and path.is_file() else path
    for folder in (path, *_steps(path)):
        for place in (folder / STATE, folder):
            if any((place / name).is_file() for name in (INDEX, OCDBT, METADATA)):
                return place
    return None


def _steps(folder: Path) -> list[Path]:
    """The checkpoint_N in `folder`, the newest first."""
    if not folder.is_dir():
        return []
    found = {
        int(match[1]): child for child in folder.iterdir() if (match := STEP.fullmatch(child.name))
    }
    return [found[step] for step in sorted(found, reverse=True)]


def _inline(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays inside the msgpack file itself, if there is one."""
    file = folder / INDEX
    if not file.is_file():
        return
    content = file.read_bytes()
    if content.startswith(b"model_checkpoint_path"):
        raise PemtError(
            f"{folder} is a TensorFlow checkpoint of the Mesh TensorFlow T5, expected "
            "one of T5X, to which t5x.scripts.convert_tf_checkpoint converts it."
        )
    try:
        tree: Any = flax.serialization.msgpack_restore(content)
        target = tree.get("optimizer", tree)["target"]
        leaves = flax.traverse_util.flatten_dict(target, sep="/")
    except Exception as error:  # msgpack and flax raise whatever they meet in a damaged file
        raise _damaged(folder, error) from error
    for name, value in leaves.items():
        if isinstance(value, np.ndarray):
            yield name, value


def _store(folder: Path, inside: str = "", ocdbt: bool = False) -> dict:
    """tensorstore's description of a folder, or of a place inside it."""
    if not storage.is_remote(folder):
        base = {"driver": "file", "path": f"{folder.absolute()}/"}
    else:
        scheme, _, place = os.fspath(folder).partition("://")
        if scheme not in DRIVERS:
            raise UsageError(
                f"Found a T5X checkpoint at {folder}, expected gs:// or s3:// or a disk."
            )
        bucket, _, rest = place.partition("/")
        base = {"driver": DRIVERS[scheme], "bucket": bucket, "path": f"{rest.rstrip('/')}/"}
    if ocdbt:
        return {"driver": "ocdbt", "base": base} | ({"path": f"{inside}/"} if inside else {})
    return base | ({"path": f"{base['path']}{inside}/"} if inside else {})


def _array(folder: Path, kvstore: dict, name: str, driver: str) -> LazyArray:
    """The array `name` of a store."""
    spec = {
        "driver": driver,
        "fill_missing_data_reads": False,
        "kvstore": kvstore | {"path": f"{kvstore.get('path', '')}{name}/"},
    }
    store = tensorstore.open(spec, open=True).result()
    dtype = np.dtype(store.dtype.numpy_dtype)
    for size in (store.shape, store.chunk_layout.read_chunk.shape or ()):
        needed = math.prod(axis or 1 for axis in size) * dtype.itemsize
        check_memory(f"{name!r} in {folder}, by its shape {list(size)},", needed, error=PemtError)

    def read(index: Index) -> np.ndarray:
        values = aligned(tuple(piece.stop - piece.start for piece in index), dtype)
        try:
            if not index:
                values[...] = store.read().result()
            else:  # by chunks along the first axis: all at once, they are in memory twice
                (first, last), others = (index[0].start, index[0].stop), index[1:]
                rows = (store.chunk_layout.read_chunk.shape or (0,))[0] or max(1, store.shape[0])
                edges = [first, *range((first // rows + 1) * rows, last, rows), last]
                for start, stop in itertools.pairwise(edges):
                    part = store[(slice(start, stop), *others)].read().result()
                    values[start - first : stop - first] = part
        except ValueError as error:
            raise _damaged(folder, error) from error
        return values

    return LazyArray(tuple(store.shape), dtype, read)


def _damaged(folder: Path, error: Exception) -> PemtError:
    reason = str(error).partition(" [")[0].replace("\n", " ")
    return PemtError(
        f"Expected a whole T5X checkpoint at {folder}, found one that is damaged ({reason})."
    )
