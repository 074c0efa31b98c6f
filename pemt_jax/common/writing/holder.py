"""Who holds a lease: what it says of its process, and whether that process is alive."""

import contextlib
import datetime
import json
import os
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path

from pemt_jax.common.errors import PemtError, UsageError

EXPIRES = 90.0  # seconds after the last heartbeat
BEGIN = b'{"host": '  # of what a lease says


class Held(UsageError):
    """Somebody else has the lease."""


class Lost(PemtError):
    """The lease was taken over by somebody else."""


def describe(holder: Mapping) -> str:
    """Who holds a lease, for a sentence."""
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"


def this_process() -> dict:
    """What a lease says of its holder."""
    now = datetime.datetime.now(datetime.UTC)
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


def read_holder(file: object, content: bytes) -> dict:
    """The holder; empty where it was killed while it wrote. UsageError for what is no lease."""
    if content and not content.startswith(BEGIN[: len(content)]):
        raise UsageError(f"{file} is no lock of a run, expected another folder.")
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(content)
    return {}
