"""When one of several processes dies, hangs or fails, the others say so and stop.

A collective waits for ever for a process that is gone, and JAX ends the others by a C++ abort, if
at all. Here every process counts aloud in the key-value store of JAX's coordinator, which lives in
process 0, and listens to the others from threads of its own, so that long compilations and reads
do no harm. One that has been silent for SILENCE seconds, or has announced that it failed, ends the
others with one sentence and exit code 1.

Threads go on where the main thread hangs, in a read from a disk that is gone, say. So a process
also tells at which `place` of its training steps it is: one that stays for SILENCE seconds at a
place that another has left ends all. Of what takes any time (compiling, evaluating, saving) nothing
is told, and a main thread that hangs there is not noticed.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
import time

from pemt_jax.parallel.environment import Limits

BEAT = 1.0  # seconds between two counts
GRACE = 10.0  # seconds in which a process may end by itself after another has failed


def die(sentence: str, linger: float = 0.0) -> None:
    """Print the sentence and end this process, whatever its main thread waits for."""
    sys.stdout.flush()
    os.write(2, f"error: {sentence}\n".encode())
    time.sleep(linger)
    os._exit(1)


PLACES = 3  # of a step: before its batch is read, before and after it is given to the devices


class Watchdog:
    """Counts aloud and listens; `client` is that of JAX's coordinator.

    Attributes:
        place: how far the main thread is, PLACES a training step; None in other work.
    """

    def __init__(self, client, address: str, index: int, count: int, limits: Limits):
        self._client, self._address = client, address
        self._index, self._count, self._limits = index, count, limits
        self.place: int | None = None
        self._places: dict[int, int | None] = dict.fromkeys(range(count))
        self._standing = dict.fromkeys(range(count), 0.0)
        self._over = threading.Event()
        self._last: dict[int, str] = {}
        self._silent = dict.fromkeys(range(count), 0.0)
        self._failed: dict[int, tuple[float, str]] = {}
        for work in (self._talk, self._judge):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()
        if index:
            self._catch_aborts()

    def stop(self) -> None:
        """Listen no more: the run has ended everywhere."""
        self._over.set()

    def announce(self, sentence: str) -> None:
        """Tell the others that this process fails; the first waits until they have heard it."""
        self._client.key_value_set(f"pemt_jax/failed/{self._index}", sentence, allow_overwrite=True)
        self._over.set()  # nobody ends a process that is ending
        until = time.monotonic() + GRACE + 3 * BEAT
        while not self._index and time.monotonic() < until:
            if len(self._client.key_value_dir_get("pemt_jax/failed")) == self._count:
                break
            time.sleep(BEAT / 10)

    def await_verdict(self) -> None:
        """Give the watchdog time to find out whose fault an error of a collective is."""
        self._over.wait(self._limits.silence + GRACE + 5 * BEAT)

    def _talk(self) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            try:
                place = self.place
                self._stand(self._index, place)
                self._client.key_value_set(
                    f"pemt_jax/beat/{self._index}",
                    f"{number} {'' if place is None else place}",
                    allow_overwrite=True,
                )
                beats = self._client.key_value_dir_get("pemt_jax/beat")
                failed = self._client.key_value_dir_get("pemt_jax/failed")
            except Exception:  # the store does not answer; _judge counts the seconds
                beats, failed = [], []
            for key, value in beats:
                process = int(key.rsplit("/", 1)[-1])
                if self._last.get(process) != value:
                    self._last[process], self._silent[process] = value, 0.0
                    place = value.partition(" ")[2]
                    self._stand(process, int(place) if place else None)
            for key, value in failed:
                self._failed.setdefault(int(key.rsplit("/", 1)[-1]), (time.monotonic(), value))
            self._over.wait(BEAT)

    def _stand(self, process: int, place: int | None) -> None:
        if self._places[process] != place:
            self._places[process], self._standing[process] = place, 0.0

    def _judge(self) -> None:
        before = time.monotonic()
        while not self._over.wait(BEAT):
            now = time.monotonic()
            # Time in which this process itself was held up says nothing of the others.
            for process in self._silent:
                self._silent[process] += min(now - before, 2 * BEAT)
                self._standing[process] += min(now - before, 2 * BEAT)
            before = now
            for process, (when, sentence) in list(self._failed.items()):
                if process != self._index and now - when > GRACE:
                    self._end(f"Process {process} of {self._count} failed: {sentence}")
            # Without process 0 nobody can be heard: it is the one to name.
            for process, seconds in sorted(self._silent.items()):
                if process != self._index and seconds > self._limits.silence:
                    self._end(
                        f"Process {process} of {self._count} has not been heard of for "
                        f"{self._limits.silence:g} seconds, expected it alive: this run ends, and its command "
                        "resumes it."
                    )
            places = {
                process: place for process, place in self._places.items() if place is not None
            }
            for process, place in places.items():
                if self._standing[process] > self._limits.silence and place < max(places.values()):
                    self._end(
                        f"Process {process} of {self._count} has stood at step "
                        f"{place // PLACES + 1} for {self._limits.silence:g} seconds while others went on, "
                        "expected it to go on: this run ends, and its command resumes it."
                    )

    def _end(self, sentence: str) -> None:
        # Others still listen to the store of process 0; it goes last.
        die(sentence, linger=0.0 if self._index else 5 * BEAT)

    def _catch_aborts(self) -> None:
        """Say in one sentence why JAX aborts when process 0, its coordinator, is gone."""

        def aborted(number: int) -> None:
            host, _, port = self._address.rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), 2).close()
            except OSError:
                die(
                    f"Process 0 of {self._count} has died, which all others need: this run ends, "
                    "and its command resumes it."
                )
            signal.signal(number, signal.SIG_DFL)  # an abort for another reason stays one
            os.kill(os.getpid(), number)

        # Python's own handlers run in the main thread, which an abort never reaches.
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = [ctypes.c_int, type(self._handler)]
        libc.signal.restype = ctypes.c_void_p
        libc.signal(signal.SIGABRT, self._handler)
