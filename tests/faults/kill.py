"""Kill a training run at random moments, resume it, and compare it with the undisturbed run.

    python tests/faults/kill.py --seed 0 --runs 100                  # kill -9
    python tests/faults/kill.py --seed 0 --runs 30 --signal TERM
    python tests/faults/kill.py --seed 0 --runs 40 --storage gs      # MODEL_DIR and LIBRARY there
    python tests/faults/kill.py --seed 0 --runs 20 --linears q v     # experts there instead of wo

A run trains an expert of 20 steps (evaluated every 5, saved every 2, logged every 3) and publishes
it, half of the time over one of 10 steps that stands there. It is killed up to three times, at a
random moment of its whole time or of a phase that is drawn first, and started again until it ends.
Then its checkpoints, artefact, library entry and metrics.jsonl must be, to the last bit, those of
the run that nothing disturbed; times of the clock aside. Prints one JSON object; the exit code is 1
when anything differed.

Children are forked after the imports (forking.py), so those are the one part of a start at which no
kill lands: nothing is open by then. The bucket is that of bucket.py, whose objects are files here;
only the children speak to it.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("EPATH_USE_TF", "false")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import bucket  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import tiny_system  # noqa: E402
from forking import PHASES, Watch, command, fork, said  # noqa: E402

from pemt_jax.checkpoints.manager import Checkpoints  # noqa: E402
from pemt_jax.common import storage  # noqa: E402
from pemt_jax.training.metrics_log import read_metrics  # noqa: E402

SECONDS = {
    "start-up": 1.0,
    "tokenising": 0.3,
    "restoring": 0.1,
    "training": 0.3,
    "evaluating": 0.3,
    "saving": 0.1,
    "publishing": 0.03,
}  # about how long each takes
IN_A_BUCKET = {"restoring": 4, "saving": 4, "publishing": 10}  # times as long there
CLOCK = {"time", "examples_per_second"}


class Campaign:
    """One folder with a base, the undisturbed run, and the run that is killed; all under one path,
    for a card names the folder of its run. Runs are in `served` where it is given."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        number: signal.Signals,
        served: bucket.Storage | None = None,
        linears: Sequence[str] = ("wo",),
    ):
        self.folder, self.number, self.served = folder, number, served
        self.linears = tuple(linears)
        self.world = tiny_system.World(folder)
        self.random = random.Random(seed)
        self.watch = Watch()
        self.run = (served.folder if served else folder) / "now" / "run"  # as files
        self.log = folder / "log"
        self.kills, self.unfinished, self.codes = Counter(), Counter(), Counter()
        os.environ["PEMT_JAX_CACHE"] = str(folder / "cache")

    def prepare(self) -> None:
        """The base, the run of 10 steps, the undisturbed run and how long it takes."""
        self._must(lambda: 0 if self.world.base else 1)
        self.world.gin_file  # noqa: B018  (written at first use)
        self._must(lambda: command(self.flags(10)))
        shutil.copytree(self.run.parent, self.folder / "ten")
        shutil.rmtree(self.run.parent)
        self._must(lambda: self.train(20))
        shutil.rmtree(self.run.parent)
        start = time.monotonic()
        self._must(lambda: self.train(20))
        self.seconds = time.monotonic() - start
        self.expected, self.usual = self.facts(), set(said(self.log))

    @property
    def model_dir(self) -> Path:
        """The run as a command is told of it."""
        return storage.path(f"{self.served.url}/now/run") if self.served else self.run

    def flags(self, steps: int) -> list[str]:
        macros = {
            "TRAIN_STEPS": steps,
            "train.save_every": 2,
            "train.eval_every": 5,
            "train.log_every": 3,
            "PemtConfig.expert_linears": self.linears,
        }
        return self.world.train_flags(self.model_dir, **macros)

    def train(self, steps: int) -> int:
        """In a child: train, then read every checkpoint that is left back against its sha256."""
        self.watch.install()
        code = command(self.flags(steps))
        if code == 0:
            with Checkpoints(self.model_dir / "checkpoints", None) as kept:
                for step in kept.steps():
                    kept.restore(
                        step,
                        {
                            path: np.zeros(leaf["shape"], jax.numpy.dtype(leaf["dtype"]))
                            for path, leaf in kept.manifest(step)["leaves"].items()
                        },
                    )
        return code

    def disturbed(self) -> list[str]:
        """Make one run with its kills; return what differs from the undisturbed one.

        One that had ended before its first kill is made again.
        """
        for _ in range(10):
            before = self.kills.total()
            if (wrong := self._attempted()) or self.kills.total() > before:
                return wrong
        return ["ended before its kills ten times"]

    def _attempted(self) -> list[str]:
        shutil.rmtree(self.run.parent)
        if self.random.random() < 0.5:
            shutil.copytree(self.folder / "ten", self.run.parent)
        fresh_tokens = self.random.random() < 0.3
        if fresh_tokens:
            shutil.rmtree(self.folder / "cache" / "tokens")
        self.log.unlink(missing_ok=True)
        kills = self.random.choice((1, 1, 2, 3))
        for attempt in range(20):
            self.watch.reset()
            pid = self._fork(lambda: self.train(20))
            killed = attempt < kills and self._kill(pid, fresh_tokens)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if not killed and code == 0:
                return self.differences()
            self.codes[code] += 1
            allowed = {-self.number, 128 + self.number} if killed else set()
            if killed and code == 0:
                return self.differences()  # the signal came when there was nothing left to do
            if code not in allowed:
                return [f"exit code {code}: {said(self.log)[-3:]}"]
            self.unfinished["save"] += self._unfinished_save()
            left = "**/.*.new/*" if self.served else "**/.*.partial-*"
            self.unfinished["publishing"] += any(self.run.parent.glob(left))
        return ["did not end"]

    def _kill(self, pid: int, fresh_tokens: bool) -> bool:
        """Send the signal at a random moment; False when the child had ended before."""
        phases = [*PHASES, None] if fresh_tokens else [*PHASES[:1], *PHASES[2:], None]
        phase, entries = self.random.choice(phases), self.random.randint(1, 4)
        longer = IN_A_BUCKET.get(phase or "", 1) if self.served else 1
        delay = self.random.random() * (SECONDS[phase] * longer if phase else self.seconds)
        if phase is not None and phase != "start-up":
            seen, last = 0, None
            deadline = time.monotonic() + 5 * self.seconds + 30
            while seen < entries and time.monotonic() < deadline:
                if (now := self.watch.entered) != last:
                    last, seen = now, seen + (now[0] == phase)
                    if phase in ("tokenising", "restoring", "publishing") and seen:
                        break  # entered once or twice only
                if _ended(pid):
                    return False
                time.sleep(0.0002)
        time.sleep(delay)
        if _ended(pid):
            return False
        where = self.watch.phase
        os.kill(pid, self.number)
        self.kills[where] += 1
        return True

    def _unfinished_save(self) -> bool:
        if not self.served:
            return any((self.run / "checkpoints").glob("*tmp*"))
        return any(
            not (step / "commit_success.txt").exists() and any(p.is_file() for p in step.rglob("*"))
            for step in self.run.glob("checkpoints/*")
        )

    def facts(self) -> dict:
        """All that a run leaves behind, comparable; sha256 stand for the arrays."""
        manifests = {
            int(path.parent.parent.name): json.loads(path.read_text())
            for path in self.run.glob("checkpoints/*/manifest/metadata")
        }
        if self.number != signal.SIGKILL:  # a run that saved when asked has kept that step as well
            last = max(manifests)
            keep = {last, manifests[last]["progress"]["best_step"]}
            manifests = {step: manifests[step] for step in keep}
        rows = [
            {name: value for name, value in row.items() if name not in CLOCK}
            for row in read_metrics(self.run / "metrics.jsonl")
        ]
        folders = {
            "artefact": self.run / "artefact",
            "library": self.run.parent / "library" / "tiny_mood",
        }
        files = {what: tiny_system.snapshot(folder) for what, folder in folders.items()}
        others = sorted(
            path.name for path in (self.run / "checkpoints").iterdir() if not path.name.isdigit()
        )
        return {
            "checkpoints": manifests,
            "metrics": rows,
            **files,
            "beside": others,
            "lines": len((self.run / "metrics.jsonl").read_text().splitlines()),
        }

    def differences(self) -> list[str]:
        found = self.facts()
        warned = [line for line in said(self.log) if line.startswith("warning")]
        warned = [line for line in warned if line not in self.usual]  # as undisturbed: at chance
        return [name for name, value in self.expected.items() if found[name] != value] + warned

    def _fork(self, work) -> int:
        return fork(work, self.log, self.folder / "compiled")

    def _must(self, work) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(self._fork(work), 0)[1])
        if code:
            raise SystemExit(f"preparing failed with {code}:\n{self.log.read_text()}")


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--base", type=Path, help="a base of tiny_system; made when not given")
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--storage", choices=("disk", "gs"), default="disk")
    parser.add_argument("--linears", nargs="+", default=["wo"], help="layers with experts")
    arguments = parser.parse_args()
    start, mismatches = time.monotonic(), {}
    if arguments.storage == "gs" and (reason := bucket.reason_absent()):
        raise SystemExit(f"no bucket: {reason}")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pemt_kill."))
        served = None
        if arguments.storage == "gs":
            served = stack.enter_context(bucket.served(Path(folder) / "bucket"))
            os.environ.update(served.environment)
        number = signal.Signals[f"SIG{arguments.signal}"]
        if arguments.base:
            shutil.copytree(arguments.base, Path(folder) / "pretrained" / "base")
        campaign = Campaign(Path(folder), arguments.seed, number, served, arguments.linears)
        campaign.prepare()
        prepared = time.monotonic() - start
        for run in range(arguments.runs):
            if wrong := campaign.disturbed():
                mismatches[run] = wrong
            print(f"run {run + 1}: {wrong or 'equal'}", file=sys.stderr, flush=True)
    print(
        json.dumps(
            {
                "seed": arguments.seed,
                "signal": arguments.signal,
                "storage": arguments.storage,
                "linears": arguments.linears,
                "runs": arguments.runs,
                "kills": sum(campaign.kills.values()),
                "phases": dict(campaign.kills),
                "left_unfinished": dict(campaign.unfinished),
                "exit_codes": dict(campaign.codes),
                "mismatches": mismatches,
                "seconds_undisturbed": round(campaign.seconds, 2),
                "seconds_preparing": round(prepared, 1),
                "seconds": round(time.monotonic() - start, 1),
            }
        )
    )
    return 1 if mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
