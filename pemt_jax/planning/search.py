"""Ways to run a job on a slice: meshes, dtypes, rematerialisation, batch sizes; best first."""

import dataclasses
from collections.abc import Iterator, Sequence

from pemt_jax.config import DTYPES
from pemt_jax.planning.arithmetic import Estimate, Sizes, estimate, sizes_of
from pemt_jax.planning.chips import Chip
from pemt_jax.planning.job import Job
from pemt_jax.planning.layout import Layout

MARGIN = 1.25  # the arithmetic is up to 22 % below the compiler (tests/benchmarks/plan_check.py)
POLICIES = ("none", "minimal", "full")  # from the quickest to the smallest


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to run a job and what it takes, by arithmetic."""

    job: Job
    layout: Layout
    estimate: Estimate

    def fits(self, chip: Chip) -> bool:
        return self.estimate.total <= chip.hbm

    def is_close(self, chip: Chip) -> bool:
        """Whether it fits by less than the arithmetic may be too low: compile it."""
        return self.fits(chip) and self.estimate.total * MARGIN > chip.hbm

    @property
    def rows_per_second(self) -> float:
        return self.job.batch_size / self.estimate.seconds

    def describe(self, chip: Chip) -> dict:
        """JSON-able choices and numbers."""
        return {
            "layout": dataclasses.asdict(self.layout),
            "batch_size": self.job.batch_size,
            "dtype": self.job.t5.dtype,
            "frozen_dtype": self.job.frozen_dtype,
            "remat_policy": self.job.t5.remat_policy,
            "bytes_by_arithmetic": self.estimate.total,
            "compile": self.is_close(chip),
            "step_seconds_at_least": self.estimate.seconds,
            "rows_per_second_at_most": self.rows_per_second,
        }


class Sizing:
    """Counts parameters once a layout; tracing a large model takes seconds."""

    def __init__(self, job: Job):
        self.parameters = job.parameters()
        self._sizes: dict[Layout, Sizes] = {}

    def __call__(self, layout: Layout) -> Sizes:
        if layout not in self._sizes:
            self._sizes[layout] = sizes_of(self.parameters, layout)
        return self._sizes[layout]


def layouts(chips: int, job: Job) -> Iterator[Layout]:
    """All layouts over `chips` over which the batch can be sharded without empty rows."""
    for model in range(1, chips + 1):
        if chips % model or job.batch_size % (chips // model):
            continue
        rows = chips // model
        for expert in range(1, max(1, job.pemt.num_experts) + 1):
            if rows % expert == 0 and (expert == 1 or job.pemt.num_experts % expert == 0):
                yield Layout(rows // expert, model, expert)
                if rows > 1:
                    yield Layout(rows // expert, model, expert, fully_sharded=True)


def candidates(
    job: Job,
    chip: Chip,
    chips: int,
    sizing: Sizing,
    dtypes: Sequence[str],
    batch_sizes: Sequence[int],
) -> list[Candidate]:
    """All ways to run `job` on so many chips.

    Args:
      job: its dtypes, policy and batch size are replaced.
      chip, chips: the slice.
      sizing: of the job's parameters.
      dtypes: of activations and frozen parameters alike.
      batch_sizes: rows an update.
    """
    found = []
    for batch_size in batch_sizes:
        sized = dataclasses.replace(job, batch_size=batch_size)
        for layout in layouts(chips, sized):
            for dtype in dtypes:
                for policy in POLICIES:
                    t5 = dataclasses.replace(job.t5, dtype=dtype, remat_policy=policy)
                    variant = dataclasses.replace(sized, t5=t5, frozen_dtype=dtype)
                    found.append(
                        Candidate(variant, layout, estimate(variant, sizing(layout), chip, layout))
                    )
    return found


def search(job: Job, chip: Chip, chips: int) -> list[Candidate]:
    """The ways that fit, best first: most rows a second, then fewest messages, least memory."""
    batch_sizes = sorted(
        {max(1, job.batch_size // 2), job.batch_size, 2 * job.batch_size, 4 * job.batch_size}
    )
    found = candidates(job, chip, chips, Sizing(job), sorted(DTYPES), batch_sizes)
    return sorted(
        (c for c in found if c.fits(chip)),
        key=lambda c: (-c.rows_per_second, c.estimate.sent, c.estimate.total),
    )
