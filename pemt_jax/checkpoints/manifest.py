"""The manifest of a checkpoint: JSON with the sha256, shape and dtype of every leaf.

It is an item of the checkpoint beside the arrays, so both appear in one rename. A leaf is known by
the '/'-joined path to it in the train state. The manifest also holds its own sha256.

Leaves are hashed in threads while the arrays are being written: a save holds training up only until
their values are on the host.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import future

from pemt_jax.checkpoints.failures import DAMAGE, unreadable
from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, shortened
from pemt_jax.parallel import processes

ITEM = "manifest"
_FILE = "metadata"
# What is read of every manifest, and its kinds; runs add their own fields.
_FIELDS = {
    "step": (int,),
    "identity": (dict, type(None)),
    "leaves": (dict,),
    "metrics": (dict, type(None)),
    "score": (dict, type(None)),
}
_LEAF = {"sha256": str, "shape": list, "dtype": str}


def flatten_state(state) -> dict[str, jax.Array]:
    """Return {path: leaf} of any tree; nodes without leaves have no entry."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def leaf_record(array) -> dict:
    """Return {sha256, shape, dtype} of an array; the sha256 is of its bytes in C order."""
    shape = list(np.shape(array))
    array = np.ascontiguousarray(array)
    digest = hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()
    return {"sha256": digest, "shape": shape, "dtype": str(array.dtype)}


def record_leaves(flat: Mapping[str, jax.Array]) -> dict[str, Future]:
    """Return {path: future of its record}; the caller may give the arrays away at once.

    Every process calls this, with the same leaves: those that no process holds completely are
    gathered.
    """
    for leaf in flat.values():
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            leaf.copy_to_host_async()
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="hash")
    try:
        return {path: pool.submit(leaf_record, _on_host(leaf)) for path, leaf in flat.items()}
    finally:
        pool.shutdown(wait=False)  # its threads end after the last leaf


def _on_host(leaf) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    # On the CPU this is the device's own memory; JAX gives it to nobody while it is referenced.
    return np.asarray(leaf)


class ManifestHandler(ocp.AsyncCheckpointHandler):
    """Writes the manifest of a checkpoint, in the background, when its leaves are hashed."""

    async def async_save(self, directory, args: "ManifestSave") -> list[future.Future] | None:
        return [future.CommitFutureAwaitingContractedSignals(_write(directory, args))]

    def save(self, directory, args: "ManifestSave"):
        raise NotImplementedError("Checkpoints are saved asynchronously.")

    def restore(self, directory, args=None):
        raise NotImplementedError("Manifests are read by read_manifest.")


@ocp.args.register_with_handler(ManifestHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class ManifestSave(ocp.args.CheckpointArgs):
    """A manifest to save without its leaves, and these as futures of record_leaves.

    Orbax wants every handler to have arguments for restoring too; nothing uses them.
    """

    manifest: Mapping[str, object]
    leaves: Mapping[str, Future]


async def _write(directory, args: ManifestSave) -> None:
    leaves = {path: record.result() for path, record in args.leaves.items()}
    if processes.is_first():
        text = json.dumps(sealed({**args.manifest, "leaves": leaves}))
        (directory / _FILE).write_text(text)


def sealed(manifest: Mapping) -> dict:
    """Return a manifest with the sha256 of itself."""
    return {**manifest, "sha256": _digest(manifest)}


def read_manifest(checkpoint: Path) -> dict | None:
    """Return the manifest of a checkpoint folder, or None when it is missing or damaged.

    Raises:
        PemtError: its file cannot be read, which says nothing about its bytes; or it is whole, but
            another version's.
    """
    file = checkpoint / ITEM / _FILE
    try:
        manifest = json.loads(storage.check_plain(file).read_bytes())
    except OSError as error:
        if error.errno in DAMAGE:
            return None
        raise unreadable(file, storage.reason(error)) from error
    except (ValueError, RecursionError):  # no JSON, or bytes that are no text
        return None
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _digest(manifest):
        return None
    if fault := _fault(manifest):
        raise PemtError(
            f"{file} is of another version: {fault}, expected a checkpoint of this version."
        )
    return manifest


def _fault(manifest: Mapping) -> str | None:
    """What a manifest lacks, or has of another kind than it is read as."""
    for name, kinds in _FIELDS.items():
        if type(manifest.get(name, ...)) not in kinds:
            return f"its {name} is {shortened(manifest.get(name))}"
    for path, leaf in manifest["leaves"].items():
        for name, kind in _LEAF.items():
            if not isinstance(leaf, dict) or not isinstance(leaf.get(name), kind):
                return f"its record of {path} has no {name}"
        try:
            np.dtype(leaf["dtype"])
        except TypeError:
            return f"its record of {path} has the dtype {leaf['dtype']!r}"
    scored = (manifest["score"] or {}).get("value", 0.0)
    if not isinstance(scored, int | float):
        return f"its score is {shortened(manifest['score'])}"
    return None


def replace_manifest(checkpoint: Path, manifest: Mapping) -> None:
    """Put another manifest into a checkpoint, at once or not at all."""
    with storage.replacing(checkpoint / ITEM / _FILE) as partial:
        partial.write_text(json.dumps(sealed(manifest)), encoding="utf-8")


def _digest(manifest: Mapping) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
