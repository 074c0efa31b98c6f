"""One writer per folder: a file that says who writes, held while it writes.

    with held(runs / "movies" / "run.lock", "MODEL_DIR runs/movies"): ...

On a disk the file is locked with flock, which ends with its process however that ends, and says
which process that is. No lock tells whether a process of another machine is alive, so the holder
also touches the file every `BEAT` seconds: one of another machine that has not done so for `EXPIRES`
seconds is gone, by the clock of the storage and never by that of either machine. A run that is moved
to another machine after a crash waits for that at most. In a bucket there is only the heartbeat, and
for a process of this machine the list of processes (buckets/lease.py).

A holder that was suspended and finds its file taken over ends at once: somebody else is writing.
"""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError

BEAT, EXPIRES, POLL = 15.0, 90.0, 0.5  # seconds
BEGIN = b'{"host": '  # of what a lease says


class Held(UsageError):
    """Somebody else has the lease."""


class Lost(PemtError):
    """The lease was taken over by somebody else."""


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
    kind = DiskLease
    if storage.is_remote(file):
        from pemt_jax.common.buckets.lease import BucketLease as kind
    seen, since = None, time.monotonic()
    while True:
        lease = kind(file)
        if lease.take(expired=time.monotonic() - since > EXPIRES):
            return lease
        if seen is not None and lease.seen != seen:
            lease.is_alive = True  # it has beaten meanwhile
        seen = lease.seen
        if lease.is_alive and time.monotonic() >= deadline:
            raise Held(f"{what} is in use by {describe(lease.holder)}, expected one at a time.")
        time.sleep(POLL)


def _beat(lease: Any, what: str, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        try:
            lease.beat()
        except Lost:
            os.write(2, f"error: {what} was taken over by {describe(lease.holder)}.\n".encode())
            os._exit(PemtError.exit_code)
        except OSError:  # whoever writes to the folder will say it
            continue


def describe(holder: Mapping) -> str:
    """Who holds a lease, for a sentence."""
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"


def this_process() -> dict:
    """What a lease says of its holder."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": now.strftime("%Y-%m-%d %H:%M:%S UTC"),
        "boot": boot(),
        "pids": _pid_namespace(),
        "start": _start_of(os.getpid()),
        "token": uuid.uuid4().hex,
    }


def boot() -> str:
    """What no other machine has, nor this one after its next start."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return socket.gethostname()


def is_running(holder: Mapping) -> bool | None:
    """Whether the holder is alive; None where its processes cannot be seen from here."""
    pids = _pid_namespace()
    if not pids or (holder.get("boot"), holder.get("pids")) != (boot(), pids):
        return None
    return _start_of(holder.get("pid")) == holder.get("start")


def _pid_namespace() -> str:
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _start_of(pid: object) -> str:
    """When a process started, for a number may be given again; "" for one that has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""


def read_holder(file: Path, content: bytes) -> dict:
    """The holder; empty where it was killed while it wrote. UsageError for what is no lease."""
    if content and not content.startswith(BEGIN[: len(content)]):
        raise UsageError(f"{file} is no lock of a run, expected another folder.")
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(content)
    return {}


class DiskLease:
    """One attempt at the lease in a file of a disk.

    Attributes:
        holder: who has it, as far as is known.
        is_alive: whether that process is known to be alive.
        seen: what changes with each of its heartbeats.
    """

    def __init__(self, file: Path):
        self.file, self.holder, self.is_alive, self.seen = file, {}, False, None
        self._descriptor = -1
        self._own: dict = {}

    def take(self, expired: bool) -> bool:
        """Whether it is ours now; `expired` when the holder was not heard of for long enough."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            if self._take(expired):
                return True
        except BaseException:
            os.close(self._descriptor)
            raise
        os.close(self._descriptor)
        return False

    def _take(self, expired: bool) -> bool:
        locked = _flock(self._descriptor)
        if not self._is_in_place():
            return False
        facts = os.fstat(self._descriptor)
        self.holder = read_holder(self.file, os.pread(self._descriptor, 4096, 0))
        self.seen = facts.st_mtime_ns
        here = self.holder.get("boot") == boot()
        if not (locked and (here or not self.holder)):
            self.is_alive = here and not locked
            expired = expired or _storage_time(self.file.parent) - facts.st_mtime > EXPIRES
            if self.is_alive or not expired:
                return False
            if not locked:  # the storage still keeps the lock of a machine that is gone
                self.file.unlink(missing_ok=True)
                return False
        self._own = this_process()
        text = json.dumps(self._own).encode()
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))
        os.fsync(self._descriptor)
        return True

    def beat(self) -> None:
        """Show that the holder is alive; Lost when it no longer is the holder."""
        self.holder = read_holder(self.file, self.file.read_bytes())
        if self.holder.get("token") != self._own["token"]:
            raise Lost("The lease was taken over.")
        os.utime(self.file)

    def release(self) -> None:
        """Give it up; no file is left."""
        try:
            if self._is_in_place():
                self.file.unlink()
        finally:
            os.close(self._descriptor)

    def _is_in_place(self) -> bool:
        """Whether the file that is open is the one that has the name."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.file))
        except FileNotFoundError:
            return False


def _flock(descriptor: int) -> bool:
    """Whether no other process has the lock; also where the storage has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _storage_time(folder: Path) -> float:
    """What the storage's clock says: machines that share a folder need not agree on the time."""
    probe = folder / f".time-{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
