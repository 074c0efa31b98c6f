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
from pathlib import Path

from pemt_jax.common.errors import PemtError, UsageError, say
from pemt_jax.common.storage import replacing
from pemt_jax.common.user_input.files import read_object
from pemt_jax.common.writing import lease
from pemt_jax.parallel.stop_signals import Stopped
from pemt_jax.reporting.records import FINISHED, RunRecord, read_run
from pemt_jax.runs.model_dir import LOCK
from pemt_jax.sweeping import libraries, plan
from pemt_jax.sweeping.choosing import CHOICES, choose, chosen, validation_score
from pemt_jax.sweeping.commands import Commands, Ended
from pemt_jax.sweeping.libraries import DERIVED
from pemt_jax.sweeping.plan import Job, Run, Source
from pemt_jax.sweeping.results import COSTS, RESULTS, TABLE, row_of, write_lines
from pemt_jax.sweeping.table import SweepConfig
from pemt_jax.training.held_back import hold_back

FAILED, WAITING = "failed", "waiting"
DAY = 86400.0


class Sweep:
    """A sweep in its folder.

    Args:
      config: its table and where it is kept.

    Raises:
      UsageError: the table names what does not exist.
    """

    def __init__(self, config: SweepConfig):
        self.config, self.folder = config, config.path
        self.commands = Commands()
        libraries.check_exists(libraries.expert_sets(config))
        self.cells = plan.cells(config)
        self.runs = {cell: plan.runs_of(config, cell) for cell in self.cells}
        every = [run for runs in self.runs.values() for run in runs]
        self.jobs = plan.jobs_of(config, every)
        self.job_of = {run: job for job in self.jobs for run in job.runs}
        self.sources = plan.sources_of(config)

    def run(self) -> None:
        """Do this shard's share; the whole sweep where there is one shard.

        Raises:
          PemtError: runs failed; the others were run all the same. Stopped: a signal came.
        """
        self._write_table()
        with self._stoppable():
            self._each(self._train_source, self.sources, lambda one: one.folder.name)
            self._derive()
            self._each(self._train, self.jobs, lambda job: job.folder.name)
            faults = self._choose()
            tested = [run for cell in self.cells for run in self.runs[cell] if self._is_chosen(run)]
            self._each(self._test, tested, lambda run: run.cell.key)
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

    def collect(self) -> list[dict]:
        """Write results.jsonl and costs.jsonl of what there is, unless this is a shard of several;
        return the lines of the former."""
        rows, costs = [], []
        for cell in self.cells:
            choice = chosen(self.folder, cell)
            for run in self.runs[cell]:
                job = self.job_of[run]
                record = self._record(run)
                state, reason = self._state(job, record)
                is_chosen = None if choice is None else choice == run.choice
                rows.append(row_of(self.folder, job, run, record, is_chosen, state, reason))
                costs.append({"run": rows[-1]["run"], "stored": record.stored})
        bases = {row["base"] for row in rows if row["base"]}
        if len(bases) > 1:
            raise PemtError(
                f"The runs of {self.folder} have {len(bases)} different bases, expected one; a "
                "base that was replaced needs a new FOLDER."
            )
        for entry, row in zip(costs, rows, strict=True):
            job = self.folder / "costs" / f"{row['job']}.json"
            entry |= read_object(job, "a cost") if job.is_file() else {}
        if self.config.share[1] == 1:
            write_lines(self.folder / RESULTS, rows)
            write_lines(self.folder / COSTS, costs)
        return rows

    def _write_table(self) -> None:
        content = dataclasses.asdict(self.config.table) | dataclasses.asdict(self.config.experts)
        with replacing(self.folder / TABLE) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _each(self, action: Callable, items: Sequence, key: Callable) -> None:
        """Call `action` for this shard's share of the items, JOBS at a time."""
        own = [item for item in items if plan.share(self.config, key(item))]
        with ThreadPoolExecutor(self.config.jobs) as pool:
            futures = [pool.submit(action, item) for item in own]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self.commands.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _train_source(self, source: Source) -> None:
        only = dataclasses.replace(source.set, experts=(source.name,))
        if libraries.missing(only) or read_run(source.folder, "").state != FINISHED:
            self._command("train", source.folder, source.command, 1)

    def _derive(self) -> None:
        """Make what methods need of the expert sets that are complete."""
        for cell in self.cells:
            kind, own = cell.method.library, cell.set
            if kind in DERIVED and own.name and not libraries.missing(own):
                libraries.derive(self.config, own, kind)

    def _train(self, job: Job) -> None:
        if libraries.missing(job.experts) or all(self._is_done(run) for run in job.runs):
            return
        for run in job.runs:
            folder = job.folder_of(run)
            up = "/".join([".."] * len(folder.relative_to(self.folder).parts))
            hold_back(folder, f"{up}/{CHOICES}/{run.cell.key}.json", run.choice)
        with lease.held(job.folder / LOCK, f"The run {job.folder}", wait=DAY):
            pass  # a process that a killed sweep has left behind ends first
        if not all(self._is_done(run) for run in job.runs):
            self._command("train", job.folder, job.command, len(job.runs))

    def _choose(self) -> list[PemtError]:
        """Choose in every cell whose runs have all ended; what was wrong in some of them."""
        faults = []
        for cell in self.cells:
            records = [(run, self._record(run)) for run in self.runs[cell]]
            states = [self._state(self.job_of[run], record)[0] for run, record in records]
            if all(state in (FINISHED, FAILED) for state in states):
                try:
                    choose(self.folder, cell, records)
                except PemtError as error:
                    faults.append(error)
        return faults

    def _test(self, run: Run) -> None:
        folder = self.job_of[run].folder_of(run)
        if not any(one.split == "test" for one in self._record(run).evaluations):
            flags = [f"--gin.MODEL_DIR={folder}", "--gin.SPLIT=test"]
            self._command("evaluate", folder, flags, 1)

    def _command(self, module: str, folder: Path, flags: Sequence[str], runs: int) -> None:
        """Run a command to its end; note its failure, or what it cost."""
        name = folder.relative_to(self.folder).as_posix().replace("/", "-")
        say(f"{module} {folder.relative_to(self.folder)}")
        ended = self.commands.run(module, flags, self.folder / "logs" / f"{name}.log")
        if self.commands.stopping:
            return
        failure = self.folder / "failures" / f"{folder.name}.json"
        if ended.code:
            say(f"{module} {folder.relative_to(self.folder)} failed: {ended.sentence}")
            with replacing(failure) as partial:
                partial.write_text(json.dumps({"reason": ended.sentence}) + "\n", encoding="utf-8")
        else:
            failure.unlink(missing_ok=True)
        if module == "train":
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

    def _record(self, run: Run) -> RunRecord:
        return read_run(self.job_of[run].folder_of(run), run.name)

    def _is_done(self, run: Run) -> bool:
        record = self._record(run)
        if record.state != FINISHED:
            return False
        used = record.card.experts if record.card else ()
        library = self.job_of[run].experts.library
        if (name := libraries.replaced(library, used)) is not None:
            raise UsageError(
                f"{record.folder} was trained with another expert {name!r} than the library "
                f"{library} has now, expected the same; changed experts need a new FOLDER."
            )
        return True

    def _is_chosen(self, run: Run) -> bool:
        return chosen(self.folder, run.cell) == run.choice

    def _state(self, job: Job, record: RunRecord) -> tuple[str, str]:
        """FINISHED, FAILED or WAITING, and why."""
        if record.state == FINISHED:
            unknown = validation_score(record) is None
            reason = "There is no validation metric, so it cannot be chosen." if unknown else ""
            return (FAILED if unknown else FINISHED), reason
        failure = self.folder / "failures" / f"{job.folder.name}.json"
        if failure.is_file():
            return FAILED, str(read_object(failure, "a failure").get("reason"))
        for source in self.sources:
            failure = self.folder / "failures" / f"{source.folder.name}.json"
            if _depends(job, source) and failure.is_file():
                reason = read_object(failure, "a failure").get("reason")
                return FAILED, f"Its expert {source.name!r} failed: {reason}"
        return WAITING, "It has not been trained yet."

    @contextlib.contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Context in which SIGTERM and Ctrl-C let the running commands save and end."""

        def stop(number: int, _frame) -> None:
            signal.signal(number, signal.SIG_IGN)
            self.commands.stop()
            raise Stopped("The sweep was asked to stop; its command goes on with it.", number)

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _depends(job: Job, source: Source) -> bool:
    """Whether a job uses what a run of stage 1 trains, or what is made of it."""
    cell = job.runs[0].cell
    made_of = [cell.set.library] if cell.method.library in DERIVED else []
    return source.set.library in [job.experts.library, *made_of]


def run_sweep(config: SweepConfig) -> None:
    """Run a sweep, or print its commands; see `Sweep`."""
    sweep = Sweep(config)
    if not config.dry_run:
        sweep.run()
        return
    for source in sweep.sources:
        print(f"python -m pemt_jax.train {shlex.join(source.command)}")
    for job in sweep.jobs:
        print(f"python -m pemt_jax.train {shlex.join(job.command)}")
    tests = sum(1 for cell in sweep.cells for _ in sweep.runs[cell][:1])
    print(
        f"# {len(sweep.sources)} experts, {len(sweep.job_of)} runs in {len(sweep.jobs)} jobs, "
        f"{tests} choices"
    )
