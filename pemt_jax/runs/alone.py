"""A run has its folders to itself: a lease on each (common/lease.py), held by its first process."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pemt_jax.common import lease
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.parallel import processes

LOCK = "run.lock"


@contextlib.contextmanager
def alone(folders: Sequence[Path]) -> Iterator[None]:
    """Context in which no other command trains in these folders.

    Raises:
        UsageError: in every process, when one does; the sentence says which.
        PemtError: in every process, when a folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        refusal = None
        with processes.first_alone():
            try:
                for folder in folders if processes.is_first() else ():
                    stack.enter_context(lease.held(folder / LOCK, f"The MODEL_DIR {folder}"))
            except PemtError as error:
                refusal = [error.exit_code, str(error)]
        if found := processes.from_first(refusal):
            code, sentence = found
            raise (UsageError if code == UsageError.exit_code else PemtError)(sentence)
        yield
