"""The faults table of launch/README.md, run: each fault on a disk and in a bucket.

    python tests/faults/table.py                       # the table, a column per storage
    python tests/faults/table.py --storage gs "503"    # rows whose name has this text

A row trains (or resumes) the tiny system as a process under the fault, checks the exit code and the
sentence, and runs the same command again without the fault: it must end with the bits of the
undisturbed run. The exit code is 1 when a row is not as it should be. Faults among several
processes are in tests/parallel, kills at random moments in kill.py.
"""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import bucket  # noqa: E402
import jax  # noqa: E402
import tiny_system  # noqa: E402
from forking import OBEY_PERMISSIONS, Forker  # noqa: E402

from pemt_jax.common import storage  # noqa: E402
from pemt_jax.training.metrics_log import read_metrics  # noqa: E402

STORAGES = ("disk", "gs")
# Call `fault(run)` in place of the save of that number; the rest of it then meets the fault.
AT_SAVE = """
import os, pathlib, shutil
from pemt_jax.checkpoints.manager import Checkpoints
saves, save = [], Checkpoints.save
def saving(self, *args, **kwargs):
    saves.append(1)
    if len(saves) == {number}:
        self.wait()
        fault(self.folder.parent)
    return save(self, *args, **kwargs)
Checkpoints.save = saving
"""


class Place:
    """A storage with a world in it; each row has a run of its own there."""

    def __init__(self, world, folder: Path, forker: Forker, served: bucket.Storage | None):
        self.world, self.forker, self.served = world, forker, served
        self.root = storage.path(served.url) if served else folder
        self.log, self._count = folder / "log", 0

    @property
    def kind(self) -> str:
        return "gs" if self.served else "disk"

    def new_run(self, copy: bool = False) -> Path:
        """A MODEL_DIR; with the finished run in it where `copy`."""
        self._count += 1
        run = self.root / f"row{self._count}" / "run"
        if copy:
            self.put(self.world.source, run)
        return run

    def put(self, folder: Path, place: Path) -> Path:
        """Copy a folder into this storage."""
        if not self.served:
            return shutil.copytree(folder, place)
        for name in storage.files_in(folder):
            (place / name).upload(folder / name)
        return place

    def train(self, run: Path, prelude: str = "", **macros) -> tuple[int, str]:
        """(exit code, the last line that was said)."""
        code, said = self.forker.run(self.log, self.world.train_flags(run, **macros), prelude)
        said = [line for line in said if "google_auth_provider" not in line]
        return code, said[-1] if said else ""

    def ends_undisturbed(self, run: Path, **macros) -> None:
        """The command again, without the fault, ends as the run that nothing disturbed."""
        code, said = self.train(run, **macros)
        assert code == 0, said
        self.is_undisturbed(run)

    def is_undisturbed(self, run: Path) -> None:
        expected = self.world.source
        assert tiny_system.leaves(run, 20) == tiny_system.leaves(expected, 20)
        weights = "artefact/weights.safetensors"
        assert (run / weights).read_bytes() == (expected / weights).read_bytes()
        assert lines(run) == lines(expected)


def lines(run: Path) -> list[dict]:
    """The metrics of a run, without the clock."""
    return [
        {name: value for name, value in row.items() if name not in ("time", "examples_per_second")}
        for row in read_metrics(run / "metrics.jsonl")
    ]


def check(found: tuple[int, str], code: int, *says: str) -> tuple[int, str]:
    """Return what was found, which must have this code and these words in its last line."""
    assert found[0] == code, found
    for text in says:
        assert text in found[1], (text, found[1])
    return found


def at_save(place: Place, on_disk: str, in_bucket: str) -> str:
    fault = in_bucket if place.served else on_disk
    return f"{OBEY_PERMISSIONS}\ndef fault(run):\n    {fault}\n" + AT_SAVE.format(number=2)


def stopped(number: signal.Signals) -> Callable[[Place], tuple[int, str]]:
    def row(place: Place) -> tuple[int, str]:
        run = place.new_run()
        prelude = f"def fault(run):\n    os.kill(os.getpid(), {int(number)})\n"
        found = place.train(run, prelude + AT_SAVE.format(number=1))
        if number == signal.SIGKILL:
            check(found, -9)
        else:
            check(found, 128 + number, f"Stopped by {number.name} after step ")
        place.ends_undisturbed(run)
        return found

    return row


def becomes_read_only(place: Place) -> tuple[int, str]:
    run, macros = place.new_run(), {"train.save_every": 4}
    fault = "(run / 'checkpoints').chmod(0o555)"
    refused = place.served and place.served.at(403, writes_only=True)
    found = place.train(run, at_save(place, fault, refused), **macros)
    check(found, 1, "error: ", f"{run}/")
    if place.served:
        place.served.answer(None)
    else:
        (run / "checkpoints").chmod(0o755)
    place.ends_undisturbed(run)
    return found


def disappears(place: Place) -> tuple[int, str]:
    run, macros = place.new_run(), {"train.save_every": 4}
    found = place.train(run, at_save(place, "shutil.rmtree(run)", "run.rmtree()"), **macros)
    check(found, 1, f"error: A checkpoint could not be written to {run}/checkpoints: the folder")
    return found


def read_only_at_start(place: Place) -> tuple[int, str]:
    run = place.new_run()
    if place.served:
        place.served.answer(403, writes_only=True)
    else:
        run.parent.mkdir()
        run.parent.chmod(0o555)
    found = place.train(run, OBEY_PERMISSIONS)
    check(found, 2, "error: ", "MODEL_DIR ", "to write to.")
    if place.served:
        place.served.answer(None)
    else:
        run.parent.chmod(0o755)
    place.ends_undisturbed(run)
    return found


def damaged(change: Callable[[Path], None], warning: str) -> Callable[[Place], tuple[int, str]]:
    def row(place: Place) -> tuple[int, str]:
        run = place.new_run(copy=True)
        change(run / "checkpoints" / "20")
        found = place.train(run)
        check(found, 0)
        assert warning in place.log.read_text()
        place.is_undisturbed(run)
        assert (run / "checkpoints" / "20.damaged").is_dir()
        return 0, "warning: ... it is set aside as 20.damaged."

    return row


def cut(step: Path) -> None:
    """Shorten the largest file of a checkpoint's arrays."""
    files = [step / "state" / name for name in storage.files_in(step / "state")]
    largest = max(files, key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])


def change_manifest(step: Path) -> None:
    file = step / "manifest" / "metadata"
    file.write_text(file.read_text().replace('"data_step": 20', '"data_step": 21'))


def none_complete(place: Place) -> tuple[int, str]:
    run = place.new_run(copy=True)
    for step in (10, 20):
        cut(run / "checkpoints" / str(step))
    before = storage.files_in(run)
    found = place.train(run)
    check(found, 1, f"error: Checkpoint {run}/checkpoints/20 is damaged: the bytes of ")
    assert storage.files_in(run) == before
    return found


def unreadable(place: Place) -> tuple[int, str]:
    run = place.new_run(copy=True)
    file, before = run / "checkpoints/20/manifest/metadata", storage.files_in(run)
    if place.served:
        place.served.answer(403, only="20%2Fmanifest%2Fmetadata")
    else:
        file.chmod(0)
    found = place.train(run, OBEY_PERMISSIONS)
    check(found, 1, f"error: {file} cannot be read: ")
    if place.served:
        place.served.answer(None)
    else:
        file.chmod(0o644)
    assert storage.files_in(run) == before
    place.ends_undisturbed(run)
    return found


def not_finite(place: Place) -> tuple[int, str]:
    run = place.new_run()
    found = place.train(run, LEARNING_RATE="1e30", **{"train.save_every": 1})
    return check(found, 1, "error: Step ", "expected finite numbers")


def damaged_expert(place: Place) -> tuple[int, str]:
    run = place.new_run()
    library = place.put(place.world.library, run.parent / "library")
    file = library / "tiny_topic" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    experts = str(tiny_system.EXPERTS).replace(" ", "")
    found = place.train(run, METHOD="pemt_target", EXPERTS=experts, LIBRARY=library)
    return check(found, 1, f"error: {file} is damaged or exchanged: ")


def damaged_artefact(place: Place) -> tuple[int, str]:
    run = place.new_run(copy=True)
    file = run / "artefact" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    done = place.world.python("-m", "pemt_jax.evaluate", f"--gin.MODEL_DIR={run}")
    found = done.returncode, done.stderr.strip().splitlines()[-1]
    return check(found, 1, f"error: {file} is damaged or exchanged: ")


def damaged_base(place: Place) -> tuple[int, str]:
    run = place.new_run()
    base = place.put(place.world.base, run.parent / "base")
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    found = place.train(run, INITIAL_CHECKPOINT_PATH=base)
    return check(found, 1, f"error: {file} is damaged or exchanged: ", "SHA256SUMS")


def clock_jumps(place: Place) -> tuple[int, str]:
    from test_faults import JUMPING_CLOCK

    run = place.new_run()
    found = place.train(run, JUMPING_CLOCK)
    check(found, 0)
    place.is_undisturbed(run)
    return found


def for_ten_seconds(place: Place) -> tuple[int, str] | None:
    if not place.served:
        return None
    run = place.new_run()
    fault = place.served.at(503, seconds=10)
    found = place.train(run, at_save(place, "", fault), **{"train.save_every": 4})
    check(found, 0)
    place.is_undisturbed(run)
    return 0, "the request is repeated"


def answers(status: int, when: str, code: int, says: str) -> Callable:
    """A bucket that answers `status` from the start, or from a save on."""

    def row(place: Place) -> tuple[int, str] | None:
        if not place.served:
            return None
        run, prelude = place.new_run(), ""
        if when == "start":
            place.served.answer(status)
        else:
            prelude = at_save(place, "", place.served.at(status))
        found = place.train(run, prelude, **{"train.save_every": 4})
        check(found, code, "error: ", says)
        place.served.answer(None)
        place.ends_undisturbed(run)
        return found

    return row


NO_ANSWER, NO_CREDENTIALS = "does not answer", "does not accept the credentials"
ROWS: dict[str, Callable[[Place], tuple[int, str] | None]] = {
    "SIGTERM": stopped(signal.SIGTERM),
    "SIGINT": stopped(signal.SIGINT),
    "kill -9": stopped(signal.SIGKILL),
    "MODEL_DIR becomes read-only": becomes_read_only,
    "MODEL_DIR disappears": disappears,
    "MODEL_DIR is read-only at the start": read_only_at_start,
    "newest checkpoint damaged: arrays": damaged(cut, "the bytes of "),
    "newest checkpoint damaged: manifest": damaged(
        change_manifest, "its manifest is missing or damaged"
    ),
    "a checkpoint that cannot be read": unreadable,
    "all checkpoints damaged": none_complete,
    "loss not finite": not_finite,
    "damaged expert": damaged_expert,
    "damaged artefact": damaged_artefact,
    "damaged base": damaged_base,
    "the clock jumps by years": clock_jumps,
    "the bucket answers 503 for ten seconds": for_ten_seconds,
    "the bucket is gone at the start": answers(0, "start", 1, NO_ANSWER),
    "the bucket is gone at a save": answers(0, "save", 1, NO_ANSWER),
    "wrong credentials at the start": answers(401, "start", 2, NO_CREDENTIALS),
    "wrong credentials at a save": answers(401, "save", 1, NO_CREDENTIALS),
}


@contextlib.contextmanager
def place_of(kind: str, world, folder: Path) -> Iterator[Place]:
    """The storage of this kind, with a process to fork the commands from."""
    with contextlib.ExitStack() as stack:
        served = None
        if kind == "gs":
            served = stack.enter_context(bucket.served(folder / "bucket", faults=True))
            stack.enter_context(bucket.here(served))
        assert world.source and world.gin_file
        forker = Forker(world)
        stack.callback(forker.close)
        yield Place(world, folder, forker, served)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", default="", help="only rows whose name has it")
    parser.add_argument("--storage", choices=STORAGES, action="append")
    arguments = parser.parse_args()
    kinds = arguments.storage or list(STORAGES)
    if "gs" in kinds and (reason := bucket.reason_absent()):
        kinds.remove("gs")
        print(f"no bucket: {reason}", file=sys.stderr)
    found: dict[tuple[str, str], str] = {}
    failed = False
    with tempfile.TemporaryDirectory(prefix="pemt_faults.") as name:
        folder = Path(name)
        os.environ["PEMT_JAX_CACHE"] = str(folder / "cache")
        world = tiny_system.World(folder / "world")
        world.folder.mkdir()
        for name, value in tiny_system.jax_settings(world.folder).items():
            jax.config.update(name, value)
        for kind in kinds:
            (folder / kind).mkdir()
            with place_of(kind, world, folder / kind) as place:
                for row, run in ROWS.items():
                    if arguments.text not in row:
                        continue
                    start = time.monotonic()
                    try:
                        result = run(place)
                        found[row, kind] = str(result[0]) if result else "-"
                    except AssertionError:
                        failed, found[row, kind] = True, "WRONG"
                        result = traceback.format_exc(limit=-1)
                    seconds = time.monotonic() - start
                    print(f"{kind} {row}: {result} ({seconds:.0f} s)", file=sys.stderr, flush=True)
    print(f"| fault | {' | '.join(kinds)} |\n|---|{'---|' * len(kinds)}")
    for row in ROWS:
        if arguments.text in row:
            print(f"| {row} | {' | '.join(found[row, kind] for kind in kinds)} |")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
