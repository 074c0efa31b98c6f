"""A sweep from its table to its results: experts, runs, choices, tests, in this order.

Every run is `python -m pemt_jax.train` in a process of its own, and every test
`python -m pemt_jax.evaluate`, so that a failure is one run's and a stopped sweep goes on where it
was. What is done is found by looking: an artefact in the folder that the run's hash names.
"""

import contextlib
import dataclasses
import json
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path
from typing import Any

from pemt_jax.common.errors import PemtError, say
from pemt_jax.common.storage import replacing
from pemt_jax.common.user_input.files import read_object
from pemt_jax.common.writing import lease
from pemt_jax.parallel.stop_signals import Stopped
from pemt_jax.reporting.records import FINISHED, read_run
from pemt_jax.runs.model_dir import LOCK
from pemt_jax.sweeping import libraries, plan
from pemt_jax.sweeping.choosing import CHOICES, choose
from pemt_jax.sweeping.commands import Commands, Ended
from pemt_jax.sweeping.forgetting import BASE, general_loss
from pemt_jax.sweeping.libraries import DERIVED
from pemt_jax.sweeping.methods import SEARCHED
from pemt_jax.sweeping.plan import Job, Run, Source
from pemt_jax.sweeping.results import TABLE
from pemt_jax.sweeping.searching import lorahub
from pemt_jax.sweeping.state import FAILED, SweepState
from pemt_jax.sweeping.table import SweepConfig
from pemt_jax.training.held_back import hold_back

DAY = 86400.0
TOGETHER = 8  # runs that one process evaluates: a start takes longer than many an evaluation
FORGETTING = "forgetting"  # among failures


def _batches(runs: Sequence[Run]) -> list[Sequence[Run]]:
    return [runs[start : start + TOGETHER] for start in range(0, len(runs), TOGETHER)]


class Sweep(SweepState):
    """A sweep that does what is left to do; see SweepState for the arguments."""

    def __init__(self, config: SweepConfig):
        super().__init__(config)
        self.commands = Commands()

    def run(self) -> None:
        """Do this shard's share; the whole sweep where there is one shard.

        Raises:
          PemtError: runs failed; the others were run all the same. Stopped: a signal came.
        """
        self._write_table()
        faults, measured = [], []
        with self._stoppable():
            try:
                self._each(self._train_source, self._own(self.sources, attrgetter("folder.name")))
                self._derive()
                self._each(self._train, self._own(self.jobs, attrgetter("folder.name")))
                faults = self._choose()
                chosen_runs = [r for runs in self.runs.values() for r in runs if self.is_chosen(r)]
                own = [
                    run
                    for run in self._own(chosen_runs, attrgetter("name"))
                    if not self.is_tested(run)
                ]
                self._each(self._test, _batches(own))
                if self.base:
                    self._each(self._train, self._own([self.base], attrgetter("folder.name")))
                    measured = [*self.base.runs, *chosen_runs]
                    own = [
                        run
                        for run in self._own(measured, attrgetter("name"))
                        if self._can_be_measured(run)
                    ]
                    self._each(self._measure_forgetting, _batches(own))
            finally:
                rows = self.collect()
        states = [str(row["state"]) for row in rows]
        done, failed = states.count(FINISHED), states.count(FAILED)
        say(f"{self.folder}: {done} of {len(rows)} runs finished, {failed} failed.")
        if waiting := len(rows) - done - failed:
            say(f"{waiting} wait for experts or runs of other shards: run the command again.")
        if faults:
            raise faults[0]
        if failed:
            first = next(row for row in rows if row["state"] == FAILED)
            raise PemtError(f"{failed} runs failed, the first {first['run']}: {first['reason']}")
        for run in measured:
            folder = self.job_of[run].folder_of(run)
            for what in ("train", FORGETTING):
                if (fault := self.failure(what, folder)) is not None:
                    raise PemtError(f"The forgetting of {run.name} was not measured: {fault}")

    def _write_table(self) -> None:
        content = dataclasses.asdict(self.config.table) | dataclasses.asdict(self.config.experts)
        with replacing(self.folder / TABLE) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _own(self, items: Sequence, key: Callable) -> list:
        """This shard's share of the items."""
        return [item for item in items if plan.share(self.config, key(item))]

    def _each(self, action: Callable, items: Sequence) -> None:
        """Call `action` for the items, JOBS at a time."""
        with ThreadPoolExecutor(self.config.jobs) as pool:
            futures = [pool.submit(action, item) for item in items]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self.commands.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _train_source(self, source: Source) -> None:
        only = dataclasses.replace(source.set, experts=(source.name,))

        def is_done() -> bool:
            return not libraries.missing(only) and read_run(source.folder, "").state == FINISHED

        if not is_done():
            self._wait_for(source.folder)
            if not is_done():
                self._command("train", source.folder, source.command, 1)

    def _derive(self) -> None:
        """Make what methods need of the expert sets that are complete."""
        for cell in self.cells:
            kind, own = cell.method.library, cell.set
            if kind in DERIVED and own.name and not libraries.missing(own):
                libraries.derive(self.config, own, kind)

    def _train(self, job: Job) -> None:
        self._search(job)
        if libraries.missing(job.experts) or all(self.is_done(run) for run in job.runs):
            return
        for run in job.runs:
            folder = job.folder_of(run)
            up = "/".join([".."] * len(folder.relative_to(self.folder).parts))
            hold_back(folder, f"{up}/{CHOICES}/{run.cell.key}.json", run.choice)
        self._wait_for(job.folder)
        if not all(self.is_done(run) for run in job.runs):
            self._command("train", job.folder, job.command, len(job.runs))

    def _search(self, job: Job) -> None:
        """Find the expert of a job whose method searches for one on the target's examples."""
        own = job.runs[0].cell.set
        searched = job.runs[0].cell.method.searched
        if searched and libraries.missing(job.experts) and not libraries.missing(own):
            libraries.copy(own, job.experts.library)
            self._command("library", job.folder, lorahub(self.config, job), 1, SEARCHED)

    def _wait_for(self, folder: Path) -> None:
        """Wait for a process that a killed sweep has left behind, or another sweep's, to end."""
        with lease.held(folder / LOCK, f"The run {folder}", wait=DAY):
            pass

    def _choose(self) -> list[PemtError]:
        """Choose in every cell whose runs have all ended; what was wrong in some of them."""
        faults = []
        for cell in self.cells:
            records = [(run, self.record(run)) for run in self.runs[cell]]
            states = [self.state(run, record)[0] for run, record in records]
            if all(state in (FINISHED, FAILED) for state in states):
                try:
                    choose(self.folder, cell, records)
                except PemtError as error:
                    faults.append(error)
        return faults

    def _test(self, runs: Sequence[Run]) -> None:
        self._evaluate(runs, {"SPLIT": "test"}, self.is_tested, "evaluate")

    def _can_be_measured(self, run: Run) -> bool:
        """Whether general text is to be read for a run: it has been tested, or is the base."""
        record = self.record(run)
        is_base = run.cell.method is BASE and record.state == FINISHED
        return (self.is_tested(run) or is_base) and not self._is_measured(run)

    def _is_measured(self, run: Run) -> bool:
        return general_loss(self.record(run), self.general_text) is not None

    def _measure_forgetting(self, runs: Sequence[Run]) -> None:
        flags = {"GENERAL_TEXT": self.config.table.forgetting_text}
        self._evaluate(runs, flags, self._is_measured, FORGETTING)

    def _evaluate(
        self, runs: Sequence[Run], flags: dict[str, Any], is_done: Callable, what: str
    ) -> None:
        """Evaluate runs in one process; where one fails, those that are left each in its own."""
        folders = [self.job_of[run].folder_of(run) for run in runs]
        flags = {"gin_file": ()} | flags
        if len(runs) > 1:
            more = {"MODEL_DIR": folders[0], "MORE_MODEL_DIRS": tuple(map(str, folders[1:]))}
            self._command("evaluate", folders[0], plan.arguments(flags | more), 1, what)
        for run, folder in zip(runs, folders, strict=True):
            if is_done(run):
                self.failure_file(what, folder).unlink(missing_ok=True)
            else:
                one = plan.arguments(flags | {"MODEL_DIR": folder})
                self._command("evaluate", folder, one, 1, what)

    def _command(
        self, module: str, folder: Path, flags: Sequence[str], runs: int, what: str | None = None
    ) -> None:
        """Run a command to its end; note its failure, as that of `what`, or what it cost."""
        place = folder.relative_to(self.folder).as_posix()
        say(f"{module} {place}")
        log = self.folder / "logs" / f"{place.replace('/', '-')}.log"
        ended = self.commands.run(module, flags, log)
        if self.commands.stopping:
            return
        failure = self.failure_file(what or module, folder)
        if ended.code:
            say(f"{module} {place} failed: {ended.sentence}")
            with replacing(failure) as partial:
                partial.write_text(json.dumps({"reason": ended.sentence}) + "\n", encoding="utf-8")
        else:
            failure.unlink(missing_ok=True)
        if module in ("train", "library"):
            self._note_cost(folder.name, ended, runs)

    def _note_cost(self, job: str, ended: Ended, runs: int) -> None:
        file = self.folder / "costs" / f"{job}.json"
        before = read_object(file, "a cost") if file.is_file() else {}
        content = {
            "job": job,
            "seconds": round(before.get("seconds", 0.0) + ended.seconds, 1),
            "peak_memory": max(before.get("peak_memory", 0), ended.peak_memory),
            "starts": before.get("starts", 0) + 1,
            "runs": runs,
        }
        with replacing(file) as partial:
            partial.write_text(json.dumps(content) + "\n", encoding="utf-8")

    @contextlib.contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Context in which SIGTERM and Ctrl-C let the running commands save and end."""

        def stop(number: int, _frame) -> None:
            signal.signal(number, signal.SIG_IGN)
            self.commands.stop()
            raise Stopped("The sweep was asked to stop; its command goes on with it.", number)

        before = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):  # outside the main thread there are no handlers
                before[number] = signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_sweep(config: SweepConfig) -> None:
    """Run a sweep, or print its commands; see `Sweep`."""
    sweep = Sweep(config)
    if not config.dry_run:
        sweep.run()
        return
    for source in sweep.sources:
        print(f"python -m pemt_jax.train {shlex.join(source.command)}")
    for job in [*sweep.jobs, *([sweep.base] if sweep.base else [])]:
        print(f"python -m pemt_jax.train {shlex.join(job.command)}")
    tests = sum(1 for cell in sweep.cells for _ in sweep.runs[cell][:1])
    runs = sum(len(job.runs) for job in sweep.jobs)
    print(f"# {len(sweep.sources)} experts, {runs} runs in {len(sweep.jobs)} jobs, {tests} choices")
