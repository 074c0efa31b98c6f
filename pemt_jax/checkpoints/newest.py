"""Where a run goes on: its newest checkpoint, or, where that one is damaged, the one before it.

The two newest checkpoints are kept for this. A damaged one is set aside as `STEP.damaged`, for the
run makes that step again, and a warning says so. When no checkpoint is whole the run stops with the
fault of the newest and everything stays as it is.
"""

import shutil
from pathlib import Path

import jax

from pemt_jax.checkpoints.restore import DamagedCheckpoint
from pemt_jax.common.errors import warn


def restore_newest(trainer, checkpoints) -> tuple[int, dict] | None:
    """Restore `trainer` from the newest whole checkpoint; return its step and manifest.

    None when there is no checkpoint. DamagedCheckpoint when none is whole, PemtError when one is
    of other parameters than the trainer's.
    """
    damaged: list[tuple[int, DamagedCheckpoint]] = []
    for step in reversed(checkpoints.steps()):
        try:
            trainer.restore(checkpoints, step)
        except DamagedCheckpoint as error:
            damaged.append((step, error))
            continue
        for bad, error in damaged:
            checkpoints.set_aside(bad, str(error))
        if damaged:
            _warn(f"The run goes on from the checkpoint before, step {step}.")
        return step, checkpoints.manifest(step)
    if damaged:
        raise damaged[0][1]
    return None


def set_aside(checkpoint: Path, reason: str) -> None:
    """Rename a checkpoint's folder, that orbax counts it no more, and say why."""
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    if aside.exists():
        shutil.rmtree(aside)
    checkpoint.rename(aside)
    _warn(f"{reason.rstrip('.')}; it is set aside as {aside.name}.")


def _warn(sentence: str) -> None:
    """Every process comes here, the first says it."""
    if jax.process_index() == 0:
        warn(sentence)
