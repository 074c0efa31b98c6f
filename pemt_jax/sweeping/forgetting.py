"""Forgetting: the loss on held-out general text under an adapted model minus that under its base.

Both are mean cross entropies per token of span corruption, teacher-forced, in nats
(`python -m pemt_jax.evaluate` with GENERAL_TEXT). An adapted model is evaluated with all that it
has, prompt and gates included; the base as a run of one update of the layer norms at rate 0, which
is the base. It is well defined for a base that never saw span corruption as well.
"""

from pemt_jax.reporting.records import RunRecord
from pemt_jax.sweeping.methods import SweepMethod
from pemt_jax.sweeping.plan import ANY, NO_SET, Cell, Job, jobs_of, runs_of
from pemt_jax.sweeping.table import SweepConfig

BASE = SweepMethod("base", "the base as it is", {"METHOD": "norms"}, choose=(), trained=False)


def base_job(config: SweepConfig) -> Job:
    """The run that is the base of a sweep's runs, under the same settings."""
    cell = Cell(BASE, config.table.tasks[0], ANY, NO_SET)
    (job,) = jobs_of(config, runs_of(config, cell))
    return job


def general_loss(record: RunRecord, task: str) -> float | None:
    """The loss of a run on the general text with this task's name; None where it is not known."""
    found = (one.metrics.get("cross_entropy") for one in record.evaluations if one.task == task)
    return next(found, None)


def forgetting(loss: float | None, base_loss: float | None) -> dict[str, float | None]:
    """What the line of a run has of it."""
    difference = None if loss is None or base_loss is None else loss - base_loss
    return {"general_loss": loss, "forgetting": difference}
