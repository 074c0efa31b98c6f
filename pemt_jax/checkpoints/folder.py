"""The folder of a run's checkpoints as it is on disk, before and beside orbax.

One sub-folder per step, named by its number. A checkpoint whose manifest is missing or damaged is
not finished; it is renamed to `STEP.damaged`, where orbax does not count it. In a bucket orbax
writes commit_success.txt last, and it is the first to go when a checkpoint is removed: a checkpoint
without it does not count.
"""

import contextlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from pemt_jax.checkpoints.failures import unreadable
from pemt_jax.checkpoints.manifest import ITEM, read_manifest
from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError, warn

STEP = re.compile(r"0|[1-9]\d{0,17}", re.ASCII)
COMMITTED = "commit_success.txt"
_ENTRIES = {"state", ITEM, "metrics", "_CHECKPOINT_METADATA", COMMITTED}


def manifests(folder: Path) -> dict[int, dict | None]:
    """Return {step: manifest} in ascending order; None where it is missing or damaged.

    Raises:
        UsageError: a file has the name of a checkpoint.
        PemtError: the folder or a manifest cannot be read, or a checkpoint was renamed.
    """
    try:
        found = [path for path in folder.iterdir() if STEP.fullmatch(path.name)]
        if storage.is_remote(folder):
            found = [path for path in found if (path / COMMITTED).is_file()]
        elif others := [path for path in found if not path.is_dir()]:
            raise UsageError(
                f"{others[0]} is no folder, expected only this run's checkpoints beside it."
            )
    except FileNotFoundError:  # nothing has been saved yet
        found = []
    except OSError as error:
        raise unreadable(folder, storage.reason(error)) from error
    found = {int(path.name): path for path in found}
    manifests = {step: read_manifest(found[step]) for step in sorted(found)}
    for step, manifest in manifests.items():
        if manifest is not None and manifest["step"] != step:
            raise PemtError(
                f"{found[step]} holds the checkpoint of step {manifest['step']}, expected that of "
                f"step {step}: it was renamed."
            )
    return manifests


def check_supported(folder: Path) -> None:
    """Raise UsageError where orbax and TensorStore store no checkpoints."""
    if storage.is_remote(folder) and not str(folder).startswith("gs://"):
        raise UsageError(
            f"Checkpoints cannot be stored in {folder}, expected a folder or gs:// as MODEL_DIR."
        )


def mend(folder: Path, found: Mapping[int, dict | None], damaged: Collection[int]) -> None:
    """Leave in `folder` only checkpoints that orbax, which counts all numbers, can read.

    `found` is what `manifests` returned, `damaged` are the steps whose manifest any process found
    missing or damaged. One process calls this.

    Raises:
        UsageError: something that is not a checkpoint has the name of one.
        PemtError: a checkpoint cannot be read or renamed.
    """
    newest = max(found.keys() - set(damaged), default=-1)
    for step, manifest in found.items():
        path = folder / str(step)
        if manifest is not None and step not in damaged:
            mend_score(path, manifest["score"])
            continue
        try:
            entries = {entry.name for entry in path.iterdir()}
        except OSError as error:
            raise unreadable(path, storage.reason(error)) from error
        if not entries <= _ENTRIES:
            raise UsageError(
                f"{path} is not a checkpoint, expected only this run's checkpoints in its folder."
            )
        if step < newest and not (path / ITEM / "metadata").exists():
            storage.remove_tree(path)  # a kill left a deletion half done
        else:
            set_aside(path, f"Checkpoint {path} is damaged: its manifest is missing or damaged")


def mend_score(checkpoint: Path, score: Mapping) -> None:
    """Make orbax's copy of a score the manifest's, where a crash or damage made them differ."""
    file = checkpoint / "metrics" / "metrics"
    with contextlib.suppress(OSError, ValueError):
        if json.loads(file.read_text(encoding="utf-8")) == score:
            return
    with storage.replacing(file) as partial:
        partial.write_text(json.dumps(score), encoding="utf-8")


def set_aside(checkpoint: Path, reason: str) -> None:
    """Rename a damaged checkpoint and warn with the reason. One process calls this."""
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    try:
        storage.move_folder(checkpoint, aside)
    except OSError as error:
        raise PemtError(
            f"{reason.rstrip('.')}, and it cannot be renamed to {aside.name}: "
            f"{storage.reason(error)}."
        ) from error
    warn(f"{reason.rstrip('.')}; it is set aside as {aside.name}.")
