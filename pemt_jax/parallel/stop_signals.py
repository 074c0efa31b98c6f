"""How a run is asked to stop: SIGTERM or SIGINT, obeyed at the end of a step.

A TPU's preemption notice, a scheduler's time limit and `kill` all arrive as SIGTERM. Any of several
processes may receive it, and all must save the same step: JAX's preemption service handles the
signal, informs the others and chooses a step that none has passed.
"""

import contextlib
import os
import signal
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from pemt_jax.common.errors import PemtError


class Stopped(PemtError):
    """The run was asked to stop and saved its state; its command resumes it.

    The exit code is the shell's for a signal: 143 for SIGTERM, 130 for SIGINT.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopRequest(Exception):
    """Leaves the loop at a step boundary, or an evaluation anywhere."""


class StopSignals:
    """Context in which SIGTERM and SIGINT are noted in `received`, to be checked after a step.

    A second signal meets the previous handlers: it ends the process at once. Among several
    processes `received` is set when all of them have `reached` the step to stop at; an evaluation
    is completed first, and JAX handles SIGTERM, from `jax.distributed.initialize` on.
    """

    def __init__(self):
        self.received = 0
        self._together = jax.process_count() > 1
        self._asked = 0
        self._interruptible = False
        self._previous = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT,) if self._together else (signal.SIGTERM, signal.SIGINT):
            # Outside the main thread (a notebook's helper) Python allows no handlers.
            with contextlib.suppress(ValueError):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def reached(self, step: int) -> bool:
        """Whether the run must stop after `step`; every process must call it after each step."""
        if self._together and multihost_utils.reached_preemption_sync_point(step):
            self.received = self._asked or signal.SIGTERM
        return bool(self.received)

    def _receive(self, number: int, _frame) -> None:
        self.__exit__()
        if self._together:
            self._asked = number
            os.kill(os.getpid(), signal.SIGTERM)  # to JAX, which informs the others too
            return
        self.received = number
        if self._interruptible:
            raise StopRequest

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Context that a signal leaves at once, for work that a resumed run repeats."""
        if self.received:
            raise StopRequest
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False
