"""The memory of a host when a run starts: parameters pass through it on their way to the chips."""

import math
from collections.abc import Mapping

from pemt_jax.parallel import partitioning
from pemt_jax.planning.arithmetic import BYTES
from pemt_jax.planning.job import Job
from pemt_jax.planning.layout import Layout

# Resident memory of a process that has imported what `train` imports and has opened its devices;
# measured on Linux with CPython 3.11, jax 0.10.2 and TensorFlow 2.21.
IMPORTS = 945 * 2**20
CHIPS_PER_HOST = 4  # at most; machines with 8 chips hold more slices of a sharded base


def host_memory(job: Job, parameters: tuple[dict, dict, Mapping], layout: Layout) -> dict[str, int]:
    """Return bytes by kind that the process of one host holds at most before its first step.

    A parameter is read in the dtype in which it is kept, and of a sharded one only the slices on
    the host's own chips.

    Args:
      job: the run.
      parameters: what Job.parameters returned.
      layout: of the run on the slice.
    """
    trainable, frozen, axes = parameters
    places = partitioning.parameter_shardings(
        trainable | frozen, axes, layout.abstract_mesh, layout.fully_sharded
    )
    chips = min(layout.chips, CHIPS_PER_HOST)

    def elements(params: Mapping) -> int:
        return sum(
            min(math.prod(x.shape), chips * math.prod(places[path].shard_shape(x.shape)))
            for path, x in params.items()
        )

    return {
        "parameters": elements(frozen) * BYTES[job.frozen_dtype] + 4 * elements(trainable),
        "imports": IMPORTS,
    }
