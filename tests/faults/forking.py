"""Training commands as real processes that start in a moment, to be killed for real.

Importing JAX, TensorFlow and SeqIO takes most of the time of a small run. This process imports
them once, starts no backend, and forks a child a command; a child is a process of its own from
there on: it opens its backend, reads the caches, runs the command by pemt_jax.cli and ends with its
exit code.

As a program it obeys one JSON line a command, {"flags", "log", "environment", "prelude"}, and
answers with the pid and, when the child has ended, with its exit code (negative for a signal).
"""

import json
import mmap
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

TESTS = Path(__file__).parent.parent
PHASES = ("start-up", "tokenising", "restoring", "training", "evaluating", "saving", "publishing")
# What a run that has begun says of what it is doing.
REPORTS = ("importing ", "reading the base ", "tokenising ", "Examples of ", "step ")
NOT_OURS = 70  # the exit code of an exception that is no sentence
# Root passes by the permissions of folders unless it gives this right away.
OBEY_PERMISSIONS = """
import ctypes, os
if os.getuid() == 0:
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for i in (0, 1, 2):
        sets[i] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0
"""


def fork(
    work: Callable[[], int], log: Path, compiled: Path, environment: Mapping[str, str] | None = None
) -> int:
    """Fork a child that does `work` and ends with what it returns; its output goes to `log`."""
    pid = os.fork()
    if pid:
        return pid
    code = NOT_OURS
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(environment or {})
        import jax

        for name, value in {
            "jax_compilation_cache_dir": str(compiled),
            "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
            "jax_disable_most_optimizations": True,  # of the compiler
        }.items():
            jax.config.update(name, value)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(flags: Sequence[str], prelude: str = "") -> int:
    """Run the training command; `prelude` is Python that arranges a fault beforehand."""
    import tiny_system

    exec(prelude, {})
    return tiny_system.cli.run(tiny_system.train.train, list(flags))


class Watch:
    """In which phase a child is, in memory that parent and child share."""

    def __init__(self):
        self._memory = mmap.mmap(-1, 2)

    def reset(self) -> None:
        self._memory[:] = b"\0\0"

    @property
    def phase(self) -> str:
        return PHASES[self._memory[0]]

    @property
    def entered(self) -> tuple[str, int]:
        """The phase, and how often any was entered: what a poll sees change."""
        return PHASES[self._memory[0]], self._memory[1]

    def install(self) -> None:
        """Let the functions of the package report, in the child that calls this."""
        from pemt_jax.checkpoints import manager as checkpoints
        from pemt_jax.data import token_cache as data
        from pemt_jax.runs import task_run
        from pemt_jax.training import loop, run, validation

        for owner, name, phase in (
            (data, "_tokenize", "tokenising"),
            (run, "restore_newest", "restoring"),
            (loop, "run_loop", "training"),
            (validation.Validation, "__call__", "evaluating"),
            (checkpoints.Checkpoints, "save", "saving"),
            (task_run, "publish", "publishing"),
        ):
            setattr(owner, name, self._reporting(getattr(owner, name), PHASES.index(phase)))

    def _reporting(self, function: Callable, phase: int) -> Callable:
        def reporting(*args, **kwargs):
            before = self._memory[0]
            self._enter(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self._enter(before)

        return reporting

    def _enter(self, phase: int) -> None:
        self._memory[0] = phase
        self._memory[1] = (self._memory[1] + 1) % 256


class Forker:
    """The program below, as a test uses it."""

    def __init__(self, world):
        self.world = world
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(world.folder / "compiled")],
            env=world.environment(),
            cwd=world.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, log: Path, flags: Sequence[str], prelude: str = "", **environment: str) -> int:
        """Start a command and return its pid; `wait` comes before the next."""
        request = {
            "flags": list(map(str, flags)),
            "log": str(log),
            "prelude": prelude,
            "environment": environment,
        }
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def wait(self) -> int:
        return int(self._server.stdout.readline())

    def run(
        self, log: Path, flags: Sequence[str], prelude: str = "", **environment: str
    ) -> tuple[int, list[str]]:
        """(exit code, what it said on stderr and stdout beside the reports of its steps)."""
        self.start(log, flags, prelude, **environment)
        code = self.wait()
        return code, said(log)

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(timeout=60)


def said(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if not line.startswith(REPORTS)]


def main() -> None:
    compiled = Path(sys.argv[1])
    import tiny_system  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        log = Path(request["log"])
        log.unlink(missing_ok=True)
        pid = fork(
            lambda request=request: command(request["flags"], request["prelude"]),
            log,
            compiled,
            request["environment"],
        )
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    main()
