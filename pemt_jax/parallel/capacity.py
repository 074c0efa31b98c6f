"""Whether a batch can be in memory at all: a lower bound, checked before anything is compiled."""

import jax

from pemt_jax.parallel.memory import check_memory, machine_bytes

TOKEN_BYTES, ACTIVATION_BYTES = 4, 2


def check_batch(what: str, rows: int, tokens: int, width: int) -> None:
    """Raise UsageError for a batch that cannot be held, by its tokens or one layer's activations.

    Args:
        what: the settings it follows from, for the sentence.
        rows: of all processes together.
        tokens: of a row, inputs and targets.
        width: of the model.
    """
    rows = -(-rows // jax.process_count())
    check_memory(what, rows * tokens * TOKEN_BYTES)
    check_memory(what, rows * tokens * width * ACTIVATION_BYTES, device_bytes())


def device_bytes() -> int:
    """Memory of this process's devices together; the machine's where they do not say."""
    if jax.default_backend() == "cpu":
        return machine_bytes()
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    return sum(limit or 2**63 for limit in limits)
