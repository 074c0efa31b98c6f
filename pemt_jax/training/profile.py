"""A JAX profile of some training steps, for TensorBoard's profile plugin, xprof or Perfetto."""

import logging
import os

import jax

from pemt_jax.common.mirror import Mirror

SKIPPED = 2  # the first steps compile

log = logging.getLogger(__name__)


class Profile:
    """Records `steps` steps into `folder`, the first ones of the process left out."""

    def __init__(self, folder: str | os.PathLike, steps: int):
        self.folder, self.steps = os.fspath(folder), steps
        self._mirror: Mirror | None = None
        self._made = 0

    def made_step(self) -> None:
        """Count a step; start or stop recording when it is due."""
        self._made += 1
        if self._made == SKIPPED:
            self._mirror = Mirror(self.folder)
            jax.profiler.start_trace(str(self._mirror.local))
        elif self._made == SKIPPED + self.steps:
            self.close()

    def close(self) -> None:
        """Stop recording, if it has started and not stopped."""
        if SKIPPED <= self._made <= SKIPPED + self.steps:
            jax.profiler.stop_trace()
            assert self._mirror is not None  # since the first recorded step
            self._mirror.upload()
            self._mirror.close()
            log.info("A profile of %d steps is in %s.", self._made - SKIPPED, self.folder)
        self._made = SKIPPED + self.steps + 1
