"""Whether what a configuration or file asks for can be in memory, asked before it is allocated."""

import contextlib
import functools
import os
from pathlib import Path

from pemt_jax.common.errors import PemtError, UsageError

GIB = 2**30
POSITION_BYTES = 4  # of each pair of positions, on the host while a step is compiled
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@functools.cache
def machine_bytes() -> int:
    """Memory of this machine, or of the container that this process is in."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            found = min(found, int(Path(file).read_text(encoding="ascii")))
    return found


def check_lengths(**tokens: int | None) -> None:
    """Raise an error for a length, by its name, whose position biases no memory can hold."""
    for name, length in tokens.items():
        check_memory(f"{name} {length}", POSITION_BYTES * (length or 0) ** 2)


def check_memory(
    what: str, needed: int, available: int | None = None, error: type[PemtError] = UsageError
) -> None:
    """Raise an error when `what` takes more than the bytes available, by default the machine's."""
    available = machine_bytes() if available is None else available
    if needed > available:
        raise error(
            f"{what} takes at least {needed / GIB:.4g} GiB of memory, expected at most the "
            f"{available / GIB:.4g} GiB that are here."
        )
