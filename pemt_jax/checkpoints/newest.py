"""Which checkpoint is restored: the first complete one in the order of preference.

Damaged ones are set aside as `STEP.damaged`, since the run may reach their steps again, and a
warning says so. When all are damaged the run stops with the fault of the first, and every file
stays where it is. All processes call these functions and take the same decisions.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from pemt_jax.checkpoints.folder import manifests
from pemt_jax.checkpoints.restore import DamagedCheckpoint
from pemt_jax.common.errors import warn
from pemt_jax.parallel import processes

T = TypeVar("T")


def stored_identity(folder: Path) -> Mapping:
    """Return the identity of the run whose checkpoints are in `folder`; empty without one.

    Raises:
        PemtError: the folder cannot be read.
    """
    found = [manifest for manifest in manifests(folder).values() if manifest is not None]
    return found[-1]["identity"] or {} if found else {}


def restore_newest(trainer, checkpoints) -> tuple[int, dict] | None:
    """Restore `trainer` from the newest complete checkpoint; return its step and manifest.

    None when there is no checkpoint.

    Raises:
        DamagedCheckpoint: no checkpoint is complete.
        PemtError: a checkpoint cannot be read, or has other parameters than the trainer.
    """
    found = first_complete(
        checkpoints,
        reversed(checkpoints.steps()),
        lambda step: trainer.restore(checkpoints, step),
        "The run resumes from the previous checkpoint, step {}.",
    )
    return None if found is None else (found[0], checkpoints.manifest(found[0]))


def first_complete(
    checkpoints, steps: Iterable[int], restore: Callable[[int], T], instead: str
) -> tuple[int, T] | None:
    """Return the first of `steps` that `restore` does not find damaged, and what it returned.

    None when there are no steps. `instead` is the warning with that step when others before it
    were set aside. Raises as `restore_newest`.
    """
    steps = list(steps)
    processes.agree(checkpoints=steps)
    damaged: list[tuple[int, DamagedCheckpoint]] = []
    for step in steps:
        try:
            value = restore(step)
        except DamagedCheckpoint as error:
            damaged.append((step, error))
            continue
        for bad, error in damaged:
            checkpoints.set_aside(bad, str(error))
        if damaged and processes.is_first():
            warn(instead.format(step))
        return step, value
    if damaged:
        raise damaged[0][1]
    return None
