"""How a run is asked to stop: SIGTERM or SIGINT, obeyed at the end of a step."""

import contextlib
import os
import signal
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from pemt_jax.errors import PemtError


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
    """Context in which SIGTERM and SIGINT are noted in `received`, to be looked at after a step.

    A second signal finds the handlers of before: it ends the process at once.
    """

    def __init__(self):
        self.received = 0
        self._interruptible = False
        self._previous = {}

    def __enter__(self) -> "StopSignals":
        if jax.process_count() > 1:
            # All must stop after the same step, wherever the signal came: JAX's own handler of
            # SIGTERM tells the others, and they agree on a step in `stop_after`.
            self._previous[signal.SIGINT] = signal.signal(
                signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            return self
        for number in (signal.SIGTERM, signal.SIGINT):
            # Outside the main thread (a notebook's helper) Python allows no handlers.
            with contextlib.suppress(ValueError):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def stop_after(self, step: int) -> bool:
        """Whether to stop after this step; called after each, it says the same in all processes."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.received = self.received or signal.SIGTERM
        return bool(self.received)

    def _receive(self, number: int, _frame) -> None:
        self.received = number
        self.__exit__()
        if self._interruptible:
            raise StopRequest

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Context that a signal leaves at once, for work that a resumed run makes again."""
        if self.received:
            raise StopRequest
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False
