"""What a sweep searches for on a target's few examples: LoraHub's weights of the experts.

Each draw of the examples has an expert of its own, named after it, beside copies of the set's, made
by the public command. The run that follows takes it as it is.
"""

from pemt_jax.sweeping.gin_files import users_modules
from pemt_jax.sweeping.plan import Job
from pemt_jax.sweeping.table import SweepConfig


def lorahub(config: SweepConfig, job: Job) -> list[str]:
    """The arguments of `python -m pemt_jax.library` that find the expert of a job."""
    run = job.runs[0]
    flags = dict(run.flags)
    found = ["lorahub", *job.experts.experts, f"--task={run.task}", f"--base={config.table.base}"]
    found += [f"--library={job.experts.library}", f"--experts={','.join(run.cell.set.experts)}"]
    lengths = flags.get("TASK_FEATURE_LENGTHS", {})
    found += [f"--{side}={length}" for side, length in lengths.items()]
    return found + [f"--import={name}" for name in users_modules(flags["gin_file"])]
