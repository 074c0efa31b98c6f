"""Runs cases: a process that has imported everything forks a child for each.

A child is a process group of its own in the case's folder. It has no right to pass by permissions
(which root would), writes its temporary files to a folder that must be empty afterwards, and is
killed when it has run too long or grown too large. The tiny system is made once, in a child too,
so that this process never starts a backend of JAX; that no case changes it is checked after each.
"""

import dataclasses
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import forking
import judge
import shell
import tiny_adapter
import tiny_system
from case import Case, filled, write

from pemt_jax.interop.hf import load_hf
from pemt_jax.interop.t5x import save_t5x
from pemt_jax.tasks.vocabulary import PACKAGED

GIB = 2**30
TESTS = Path(__file__).resolve().parent.parent
AUTOGRAPH = "__autograph_generated_file"  # TensorFlow removes them when Python ends, not a child


@dataclasses.dataclass(frozen=True)
class Result:
    """A case, what it did and what of that is not as promised."""

    case: Case
    outcome: judge.Outcome
    faults: list[str]


@dataclasses.dataclass
class Child:
    """A case that is running."""

    case: Case
    pid: int
    folder: Path
    before: Mapping[str, str]
    start: float
    memory: int = 0  # the most, in bytes
    killed: bool = False
    interrupted: bool = False

    @property
    def here(self) -> Path:
        return self.folder / "here"


class Driver:
    """Runs cases below `folder`, `jobs` at a time."""

    def __init__(self, folder: Path, jobs: int = 2):
        self.folder, self.jobs = folder, jobs
        self.world = tiny_system.World(folder / "world")
        self.world.folder.mkdir(parents=True)
        self.compiled = self.world.folder / "compiled"
        self._made: set[str] = set()
        self._world: dict[str, tuple] = {}
        self._own = _memory(os.getpid())

    def run(self, cases: Iterable[Case]) -> Iterator[Result]:
        """The results, as they come."""
        waiting, running, number = list(cases), [], 0
        self._make(any(_needs_runs(case) for case in waiting))
        while waiting or running:
            while waiting and len(running) < self.jobs:
                number += 1
                running.append(self._start(waiting.pop(0), self.folder / f"case{number}"))
            for child in list(running):
                if (result := self._poll(child)) is not None:
                    running.remove(child)
                    yield result
            time.sleep(0.01)

    def _places(self, folder: Path) -> dict[str, str]:
        world = self.world
        return {
            "HERE": str(folder / "here"),
            "CANARY": str(folder / "canary"),
            "BASE": str(world.folder / "pretrained" / "base"),
            "GIN": str(world.folder / "tiny.gin"),
            "LIBRARY": str(world.folder / "library"),
            "SOURCE": str(world.folder / "stage1" / "tiny_mood"),
            "TARGET": str(world.folder / "target"),
            "T5X": str(world.folder / "t5x" / "checkpoint_0"),
            "PEFT": str(world.folder / "peft"),
            "DATA": str(TESTS / "data"),
        }

    def _make(self, runs: bool) -> None:
        """Make the tiny system, with its runs where a case needs them."""
        wanted = {"base", "runs"} if runs else {"base"}
        if wanted <= self._made:
            return

        def work() -> int:
            world = self.world
            if "base" not in self._made:
                base = tiny_system.random_base(world.folder / "pretrained" / "base")
                (base / "SHA256SUMS").unlink(missing_ok=True)
                shutil.copy(PACKAGED, base / "spiece.model")
                save_t5x(world.folder / "t5x" / "checkpoint_0", load_hf(base)[1])
                (world.folder / "peft").mkdir()
                for name, content in tiny_adapter.adapter_files(tiny_system.T5).items():
                    (world.folder / "peft" / name).write_bytes(content)
            assert world.gin_file
            if runs:
                assert world.target and world.source
            return 0

        log = self.folder / "world.log"
        pid = forking.fork(work, log, self.compiled, self._environment(self.folder / "making"))
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            raise RuntimeError(f"The tiny system could not be made: {log.read_text()}")
        self._made |= wanted
        self._world = self._state_of_world()

    def _environment(self, folder: Path) -> dict[str, str]:
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        return {
            "PEMT_JAX_CACHE": str(self.folder / "cache"),
            "TMPDIR": str(folder / "tmp"),
            "HOME": str(folder),
            "HF_HUB_OFFLINE": "1",
            "NO_GCE_CHECK": "true",
        }

    def _state_of_world(self) -> dict[str, tuple]:
        """What shows at once that somebody has written into the tiny system."""
        return {
            str(path): (state.st_size, state.st_mtime_ns, state.st_ino)
            for path in self.world.folder.rglob("*")
            if "compiled" not in path.parts and (state := path.lstat())
        }

    def _start(self, case: Case, folder: Path) -> Child:
        here, places = folder / "here", self._places(folder)
        here.mkdir(parents=True)
        write(here, case.files, places)
        (folder / "stdin").write_bytes(case.stdin)
        environment = self._environment(folder) | {
            name: filled(value, places) for name, value in case.environment.items()
        }
        argv = [filled(part, places) for part in case.argv]
        before = judge.snapshot(here)
        pid = forking.fork(
            lambda: _child(case, argv, folder, environment), folder / "err", self.compiled
        )
        return Child(case, pid, folder, before, time.monotonic())

    def _poll(self, child: Child) -> Result | None:
        """The result of a case that has ended; one that takes too much is killed."""
        case, pid = child.case, child.pid
        child.memory = max(child.memory, _memory(pid) - (0 if case.fresh else self._own))
        seconds = time.monotonic() - child.start
        if case.interrupt_after and seconds > case.interrupt_after and not child.interrupted:
            child.interrupted = True
            os.kill(pid, signal.SIGINT)
        # Twice as long on a machine with twice as many processes as cores.
        patience = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        if not child.killed and (
            seconds > case.seconds * patience or child.memory > case.gib * GIB
        ):
            child.killed = True
            os.killpg(pid, signal.SIGKILL)
        done, status, used = os.wait4(pid, os.WNOHANG)
        if not done:
            return None
        folder, here = child.folder, child.here
        outcome = judge.Outcome(
            code=os.waitstatus_to_exitcode(status),
            out=judge.shown((folder / "out").read_text(errors="replace"), here),
            err=judge.shown((folder / "err").read_text(errors="replace"), here),
            seconds=seconds / patience,
            gib=child.memory / GIB,
            changed=self._changes(child),
            executed=(folder / "canary").exists(),
            ended=not (child.killed and child.memory <= case.gib * GIB),
        )
        _give_back_rights(here, child.before)
        shutil.rmtree(folder)
        return Result(case, outcome, judge.faults(case, outcome))

    def _changes(self, child: Child) -> tuple[str, ...]:
        found = judge.changes(child.before, judge.snapshot(child.here), child.case.may)
        left = [
            f"left {path.name} in $TMPDIR"
            for path in (child.folder / "tmp").iterdir()
            if not path.name.startswith(AUTOGRAPH)
        ]
        if (now := self._state_of_world()) != self._world:
            names = sorted(name for name, _ in now.items() ^ self._world.items())
            left.append(f"it or a case beside it has changed {names[0]}")
            self._world = now
        return (*found, *left)


def _needs_runs(case: Case) -> bool:
    """Whether a case uses more of the tiny system than its base."""
    return not case.quick


def _memory(pid: int) -> int:
    """Resident bytes of a process that are no file's; 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            found = re.search(r"RssAnon:\s*(\d+) kB", file.read())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def _give_back_rights(folder: Path, before: Mapping[str, str]) -> None:
    """Undo the permissions of a case, so that its folder can be removed."""
    for name in before:
        path = folder / name
        if path.exists() and not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)


def _child(case: Case, argv: list[str], folder: Path, environment: Mapping[str, str]) -> int:
    """In the child: become the command; its stderr is open already."""
    os.setsid()
    out = os.open(folder / "out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    if case.stdout == "closed":
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)
    os.dup2(os.open(folder / "stdin", os.O_RDONLY), 0)
    os.chdir(folder / "here")
    os.environ.update(environment)
    tempfile.tempdir = None  # what another $TMPDIR was
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    exec(forking.OBEY_PERMISSIONS, {})
    if case.largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (case.largest_file, case.largest_file))
    if argv[0] == "-c":
        exec(argv[1], {})
        return 0
    if case.fresh:
        os.environ["PYTHONPATH"] = str(TESTS)
        os.execv(sys.executable, [sys.executable, "-m", "pemt_jax", *argv])
    sys.path.insert(0, os.getcwd())
    if argv[0] == "make_vocabulary":
        return shell.execute("python", ["-m", "pemt_jax.tasks.make_vocabulary", *argv[1:]])
    return shell.execute("pemt-jax", argv)
