"""The folder of a run's checkpoints as it is on disk, before and beside orbax.

One sub-folder per step, named by its number. A checkpoint whose manifest is missing or damaged is
not finished; it is renamed to `STEP.damaged`, where orbax does not count it.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from pemt_jax.checkpoints.failures import unreadable
from pemt_jax.checkpoints.manifest import ITEM, read_manifest
from pemt_jax.common.errors import PemtError, UsageError, warn
from pemt_jax.common.storage import replacing

_ENTRIES = {"state", ITEM, "metrics", "_CHECKPOINT_METADATA", "commit_success.txt"}


def manifests(folder: Path) -> dict[int, dict | None]:
    """Return {step: manifest} in ascending order; None where it is missing or damaged.

    Raises:
        PemtError: the folder or a manifest cannot be read.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:  # nothing has been saved yet
        names = []
    except OSError as error:
        raise unreadable(folder, error.strerror) from error
    steps = sorted(int(name) for name in names if name.isdigit() and (folder / name).is_dir())
    return {step: read_manifest(folder / str(step)) for step in steps}


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
            entries = set(os.listdir(path))
        except OSError as error:
            raise unreadable(path, error.strerror) from error
        if not entries <= _ENTRIES:
            raise UsageError(
                f"{path} is not a checkpoint, expected only this run's checkpoints in its folder."
            )
        if step < newest and not (path / ITEM / "metadata").exists():
            shutil.rmtree(path)  # a kill left a deletion half done
        else:
            set_aside(path, f"Checkpoint {path} is damaged: its manifest is missing or damaged")


def mend_score(checkpoint: Path, score: Mapping) -> None:
    """Make orbax's copy of a score the manifest's, where a crash or damage made them differ."""
    file = checkpoint / "metrics" / "metrics"
    with contextlib.suppress(OSError, ValueError):
        if json.loads(file.read_text(encoding="utf-8")) == score:
            return
    with replacing(file) as partial:
        partial.write_text(json.dumps(score), encoding="utf-8")


def set_aside(checkpoint: Path, reason: str) -> None:
    """Rename a damaged checkpoint and warn with the reason. One process calls this."""
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    try:
        if aside.exists():
            shutil.rmtree(aside)
        checkpoint.rename(aside)
    except OSError as error:
        raise PemtError(
            f"{reason.rstrip('.')}, and it cannot be renamed to {aside.name}: {error.strerror}."
        ) from error
    warn(f"{reason.rstrip('.')}; it is set aside as {aside.name}.")
