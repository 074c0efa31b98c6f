"""A lease in a bucket: a chain of objects of which the last one is the holder's.

    run.lock.1, run.lock.2, ...    {"host", "pid", ..., "beat", "released"}

An object is created only where there is none (a generation precondition in gs://, If-None-Match in
s3://), so of two processes that want to succeed the same holder one gets the next name. Only its
holder rewrites it: a heartbeat every lease.BEAT seconds, and "released" at the end. Numbers never
fall, for the last object stays, and those before it are removed.
"""

import contextlib
import json
import re

from pemt_jax.common.buckets.path import BucketPath
from pemt_jax.common.writing import holder


class BucketLease:
    """One attempt at the lease `file`; see disk_lease.DiskLease."""

    def __init__(self, file: BucketPath):
        self.file, self.holder, self.is_alive, self.seen = file, {}, False, None
        self._number, self._own = 0, {}

    def take(self, expired: bool) -> bool:
        """Whether it is ours now; `expired` when the holder was not heard of for long enough."""
        last = max(self._numbers(), default=0)
        if last:
            with contextlib.suppress(FileNotFoundError):  # its successor has removed it
                self.seen = self._object(last).read_bytes()
                self.holder = holder.read_holder(self.file, self.seen)
        running = holder.is_running(self.holder)
        self.is_alive = running is True and not self.holder.get("released")
        gone = expired or running is False or self.holder.get("released")
        if last and (self.is_alive or not gone):
            return False
        self._number, self._own = last + 1, holder.this_process() | {"beat": 0, "released": False}
        content = json.dumps(self._own).encode()
        if not self._object(last + 1).create(content) and not self._is_there(content):
            return False
        if max(self._numbers(), default=0) != last + 1:
            return False
        for number in self._numbers():
            if number <= last:
                self._object(number).unlink(missing_ok=True)
        return True

    def beat(self) -> None:
        """Show that the holder is alive; Lost when it no longer is the holder."""
        if (last := max(self._numbers(), default=0)) > self._number:
            self.holder = holder.read_holder(self.file, self._object(last).read_bytes())
            raise holder.Lost("The lease was taken over.")
        self._own["beat"] += 1
        self._object(self._number).write_text(json.dumps(self._own))

    def release(self) -> None:
        """Give it up."""
        self._own["released"] = True
        self._object(self._number).write_text(json.dumps(self._own))

    def _is_there(self, content: bytes) -> bool:
        """Whether our object was created after all: a request whose answer was lost is repeated."""
        with contextlib.suppress(FileNotFoundError):
            return self._object(self._number).read_bytes() == content
        return False

    def _object(self, number: int) -> BucketPath:
        return self.file.with_name(f"{self.file.name}.{number}")

    def _numbers(self) -> list[int]:
        pattern = re.compile(re.escape(self.file.name) + r"\.(\d{1,15})")
        if not self.file.parent.is_dir():
            return []
        found = (pattern.fullmatch(path.name) for path in self.file.parent.iterdir())
        return [int(match[1]) for match in found if match]
