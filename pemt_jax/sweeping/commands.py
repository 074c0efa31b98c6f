"""Public commands as processes of their own: how they ended, what they said, what they cost."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

ERROR = re.compile(r"^error: (.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Ended:
    """A process that has ended.

    Attributes:
      code: its exit code; that of a signal is negative.
      sentence: what it said was wrong; "" where it ended well.
      seconds: from its start to its end.
      peak_memory: of it, in bytes of the host's memory.
    """

    code: int
    sentence: str
    seconds: float
    peak_memory: int


class Commands:
    """The processes of this one; `stop` asks those that run to save and end."""

    def __init__(self):
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self.stopping = False

    def run(self, module: str, arguments: Sequence[str], log: Path) -> Ended:
        """Run `python -m pemt_jax.MODULE` to its end; what it prints is added to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with open(log, "ab") as file:
            begin = file.tell()
            with self._lock:
                if self.stopping:
                    return Ended(-signal.SIGTERM, "", 0.0, 0)
                process = subprocess.Popen(
                    [sys.executable, "-m", f"pemt_jax.{module}", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                )
                self._running.add(process)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = code = os.waitstatus_to_exitcode(status)
            with self._lock:
                self._running.discard(process)
        said = log.read_bytes()[begin:].decode("utf-8", errors="replace")
        unit = 1 if sys.platform == "darwin" else 1024
        seconds = round(time.monotonic() - start, 1)
        return Ended(code, _sentence(code, said), seconds, usage.ru_maxrss * unit)

    def stop(self) -> None:
        """Send SIGTERM to every process that runs, and start no more."""
        with self._lock:
            self.stopping = True
            for process in self._running:
                process.terminate()


def _sentence(code: int, said: str) -> str:
    if code == 0:
        return ""
    if found := ERROR.findall(said):
        return found[-1]
    if code < 0:
        return f"It was ended by {signal.Signals(-code).name}, perhaps for lack of memory."
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"It ended with exit code {code}."
