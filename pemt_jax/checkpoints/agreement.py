"""What the processes of a run decide together about its checkpoints.

Each process reads its own part of a checkpoint, so each may find other damage. All of them call
`decide` at the same points, and all restore, set aside or refuse the same checkpoint.
"""

import json
from collections.abc import Collection

import jax
import numpy as np
from jax.experimental import multihost_utils

from pemt_jax.common.errors import PemtError


def decide(failure: PemtError | None, damaged: Collection) -> list:
    """Return, in every process, what any process found damaged, sorted.

    Args:
        failure: why this process could not read, or None.
        damaged: what this process found damaged: strings or integers.

    Raises:
        PemtError: in every process, when reading failed in one of them.
    """
    verdicts = everywhere([None if failure is None else str(failure), list(damaged)])
    if failure is not None:
        raise failure
    for sentence, _ in verdicts:
        if sentence is not None:
            raise PemtError(sentence)
    return sorted(set().union(*(found for _, found in verdicts)))


def everywhere(value) -> list:
    """Return the JSON values of all processes, in their order."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = text
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]
