"""Ways to run a job on a slice: meshes, dtypes, rematerialisation, batch sizes; best first."""

import dataclasses
from collections.abc import Iterator, Sequence

from pemt_jax.config import DTYPES
from pemt_jax.planning.arithmetic import Estimate, Sizes, estimate, sizes_of
from pemt_jax.planning.chips import Chip
from pemt_jax.planning.job import Job

POLICIES = ("none", "minimal", "full")  # from the quickest to the smallest


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to run a job and what it takes, by arithmetic."""

    job: Job
    data: int
    model: int
    estimate: Estimate

    def fits(self, chip: Chip) -> bool:
        return self.estimate.total <= chip.hbm

    @property
    def rows_per_second(self) -> float:
        return self.job.batch_size / self.estimate.seconds

    def describe(self) -> dict:
        """JSON-able choices and numbers."""
        return {
            "data": self.data, "model": self.model, "batch_size": self.job.batch_size,
            "dtype": self.job.t5.dtype, "frozen_dtype": self.job.frozen_dtype,
            "remat_policy": self.job.t5.remat_policy,
            "bytes_by_arithmetic": self.estimate.total,
            "step_seconds_at_least": self.estimate.seconds,
            "rows_per_second_at_most": self.rows_per_second,
        }  # fmt: skip


class Sizing:
    """Counts parameters once a mesh; tracing a large model takes seconds."""

    def __init__(self, job: Job):
        self._parameters = job.parameters()
        self._sizes: dict[tuple[int, int], Sizes] = {}

    def __call__(self, data: int, model: int) -> Sizes:
        if (data, model) not in self._sizes:
            self._sizes[data, model] = sizes_of(self._parameters, data, model)
        return self._sizes[data, model]


def meshes(chips: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """All data x model of `chips` to whose data devices the batch can be dealt."""
    for model in range(1, chips + 1):
        if chips % model == 0 and batch_size % (chips // model) == 0:
            yield chips // model, model


def candidates(job: Job, chip: Chip, chips: int, sizing: Sizing,
               dtypes: Sequence[str], batch_sizes: Sequence[int]) -> list[Candidate]:
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
        for data, model in meshes(chips, batch_size):
            for dtype in dtypes:
                for policy in POLICIES:
                    t5 = dataclasses.replace(job.t5, dtype=dtype, remat_policy=policy)
                    variant = dataclasses.replace(job, t5=t5, frozen_dtype=dtype,
                                                  batch_size=batch_size)
                    found.append(Candidate(variant, data, model, estimate(
                        variant, sizing(data, model), chip, data, model)))
    return found


def search(job: Job, chip: Chip, chips: int) -> list[Candidate]:
    """The ways that fit, best first: most rows a second, then least memory."""
    batch_sizes = sorted({max(1, job.batch_size // 2), job.batch_size, 2 * job.batch_size,
                          4 * job.batch_size})
    found = candidates(job, chip, chips, Sizing(job), sorted(DTYPES), batch_sizes)
    return sorted((c for c in found if c.fits(chip)),
                  key=lambda c: (-c.rows_per_second, c.estimate.total))


def smallest_memory(job: Job, chip: Chip, chips: int, sizing: Sizing, dtype: str) -> Candidate:
    """The way that needs least of a chip, at the job's batch size."""
    found = candidates(job, chip, chips, sizing, (dtype,), (job.batch_size,))
    return min(found, key=lambda c: c.estimate.total)
