"""Reading a checkpoint back, every leaf checked against its manifest.

Files from elsewhere may be damaged in any way: whatever orbax and tensorstore raise for it becomes
one sentence that names the leaf. A read that failed for another reason (failures.py) is an error of
this run. All processes come to the same result.
"""

import contextlib
import gc
import logging
import sys
import traceback
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from pemt_jax.checkpoints.agreement import decide
from pemt_jax.checkpoints.failures import reason_of_failure, reason_of_files, unreadable
from pemt_jax.checkpoints.manifest import flatten_state, record_leaves
from pemt_jax.common.errors import PemtError


class DamagedCheckpoint(PemtError):
    """The bytes of a checkpoint are not those that were saved."""


def restore(checkpoint: Path, target, records: Mapping[str, Mapping]):
    """Return the arrays of a checkpoint in the structure, dtypes and shardings of `target`.

    `records` are the manifest's, {path: {sha256, shape, dtype}} of the leaves of `target`. Every
    process calls this.

    Raises:
        DamagedCheckpoint: bytes that differ from their records, in any process.
        PemtError: other leaves or shapes; or files that cannot be read, in any process.
    """
    flat = flatten_state(target)
    _check_leaves(checkpoint, flat, records)
    abstract = {
        path: jax.ShapeDtypeStruct(
            leaf.shape, np.dtype(records[path]["dtype"]), sharding=_sharding(leaf)
        )
        for path, leaf in flat.items()
    }
    found, damaged = _read(checkpoint, abstract, [abstract])
    if damaged:  # which leaves they are only reading them one by one can tell
        found, damaged = _read(checkpoint, abstract, ([path] for path in abstract))
    try:
        futures = record_leaves({path: found[path] for path in flat if path not in damaged})
        digests = {path: future.result()["sha256"] for path, future in futures.items()}
        wrong = [path for path, sha256 in digests.items() if sha256 != records[path]["sha256"]]
        damaged = decide(None, [*damaged, *wrong])
        if damaged:
            more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            raise DamagedCheckpoint(
                f"Checkpoint {checkpoint} is damaged: the bytes of {damaged[0]}{more} differ from "
                f"its manifest, expected sha256 {records[damaged[0]]['sha256']}."
            )
        leaves = [found[path].astype(leaf.dtype) for path, leaf in flat.items()]
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        reason = reason_of_failure(error)
        if reason is None:
            raise
        raise unreadable(checkpoint, reason) from error
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


def _check_leaves(checkpoint: Path, flat: Mapping, records: Mapping[str, Mapping]) -> None:
    where = f"Checkpoint {checkpoint}"
    for path in sorted(flat.keys() | records.keys()):
        if path not in records:
            raise PemtError(f"{where} has no {path}, expected shape {flat[path].shape}.")
        if path not in flat:
            raise PemtError(f"{where} has {path}, expected only what this run trains.")
        found, expected = tuple(records[path]["shape"]), tuple(flat[path].shape)
        if found != expected:
            raise PemtError(f"{where} has {path} of shape {found}, expected {expected}.")


def nested(flat: Mapping) -> dict:
    """Return the tree of a flat {path: leaf}."""
    return flax.traverse_util.unflatten_dict(dict(flat), sep="/")


def _read(
    checkpoint: Path, abstract: Mapping[str, jax.ShapeDtypeStruct], groups: Iterable[Iterable[str]]
) -> tuple[dict[str, jax.Array], list[str]]:
    """Read groups of leaves; return {path: array}, and the paths that any process found damaged."""
    found, failure = {}, None
    for paths in groups:
        try:
            found |= _read_group(checkpoint, {path: abstract[path] for path in paths}) or {}
        except PemtError as error:
            failure = error
            break
    if failure is None and len(found) < len(abstract) and (reason := reason_of_files(checkpoint)):
        failure = unreadable(checkpoint, reason)
    return found, decide(failure, abstract.keys() - found.keys())


def _read_group(
    checkpoint: Path, abstract: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array] | None:
    """Return {path: array} of the named leaves, or None when their files seem damaged.

    Raises:
        PemtError: reading failed for another reason.
    """
    tree = nested(abstract)
    args = ocp.args.PyTreeRestore(
        tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True
    )
    with _quiet():
        try:
            # Without the manager, whose barriers would wait for a process that has failed.
            handler = ocp.PyTreeCheckpointHandler()
            return flatten_state(handler.restore(epath.Path(checkpoint / "state"), args=args))
        except Exception as error:  # orbax and tensorstore raise many kinds
            failure = error
        # Reads that were under way end here, where their complaints are not heard.
        traceback.clear_frames(failure.__traceback__)
        gc.collect()
    reason = reason_of_failure(failure)
    if reason is None:
        return None
    raise unreadable(checkpoint, reason) from failure


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
