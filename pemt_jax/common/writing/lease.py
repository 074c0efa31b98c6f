"""One writer per folder: a file that says who writes, held while it writes.

    with held(runs / "movies" / "run.lock", "MODEL_DIR runs/movies"): ...

On a disk the file is locked with flock, which ends with its process however that ends, and says
which process that is. No lock tells whether a process of another machine is alive, so the holder
also touches the file every `BEAT` seconds: one of another machine that has not done so for
`EXPIRES` seconds is gone, by the clock of the storage and never by that of either machine. A run
that is moved to another machine after a crash waits for that at most. In a bucket there is only the
heartbeat, and for a process of this machine the list of processes (bucket_lease.py).

A holder that was suspended and finds its file taken over ends at once: somebody else is writing.
"""

import contextlib
import importlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError
from pemt_jax.common.writing import holder
from pemt_jax.common.writing.disk_lease import DiskLease

BEAT, POLL = 15.0, 0.5  # seconds


@contextlib.contextmanager
def held(file: str | os.PathLike, what: str, wait: float = 0.0) -> Iterator[None]:
    """Hold the lease `file` while the context lasts.

    Args:
        file: on a disk or in a bucket; its folder is made when it is missing.
        what: what is in use, for the sentence.
        wait: seconds to wait for a holder that is alive.

    Raises:
        Held: a process holds it; the sentence says which.
        PemtError: the file cannot be written.
    """
    try:
        lease = _taken(storage.path(file), what, time.monotonic() + wait)
    except OSError as error:
        raise PemtError(f"Cannot write {file}: {storage.reason(error)}.") from error
    ended = threading.Event()
    threading.Thread(target=_beat, args=(lease, what, ended), daemon=True, name="lease").start()
    try:
        yield
    finally:
        ended.set()
        with contextlib.suppress(OSError):
            lease.release()


def _taken(file: Path, what: str, deadline: float) -> Any:
    """The lease, once it is free."""
    kind: Any = DiskLease
    if storage.is_remote(file):
        buckets: Any = importlib.import_module("pemt_jax.common.writing.bucket_lease")
        kind = buckets.BucketLease
    seen, since = None, time.monotonic()
    while True:
        lease = kind(file)
        if lease.take(expired=time.monotonic() - since > holder.EXPIRES):
            return lease
        if seen is not None and lease.seen != seen:
            lease.is_alive = True  # it has beaten meanwhile
        seen = lease.seen
        if lease.is_alive and time.monotonic() >= deadline:
            raise holder.Held(
                f"{what} is in use by {holder.describe(lease.holder)}, expected one at a time."
            )
        time.sleep(POLL)


def _beat(lease: Any, what: str, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        try:
            lease.beat()
        except holder.Lost:
            os.write(
                2, f"error: {what} was taken over by {holder.describe(lease.holder)}.\n".encode()
            )
            os._exit(PemtError.exit_code)
        except OSError:  # whoever writes to the folder will say it
            continue
