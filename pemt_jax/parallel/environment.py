"""What flags and environment say about the processes of a run: who they are, how long they wait.

The members are named by --coordinator_address, --process_count and --process_index (T5X's names),
by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or are found by JAX itself: the
tasks of a SLURM step and the hosts of a TPU pod.
"""

import dataclasses
import glob
import importlib.util
import os
from typing import NamedTuple

from pemt_jax.common.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Limits:
    """How many seconds processes wait for each other; PEMT_JAX_START_SECONDS etc. set them.

    Attributes:
        start: for all processes to join.
        silence: for a sign of life, and at a training step that other processes have completed.
        read: for the batch of a training step, which may come from slow storage.
    """

    start: float = 300
    silence: float = 40
    read: float = 600

    @classmethod
    def from_environment(cls) -> "Limits":
        """Read the variables; raise UsageError for a value that is not a positive number."""
        return cls(
            **{
                field.name: _seconds(
                    f"PEMT_JAX_{field.name.upper()}_SECONDS", getattr(cls, field.name)
                )
                for field in dataclasses.fields(cls)
            }
        )


class Member(NamedTuple):
    """This process among the `count` processes of a run; all None where JAX finds them itself."""

    address: str | None
    count: int | None
    index: int | None


def find_member(address: str | None, count: int | None, index: int | None) -> Member | None:
    """Return which process of several this one is, or None when it runs alone.

    Args:
        address: host and port of process 0; from the environment when None, as the other two.
        count, index: number of processes, and the index of this one.

    Raises:
        UsageError: only some of the three are known, or they do not fit together.
    """
    given = {
        "--coordinator_address": address or os.environ.get("JAX_COORDINATOR_ADDRESS") or None,
        "--process_count": _number("JAX_NUM_PROCESSES") if count is None else count,
        "--process_index": _number("JAX_PROCESS_ID") if index is None else index,
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 3:
        return Member(None, None, None) if _in_cluster() else None
    if missing:
        known = [name for name in given if name not in missing]
        raise UsageError(
            f"Found {' and '.join(known)} without {' and '.join(missing)}, expected "
            "all three or none."
        )
    address, count, index = given.values()
    assert address is not None and count is not None and index is not None  # none is missing
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"Found the coordinator address {address!r}, expected HOST:PORT.")
    if not 0 <= index < count:
        raise UsageError(
            f"Found process index {index} of {count}, expected one from 0 to {count - 1}."
        )
    return Member(address, count, index) if count > 1 else None


def _in_cluster() -> bool:
    """Whether jax.distributed.initialize() finds the processes of a run by itself."""
    if _in_slurm():
        return True
    wanted = os.environ.get("JAX_PLATFORMS", "") in ("", "tpu", "tpu,cpu")
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return wanted and bool(chips) and importlib.util.find_spec("libtpu") is not None


def local_devices() -> list[int] | None:
    """Return which of the GPUs that it sees a task of a SLURM step uses; None leaves it to JAX.

    JAX gives each task the one GPU with the number SLURM_LOCALID. One task per node would leave all
    but one idle, and a task to which SLURM has bound its own GPU (--gpus-per-task) sees that one as
    number 0, whatever its SLURM_LOCALID. Here the tasks of a node share its GPUs evenly.

    Raises:
        UsageError: there are more tasks on this node than GPUs.
    """
    on_node = _number("SLURM_GPUS_ON_NODE")
    if not on_node or not _in_slurm() or os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = len(visible.split(",")) if visible else on_node
    if seen < on_node:  # bound to this task alone
        return list(range(seen))
    tasks = _tasks_of_node()
    if tasks > on_node:
        raise UsageError(
            f"Found {tasks} SLURM tasks on a node with {on_node} GPUs, expected at most one task "
            "per GPU: --ntasks-per-node."
        )
    share = on_node // tasks
    first = share * (_number("SLURM_LOCALID") or 0)
    return list(range(first, first + share))


def _tasks_of_node() -> int:
    """The number of tasks on this node, from a list such as `8(x2),4`: 8, 8 and 4."""
    counts: list[int] = []
    for part in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        count, _, times = part.rstrip(")").partition("(x")
        counts += [int(count)] * int(times or 1)
    return counts[min(_number("SLURM_NODEID") or 0, len(counts) - 1)]


def _in_slurm() -> bool:
    return "SLURM_STEP_NODELIST" in os.environ and (_number("SLURM_NTASKS") or 1) > 1


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text and not text.isdecimal():
        raise UsageError(f"Found {variable}={text!r}, expected a whole number.")
    return int(text) if text else None


def _seconds(variable: str, default: float) -> float:
    text = os.environ.get(variable)
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"Found {variable}={text!r}, expected seconds as a positive number.")
    return seconds
