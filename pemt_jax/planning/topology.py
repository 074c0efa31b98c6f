"""Devices to compile for: those of a TPU slice that is not attached, or virtual ones.

The TPU's compiler comes with `pip install "pemt_jax[tpu]"` and needs no TPU. Without it as many
virtual CPU devices are compiled for: the same partitioning and the same collectives, by another
compiler, whose temporaries and bytes are not the TPU's.
"""

import dataclasses
import importlib.util
import math
import os

import jax
from jax.experimental import topologies

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.planning.chips import Chip, parse_topology

MISSING = (
    'there is no TPU compiler here (pip install "pemt_jax[tpu]"), so these are virtual '
    "CPU devices: parameters and collectives are as on the TPU, while temporaries, bytes "
    "and code are the CPU compiler's, and whether it fits is said by arithmetic"
)


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: its name, its chips, one device a chip, and whether the TPU's compiler is there."""

    name: str
    chip: Chip
    devices: tuple
    real_compiler: bool


def open_topology(name: str) -> Topology:
    """Return the devices of a slice such as "v5e:4x4".

    Raises:
      UsageError: no such slice.
      PemtError: without a TPU compiler, and JAX has started with fewer CPU devices.
    """
    chip, sizes = parse_topology(name)
    if importlib.util.find_spec("libtpu") is None:
        return Topology(name, chip, virtual_devices(math.prod(sizes)), False)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not ask a cloud about this machine
    # No TPU is opened, so there is nothing that the lock file of libtpu would protect.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")  # else libtpu logs that it is lost
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{chip.name}-{math.prod(sizes)}")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    # A host has 2 x 2 chips; a slice smaller than that has one host.
    host = [2, 2, 1] if all(size % 2 == 0 for size in sizes[:2]) else [*sizes, 1, 1][:3]
    try:
        found = topologies.get_topology_desc(
            platform="tpu",
            topology_name=name,
            chips_per_host_bounds=host,
            chip_config_name=chip.variant,
        )
    except jax.errors.JaxRuntimeError as error:
        message = str(error).split(": ", 1)[-1].splitlines()[0].rstrip(".")
        raise UsageError(
            f"The TPU compiler knows no topology {name!r} ({message}), expected one "
            f"like {chip.name}:{chip.slices[3]}."
        ) from error
    return Topology(name, chip, tuple(found.devices), True)


def virtual_devices(count: int) -> tuple:
    """Return `count` CPU devices; the first call of a process decides how many there are."""
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX has started
        pass
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise PemtError(f"JAX has started with {len(devices)} CPU devices, expected {count}.")
    return tuple(devices[:count])
