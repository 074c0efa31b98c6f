"""What there is of a sweep: its plan, and of each run whether it has ended, was chosen, tested."""

from pathlib import Path

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.user_input.files import read_object
from pemt_jax.common.user_input.paragraphs import general_text_task
from pemt_jax.reporting.records import FINISHED, RunRecord, read_run
from pemt_jax.sweeping import libraries, plan
from pemt_jax.sweeping.choosing import chosen, validation_score
from pemt_jax.sweeping.forgetting import base_job, forgetting, general_loss
from pemt_jax.sweeping.libraries import DERIVED
from pemt_jax.sweeping.methods import SEARCHED
from pemt_jax.sweeping.plan import Job, Run, Source
from pemt_jax.sweeping.results import COSTS, RESULTS, row_of, write_lines
from pemt_jax.sweeping.table import SweepConfig

FAILED, WAITING = "failed", "waiting"


class SweepState:
    """A sweep as its folder has it.

    Args:
      config: its table and where it is kept.

    Attributes:
      cells, runs, jobs, sources: its plan; `runs` by cell.
      job_of: the job that trains a run.
      base: the run that is the base, for forgetting; None where that is not measured.
      general_text: name of the task of span corruption on FORGETTING_TEXT; "" without one.

    Raises:
      UsageError: the table names what does not exist.
    """

    def __init__(self, config: SweepConfig):
        self.config, self.folder = config, config.path
        libraries.check_exists(libraries.expert_sets(config))
        self.cells = plan.cells(config)
        self.runs = {cell: plan.runs_of(config, cell) for cell in self.cells}
        every = [run for runs in self.runs.values() for run in runs]
        self.jobs = plan.jobs_of(config, every)
        self.job_of = {run: job for job in self.jobs for run in job.runs}
        self.sources = plan.sources_of(config)
        text, self.base, self.general_text = config.table.forgetting_text, None, ""
        if text is not None:
            self.general_text = general_text_task(text)
            self.base = base_job(config)
            self.job_of[self.base.runs[0]] = self.base

    def collect(self) -> list[dict]:
        """Write results.jsonl and costs.jsonl of what there is, unless this is a shard of several;
        return the lines of the former."""
        rows, costs, base_loss = [], [], None
        if self.base:
            base_loss = general_loss(self.record(self.base.runs[0]), self.general_text)
        for cell in self.cells:
            choice = chosen(self.folder, cell)
            for run in self.runs[cell]:
                job = self.job_of[run]
                record = self.record(run)
                is_chosen = None if choice is None else choice == run.choice
                state, reason = self.state(run, record, bool(is_chosen))
                row = row_of(self.folder, job, run, record, is_chosen, state, reason)
                if self.base and is_chosen:
                    row |= forgetting(general_loss(record, self.general_text), base_loss)
                rows.append(row)
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

    def record(self, run: Run) -> RunRecord:
        """What the folder of a run says."""
        return read_run(self.job_of[run].folder_of(run), run.name)

    def is_done(self, run: Run) -> bool:
        """Whether a run has ended, with the experts that its library has now.

        Raises:
          UsageError: it was trained with others.
        """
        record = self.record(run)
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

    def is_tested(self, run: Run) -> bool:
        """Whether the test split of a run has been read."""
        return any(one.split == "test" for one in self.record(run).evaluations)

    def is_chosen(self, run: Run) -> bool:
        """Whether validation chose a run."""
        return chosen(self.folder, run.cell) == run.choice

    def failure_file(self, module: str, folder: Path) -> Path:
        """Where it is written down that a command for a folder failed."""
        place = folder.relative_to(self.folder).as_posix().replace("/", "-")
        return self.folder / "failures" / f"{module}-{place}.json"

    def failure(self, module: str, folder: Path) -> str | None:
        """Why a command failed when it was run last; None where it did not."""
        file = self.failure_file(module, folder)
        return str(read_object(file, "a failure").get("reason")) if file.is_file() else None

    def state(self, run: Run, record: RunRecord, is_chosen: bool = False) -> tuple[str, str]:
        """FINISHED, FAILED or WAITING, and why."""
        job = self.job_of[run]
        if record.state == FINISHED:
            if validation_score(record) is None:
                return FAILED, "There is no validation metric, so it cannot be chosen."
            if is_chosen and not any(one.split == "test" for one in record.evaluations):
                fault = self.failure("evaluate", job.folder_of(run))
                return (FAILED, fault) if fault else (WAITING, "It has not been tested yet.")
            return FINISHED, ""
        for what in ("train", SEARCHED):
            if (fault := self.failure(what, job.folder)) is not None:
                return FAILED, fault
        for source in self.sources:
            if _depends(job, source) and (fault := self.failure("train", source.folder)):
                return FAILED, f"Its expert {source.name!r} failed: {fault}"
        return WAITING, "It has not been trained yet."


def _depends(job: Job, source: Source) -> bool:
    """Whether a job uses what a run of stage 1 trains, or what is made of it."""
    cell = job.runs[0].cell
    made_of = [cell.set.library] if cell.method.library in (*DERIVED, SEARCHED) else []
    return source.set.library in [job.experts.library, *made_of]
