"""The manifest of a checkpoint: JSON with the sha256, shape and dtype of every leaf.

It lies inside the checkpoint as its own item, so both come into being in one rename. A leaf is
known by the '/'-joined path to it in the train state. The manifest also holds its own sha256.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from pemt_jax.common.storage import replacing

ITEM = "manifest"


def flatten_state(state) -> dict[str, jax.Array]:
    """Return {path: leaf} of any tree; nodes without leaves have no entry."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def leaf_record(leaf) -> dict:
    """Return {sha256, shape, dtype} of an array; the sha256 is of its bytes in C order."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    array = np.ascontiguousarray(leaf)
    digest = hashlib.sha256(array.reshape(-1).view(np.uint8)).hexdigest()
    return {"sha256": digest, "shape": list(np.shape(leaf)), "dtype": str(array.dtype)}


def matches(leaf, record: Mapping) -> bool:
    """Return whether the bytes of `leaf` are those of its record."""
    return leaf_record(leaf)["sha256"] == record["sha256"]


def sealed(manifest: Mapping) -> dict:
    """Return a manifest with the sha256 of itself."""
    return {**manifest, "sha256": _digest(manifest)}


def read_manifest(checkpoint: Path) -> dict | None:
    """Return the manifest of a checkpoint folder, or None when it is missing or damaged."""
    try:
        manifest = json.loads((checkpoint / ITEM / "metadata").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _digest(manifest):
        return None
    return manifest


def replace_manifest(checkpoint: Path, manifest: Mapping) -> None:
    """Put another manifest into a checkpoint, at once or not at all."""
    with replacing(checkpoint / ITEM / "metadata") as partial:
        partial.write_text(json.dumps(sealed(manifest)), encoding="utf-8")


def _digest(manifest: Mapping) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
