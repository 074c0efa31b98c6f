"""Sweep: a table of methods, tasks, expert sets and seeds, each run trained, chosen and tested.

    python -m pemt_jax.sweep --gin_file=tables/study.gin --gin.FOLDER=runs/study
    python -m pemt_jax.report runs/study --to study.html

The same command goes on with a sweep that was stopped, and trains again what failed. What has been
trained is not trained again. Learning rates are chosen on validation; the test split of a run is
read after the choice that it won has been written, and of no other run. FOLDER/results.jsonl has a
line per run (pemt_jax/sweeping/README.md).

JOBS=2 runs two processes at a time. SHARD=I/N does the I-th of N shares, for array jobs and several
machines with one FOLDER. DRY_RUN=True prints the commands.
"""

import sys

from pemt_jax.cli import command
from pemt_jax.common.configured import configured
from pemt_jax.sweeping.table import SweepConfig


@configured(SweepConfig)
def sweep(config: SweepConfig) -> None:
    """Run what a table asks for, choose on validation, test what was chosen."""
    from pemt_jax.sweeping.running import run_sweep

    run_sweep(config)


if __name__ == "__main__":
    sys.exit(command.run(sweep))
