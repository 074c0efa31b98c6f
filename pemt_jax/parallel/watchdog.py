"""When one of several processes dies, hangs or fails, the others report it and end.

A collective waits forever for a process that is gone, and JAX ends the others by a C++ abort, if
at all. Here each process counts up in the key-value store of JAX's coordinator, which runs in
process 0, and reads the counts of the others. Both happen in threads of their own, so that long
compilations and reads do no harm. A process that has been silent for `Limits.silence` seconds ends
the others with one sentence and the exit code of PeerLost, which asks a scheduler for another
start. One that has announced that it failed ends them with its own exit code, because a failure of
the run itself would only be repeated. JAX and multihost_utils have no such check: JAX's heartbeats
end in the abort.

Threads go on where the main thread hangs. So a process also publishes its `place` in the training
steps. Processes wait for each other in the collectives of a step, hence only those at the earliest
place can hold up the others: after `Limits.silence` seconds there they end the run, while reading
a batch after `Limits.read` seconds, because storage may be slow. During work that takes any time
(compiling, evaluating, saving) nothing is published, and a main thread that hangs there is not
noticed.

When process 0 dies, JAX's client aborts each of the others within about 0.1 seconds, with a stack
trace and exit code 134; no option of jax.distributed prevents it. Each process therefore holds a
TCP connection to process 0, whose end it notices before that. The abort still wins where the main
thread keeps Python's global lock for those 0.1 seconds, or where a firewall prevents the
connection; then JAX's message is the last one.
"""

import contextlib
import os
import socket
import sys
import threading
import time

from pemt_jax.common.errors import PeerLost
from pemt_jax.parallel.environment import Limits

BEAT = 1.0  # seconds between two counts
LIFELINE = "pemt_jax/lifeline"  # key of the port to which the others connect
GRACE = 10.0  # seconds in which a process may end by itself after another has failed
PLACES = 3  # per step: reading its batch, giving it to the devices, everything after that


def die(sentence: str, code: int = PeerLost.exit_code, linger: float = 0.0) -> None:
    """Print the sentence and end this process, whatever its main thread waits for."""
    os.write(2, f"error: {sentence}\n".encode())
    sys.stdout.flush()
    time.sleep(linger)
    os._exit(code)


class Watchdog:
    """Publishes the state of process `index` and observes the other `count` - 1 processes.

    Args:
        client: JAX's client of the coordinator's key-value store.
        host: where process 0 runs.

    Attributes:
        place: how far the main thread is, PLACES per training step; None during other work.
    """

    def __init__(self, client, host: str, index: int, count: int, limits: Limits):
        self._client, self._host, self._index, self._count = client, host, index, count
        self._limits = limits
        self.place: int | None = None
        self._places: dict[int, int | None] = dict.fromkeys(range(count))
        self._behind = dict.fromkeys(range(count), 0.0)  # seconds at the earliest place
        self._over = threading.Event()
        self._last: dict[int, str] = {}
        self._silent = dict.fromkeys(range(count), 0.0)
        self._failed: dict[int, tuple[float, int, str]] = {}
        lifeline = self._hold_lifeline if index else self._offer_lifeline
        for work in (self._talk, self._judge, lifeline):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()

    def stop(self) -> None:
        """Stop observing: the run has ended everywhere."""
        self._over.set()

    def announce(self, code: int, sentence: str) -> None:
        """Tell the others that this process fails; process 0 waits until they have heard it."""
        self._client.key_value_set(
            f"pemt_jax/failed/{self._index}", f"{code} {sentence}", allow_overwrite=True
        )
        self._over.set()  # nobody ends a process that is ending
        until = time.monotonic() + GRACE + 3 * BEAT
        while not self._index and time.monotonic() < until:
            if len(self._client.key_value_dir_get("pemt_jax/failed")) == self._count:
                break
            time.sleep(BEAT / 10)

    def await_verdict(self) -> None:
        """Give the watchdog time to find out which process caused an error of a collective."""
        self._over.wait(self._limits.silence + GRACE + 5 * BEAT)

    def _talk(self) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            try:
                place = self.place
                self._move(self._index, place)
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
                    self._move(process, int(place) if place else None)
            for key, value in failed:
                code, _, sentence = value.partition(" ")
                self._failed.setdefault(
                    int(key.rsplit("/", 1)[-1]), (time.monotonic(), int(code), sentence)
                )
            self._over.wait(BEAT)

    def _move(self, process: int, place: int | None) -> None:
        if self._places[process] != place:
            self._places[process], self._behind[process] = place, 0.0

    def _judge(self) -> None:
        before = time.monotonic()
        while not self._over.wait(BEAT):
            now = time.monotonic()
            # Time in which this process itself was held up tells nothing about the others.
            passed, before = min(now - before, 2 * BEAT), now
            for process in self._silent:
                self._silent[process] += passed
            for process, (when, code, sentence) in list(self._failed.items()):
                if process != self._index and now - when > GRACE:
                    self._end(f"Process {process} of {self._count} failed: {sentence}", code)
            # Without process 0 nobody can be heard: it is the one to name.
            for process, seconds in sorted(self._silent.items()):
                if process != self._index and seconds > self._limits.silence:
                    self._end(
                        f"Process {process} of {self._count} has not been heard of for "
                        f"{self._limits.silence:g} seconds, expected it alive: this run ends, and "
                        "its command resumes it."
                    )
            self._judge_places(passed)

    def _judge_places(self, passed: float) -> None:
        """Count `passed` seconds for those that hold up others, and end the run for too many."""
        current = dict(self._places)
        places = {process: place for process, place in current.items() if place is not None}
        if len(places) < len(current):  # one may hold up all others for as long as it likes
            self._behind = dict.fromkeys(current, 0.0)
            return
        earliest, latest = min(places.values()), max(places.values())
        for process, place in places.items():
            if place != earliest or place == latest:
                self._behind[process] = 0.0
                continue
            self._behind[process] += passed
            step, part = divmod(place, PLACES)
            limit = self._limits.silence if part else self._limits.read
            if self._behind[process] > limit:
                doing = "been" if part else "been reading its batch"
                self._end(
                    f"Process {process} of {self._count} has {doing} at step {step + 1} for "
                    f"{limit:g} seconds while others wait for it, expected it to go on: this run "
                    "ends, and its command resumes it."
                )

    def _end(self, sentence: str, code: int = PeerLost.exit_code) -> None:
        # Others still listen to the store of process 0; it goes last.
        die(sentence, code, linger=0.0 if self._index else 5 * BEAT)

    def _offer_lifeline(self) -> None:
        """Let the others connect; the operating system ends the connections when we die."""
        both = socket.has_dualstack_ipv6()
        with contextlib.suppress(OSError):
            self._lifeline = socket.create_server(
                ("", 0),
                family=socket.AF_INET6 if both else socket.AF_INET,
                dualstack_ipv6=both,
                backlog=self._count,  # nothing is exchanged, so none is accepted
            )
            self._client.key_value_set(LIFELINE, str(self._lifeline.getsockname()[1]))

    def _hold_lifeline(self) -> None:
        """End this process when process 0 has died; leave it to JAX where no connection works."""
        try:
            address = self._host, int(self._client.blocking_key_value_get(LIFELINE, 600_000))
            line = socket.create_connection(address, timeout=60)
        except Exception:
            return
        while not self._over.is_set():
            line.settimeout(None)
            with contextlib.suppress(OSError), line:
                line.recv(1)
            try:  # a router may have dropped a connection that nobody used
                line = socket.create_connection(address, timeout=2)
            except ConnectionRefusedError:
                break
            except OSError:
                return
            self._over.wait(BEAT)
        if not self._over.is_set():
            if 0 in self._failed:
                _, code, sentence = self._failed[0]
                die(f"Process 0 of {self._count} failed: {sentence}", code)
            die(
                f"Process 0 of {self._count} has died, which all others need: this run ends, and "
                "its command resumes it."
            )
