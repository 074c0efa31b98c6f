"""Several processes that are one run: joining, agreeing, writing once, ending.

Which processes belong together, and how long they wait for each other, is told by flags and
environment (`environment`). A single process joins nothing.

What multihost_utils does is left to it: gathering arrays, broadcasting, agreeing on the step to
stop at (`stop_signals`). What it lacks is here and in `watchdog`; each docstring says what.
"""

import atexit
import contextlib
import hashlib
import itertools
import json
import math
import os
import sys
import threading
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from jax._src.distributed import global_state  # the coordinator's store has no public name
from jax.experimental import multihost_utils

from pemt_jax.common.errors import PeerLost, PemtError
from pemt_jax.parallel.environment import Limits, Member, find_member, local_devices
from pemt_jax.parallel.stop_signals import Stopped
from pemt_jax.parallel.watchdog import PLACES, Watchdog, die

WAIT_SECONDS = 24 * 3600  # at a barrier; the watchdog ends the wait for a process that is gone
FACT_BYTES = 64
COLLECTIVE = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED")  # in errors of a lost connection

_watchdog: Watchdog | None = None
_failure: BaseException | None = None
_numbers = itertools.count()


@contextlib.contextmanager
def joined(
    address: str | None = None, count: int | None = None, index: int | None = None
) -> Iterator[None]:
    """Context of a command; it joins the other processes, if there are any, before it starts.

    Args:
        address: host and port of process 0.
        count, index: number of processes, and the index of this one.

    Raises:
        UsageError: only some of the three are known, they do not fit together, or a variable of
            the environment has no valid value.
        PemtError: the port is taken. Where it does not answer, the process ends.
        PeerLost: a collective failed, and no process that is lost was found.
    """
    global _failure
    _failure = None
    if _watchdog is None:  # else an earlier command has joined
        member = find_member(address, count, index)
        if member is not None:
            _join(member, Limits.from_environment())
    try:
        yield
    except BaseException as error:
        _failure = error
        if _watchdog and any(word in str(error) for word in COLLECTIVE):
            _watchdog.await_verdict()  # which usually ends this process
            if not isinstance(error, PemtError):
                reason = (str(error).splitlines() or ["no reason given"])[0]
                _failure = PeerLost(
                    f"The connection to the other processes broke ({reason}): this run ends, and "
                    "its command resumes it."
                )
                raise _failure from error
        raise


def _join(member: Member, limits: Limits) -> None:
    global _watchdog
    address, count, index = member
    where = f"the coordinator at {address}" if address else "the coordinator of this cluster"
    if index == 0:
        late = (
            f"Not all {count} processes reached {where} within {limits.start:g} seconds, expected "
            "each to be started with this address."
        )
    else:
        name = "This process" if index is None else f"Process {index}"
        late = (
            f"{name} had no answer from {where} for {limits.start:g} seconds, expected process 0 "
            "to listen there."
        )
    # JAX would abort; this ends the process a little earlier and says why.
    timer = threading.Timer(limits.start, die, [late])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            # Processes that were told who they are see all devices.
            local_device_ids=None if address else local_devices(),
            initialization_timeout=math.ceil(limits.start) + 60,
            # The watchdog is quicker and does not abort.
            heartbeat_timeout_seconds=600,
        )
    except (RuntimeError, ValueError) as error:  # JaxRuntimeError is one
        reason = (str(error).splitlines() or ["no reason given"])[0]
        kind = PeerLost if any(word in reason for word in COLLECTIVE) else PemtError
        raise kind(f"The processes could not be joined by {where} ({reason}).") from error
    finally:
        timer.cancel()
    if global_state.num_processes > 1:
        _keep_standard_output()
        atexit.register(_end_together)
        sys.excepthook = _end_alone
        coordinator = global_state.coordinator_address
        assert coordinator is not None  # every process of several has one
        _watchdog = Watchdog(
            global_state.client,
            coordinator.rpartition(":")[0].strip("[]"),
            global_state.process_id,
            global_state.num_processes,
            limits,
        )


def _keep_standard_output() -> None:
    """Gloo greets its peers on the standard output, where our JSON and predictions go."""
    sys.stdout.flush()
    ours = os.dup(1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    sys.stdout = open(
        ours, "w", encoding=sys.stdout.encoding, buffering=1 if os.isatty(ours) else -1
    )


def leave(code: int) -> None:
    """Tell the others that this process's command failed, and end it with this exit code.

    It does nothing after a command that succeeded, or was stopped: all stop at the same step. To
    the others, a command whose output is no longer read has failed, whatever its code.
    """
    if _watchdog is None or (code == 0 and _failure is None) or isinstance(_failure, Stopped):
        return
    with contextlib.suppress(Exception):
        _watchdog.announce(code or 1, str(_failure) or type(_failure).__name__)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # JAX would wait for the others


def _end_together() -> None:
    barrier()
    assert _watchdog is not None  # registered where it is made
    _watchdog.stop()
    jax.distributed.shutdown()


def _end_alone(kind, error, where) -> None:
    """Report an uncaught exception as Python does, and do not leave the others waiting."""
    global _failure
    traceback.print_exception(kind, error, where)
    _failure = error
    leave(1)


def report(step: int | None, place: int = 0) -> None:
    """Tell the others how far the main thread is: the watchdog ends a run that waits for it.

    Args:
        step: the current training step; None during work that takes any time.
        place: 0 while its batch is read, 1 while it is given to the devices, 2 afterwards.
    """
    if _watchdog is not None:
        _watchdog.place = None if step is None else PLACES * step + place


def is_first() -> bool:
    """Return whether this process writes what only one may write."""
    return jax.process_index() == 0


def barrier() -> None:
    """Wait until every process is here.

    Not by multihost_utils.sync_global_devices, whose collective on the devices would wait for the
    training steps queued before it and would need the same order of both in all processes.
    """
    if _watchdog is not None:
        assert global_state.client is not None  # the watchdog's own
        global_state.client.wait_at_barrier(f"pemt_jax/{next(_numbers)}", WAIT_SECONDS * 1000)


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Context that the first process completes before the others enter it."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()


def agree(**facts: object) -> None:
    """Raise PemtError, in every process, when a fact is not the same in all of them.

    Facts are strings or JSON values; long ones are compared by their sha256. The sentence names
    the fact and the processes, which multihost_utils.assert_equal does not.
    """
    if jax.process_count() == 1:
        return
    texts = {
        name: fact if isinstance(fact, str) else json.dumps(fact, sort_keys=True, default=str)
        for name, fact in facts.items()
    }
    short = [
        text if len(text.encode()) <= FACT_BYTES else hashlib.sha256(text.encode()).hexdigest()
        for text in texts.values()
    ]
    table = np.zeros((len(short), FACT_BYTES), np.uint8)
    for row, text in zip(table, short, strict=True):
        row[: len(text.encode())] = np.frombuffer(text.encode(), np.uint8)
    everywhere = np.asarray(multihost_utils.process_allgather(table))
    for number, name in enumerate(texts):
        found: dict[str, list[str]] = {}
        for process, row in enumerate(everywhere[:, number]):
            text = row.tobytes().rstrip(b"\0").decode(errors="replace")
            found.setdefault(text, []).append(str(process))
        if len(found) > 1:
            said = "; ".join(f"{text[:12]} in {', '.join(who)}" for text, who in found.items())
            raise PemtError(
                f"The processes do not agree on the {name.replace('_', ' ')}: {said}; "
                "expected the same in all of them."
            )


def from_first(value):
    """Return the first process's JSON value in every process.

    multihost_utils broadcasts arrays of known shape, so the length goes first.
    """
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(length, np.uint8)
    if is_first():
        padded[:] = text
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def to_host(arrays):
    """Return a tree of arrays as complete NumPy arrays, parts on other processes included.

    process_allgather would stack those arrays that each process holds completely.
    """

    def complete(value) -> np.ndarray:
        if not isinstance(value, jax.Array) or value.is_fully_addressable:
            return np.asarray(value)
        return np.asarray(multihost_utils.process_allgather(value, tiled=True))

    return jax.tree.map(complete, arrays)
