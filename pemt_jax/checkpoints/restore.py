"""Reading a checkpoint back, every leaf checked against its manifest.

Files from elsewhere may be damaged in any way: whatever orbax and tensorstore raise for it becomes
one sentence that names the leaf.
"""

import contextlib
import gc
import logging
import sys
import warnings
from collections.abc import Mapping

import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp

from pemt_jax.checkpoints.manifest import flatten_state, record_leaves
from pemt_jax.common.errors import PemtError


class DamagedCheckpoint(PemtError):
    """The bytes of a checkpoint are not those that were saved."""


def restore(manager: ocp.CheckpointManager, step: int, target, records: Mapping[str, Mapping]):
    """Return the item `state` of `step`, in the structure, dtypes and shardings of `target`.

    `records` are the manifest's, {path: {sha256, shape, dtype}} of the leaves of `target`.

    Raises:
        PemtError: another set of leaves or other shapes.
        DamagedCheckpoint: bytes that differ from their records.
    """
    flat = flatten_state(target)
    where = f"Checkpoint {manager.directory / str(step)}"
    for path in sorted(flat.keys() | records.keys()):
        if path not in records:
            raise PemtError(f"{where} has no {path}, expected shape {flat[path].shape}.")
        if path not in flat:
            raise PemtError(f"{where} has {path}, expected only what this run trains.")
        found, expected = tuple(records[path]["shape"]), tuple(flat[path].shape)
        if found != expected:
            raise PemtError(f"{where} has {path} of shape {found}, expected {expected}.")
    abstract = {
        path: jax.ShapeDtypeStruct(
            leaf.shape, np.dtype(records[path]["dtype"]), sharding=_sharding(leaf)
        )
        for path, leaf in flat.items()
    }
    restored = _read(manager, step, abstract)
    if restored is None:
        # Which leaf it is only reading them one by one can tell.
        restored = {path: _read(manager, step, {path: abstract[path]}) for path in flat}
        restored = {path: found and found[path] for path, found in restored.items()}
    readable = {path: restored[path] for path in flat if restored[path] is not None}
    hashes = {path: record.result()["sha256"] for path, record in record_leaves(readable).items()}
    damaged = [path for path in flat if hashes.get(path) != records[path]["sha256"]]
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise DamagedCheckpoint(
            f"{where} is damaged: the bytes of {damaged[0]}{more} differ from its manifest, "
            f"expected sha256 {records[damaged[0]]['sha256']}."
        )
    leaves = [restored[path].astype(leaf.dtype) for path, leaf in flat.items()]
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


def nested(flat: Mapping) -> dict:
    """Return the tree of a flat {path: leaf}."""
    return flax.traverse_util.unflatten_dict(dict(flat), sep="/")


def _read(
    manager: ocp.CheckpointManager, step: int, abstract: Mapping[str, jax.ShapeDtypeStruct]
) -> dict | None:
    """Return {path: array} of the named leaves, or None when the files cannot be read."""
    tree = nested(abstract)
    args = ocp.args.PyTreeRestore(
        tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True
    )
    with _quiet():
        try:
            found = manager.restore(step, args=ocp.args.Composite(state=args))
        except Exception:  # orbax and tensorstore raise many kinds for damaged files
            found = None
        if found is None:
            # Reads that were under way die here, where their complaints are not heard.
            gc.collect()
            return None
    return flatten_state(found["state"])


@contextlib.contextmanager
def _quiet():
    """Silence what orbax's other reads print when one of them fails; the caller says it once."""
    hooks, level = (sys.unraisablehook, sys.excepthook), logging.root.manager.disable
    sys.unraisablehook = sys.excepthook = lambda *_: None
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        sys.unraisablehook, sys.excepthook = hooks


def _sharding(leaf):
    return getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
