"""Several processes that are one run: joining, agreeing, writing once, ending.

Who belongs together is told by --coordinator_address, --process_count and --process_index (T5X's
names), by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or by what JAX finds of
itself: the tasks of a SLURM step and the hosts of a TPU pod. One process joins nobody.
"""

import atexit
import contextlib
import glob
import hashlib
import importlib.util
import itertools
import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from jax._src.distributed import global_state  # the coordinator's store and barriers
from jax.experimental import multihost_utils

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.parallel.stop_signals import Stopped
from pemt_jax.parallel.watchdog import PLACES, Watchdog, die

START_SECONDS = int(os.environ.get("PEMT_JAX_START_SECONDS", 300))
WAIT_SECONDS = 24 * 3600  # at a barrier; the watchdog ends the wait for a process that is gone
FACT_BYTES = 64

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
        count, index: how many processes there are, and which this one is.

    Raises:
        UsageError: only some of the three are known, or they do not fit together.
        PemtError: the port is taken. Where it does not answer, the process ends.
    """
    global _failure
    _failure = None
    if _watchdog is None:  # else a command before has joined
        _join(address, count, index)
    try:
        yield
    except BaseException as error:
        words = ("Gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED")
        if _watchdog and any(word in str(error) for word in words):
            _watchdog.await_verdict()
        _failure = error
        raise


def _join(address: str | None, count: int | None, index: int | None) -> None:
    global _watchdog
    given = {
        "--coordinator_address": address or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        "--process_count": _number(count, "JAX_NUM_PROCESSES"),
        "--process_index": _number(index, "JAX_PROCESS_ID"),
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 3 and not _in_cluster():
        return
    if missing and len(missing) < 3:
        known = [name for name in given if name not in missing]
        raise UsageError(
            f"Found {' and '.join(known)} without {' and '.join(missing)}, expected "
            "all three or none."
        )
    address, count, index = given.values()
    if not missing:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise UsageError(f"Found the coordinator address {address!r}, expected HOST:PORT.")
        if not 0 <= index < count:
            raise UsageError(
                f"Found process index {index} of {count}, expected one from 0 to {count - 1}."
            )
        if count == 1:
            return
    where = f"the coordinator at {address}" if address else "the coordinator of this cluster"
    late = (
        (
            f"Process {index} had no answer from {where} for {START_SECONDS} seconds, expected "
            "process 0 to listen there."
        )
        if index != 0
        else (
            f"Not all {count} processes reached {where} within {START_SECONDS} seconds, expected "
            "each to be started with this address."
        )
    )
    # JAX would abort; this ends the process a little earlier and says why.
    late = threading.Timer(START_SECONDS, die, [late])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=START_SECONDS + 60,
            # Ours is quicker and does not abort.
            heartbeat_timeout_seconds=600,
        )
    except (RuntimeError, ValueError) as error:  # JaxRuntimeError is one
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise PemtError(f"The processes could not be joined by {where} ({reason}).") from error
    finally:
        late.cancel()
    if global_state.num_processes > 1:
        _keep_standard_output()
        atexit.register(_end_together)
        sys.excepthook = _end_alone
        _watchdog = Watchdog(
            global_state.client,
            global_state.coordinator_address,
            global_state.process_id,
            global_state.num_processes,
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

    It does nothing after a command that succeeded, or was stopped: all stop at the same step. One
    whose output nobody reads any more has failed in the eyes of the others, whatever its code.
    """
    if _watchdog is None or (code == 0 and _failure is None) or isinstance(_failure, Stopped):
        return
    with contextlib.suppress(Exception):
        _watchdog.announce(str(_failure) or type(_failure).__name__)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # JAX would wait for the others


def _end_together() -> None:
    barrier()
    _watchdog.stop()
    jax.distributed.shutdown()


def _end_alone(kind, error, where) -> None:
    """What Python does with an exception that nobody caught, where others wait."""
    global _failure
    traceback.print_exception(kind, error, where)
    _failure = error
    leave(1)


def report(step: int | None, place: int = 0) -> None:
    """Tell the others which training step this process makes, and which of its places it is at.

    One that stays where others do not is taken for hung. None: in work that takes any time.
    """
    if _watchdog is not None:
        _watchdog.place = None if step is None else PLACES * step + place


def is_first() -> bool:
    """Return whether this process writes what is written once."""
    return jax.process_index() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if _watchdog is not None:
        global_state.client.wait_at_barrier(f"pemt_jax/{next(_numbers)}", WAIT_SECONDS * 1000)


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Context that the first process goes through before the others enter it."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()


def agree(**facts: object) -> None:
    """Raise PemtError, in every process, when a fact is not the same in all of them.

    Long ones are compared by their sha256.
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
    """Return the first process's JSON value in every process."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(length, np.uint8)
    if is_first():
        padded[:] = text
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def to_host(arrays):
    """Return a tree of whole arrays on the host, those of which others hold parts too."""

    def whole(value) -> np.ndarray:
        if not isinstance(value, jax.Array) or value.is_fully_addressable:
            return np.asarray(value)
        return np.asarray(multihost_utils.process_allgather(value, tiled=True))

    return jax.tree.map(whole, arrays)


def _number(given: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if given is not None or not text:
        return given
    if not text.isdigit():
        raise UsageError(f"Found {variable}={text!r}, expected a whole number.")
    return int(text)


def _in_cluster() -> bool:
    """Whether jax.distributed.initialize() finds by itself who belongs together."""
    if "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        return True
    wanted = os.environ.get("JAX_PLATFORMS", "") in ("", "tpu", "tpu,cpu")
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return wanted and bool(chips) and importlib.util.find_spec("libtpu") is not None
