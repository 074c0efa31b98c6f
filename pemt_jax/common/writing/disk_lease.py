"""A lease in a file of a disk; see lease.py."""

import fcntl
import json
import os
import uuid
from pathlib import Path

from pemt_jax.common.writing import holder


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
        self.holder = holder.read_holder(self.file, os.pread(self._descriptor, 4096, 0))
        self.seen = facts.st_mtime_ns
        here = self.holder.get("boot") == holder.boot()
        if not (locked and (here or not self.holder)):
            self.is_alive = here and not locked
            expired = expired or _storage_time(self.file.parent) - facts.st_mtime > holder.EXPIRES
            if self.is_alive or not expired:
                return False
            if not locked:  # the storage still keeps the lock of a machine that is gone
                self.file.unlink(missing_ok=True)
                return False
        self._own = holder.this_process()
        text = json.dumps(self._own).encode()
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))
        os.fsync(self._descriptor)
        return True

    def beat(self) -> None:
        """Show that the holder is alive; Lost when it no longer is the holder."""
        self.holder = holder.read_holder(self.file, self.file.read_bytes())
        if self.holder.get("token") != self._own["token"]:
            raise holder.Lost("The lease was taken over.")
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
