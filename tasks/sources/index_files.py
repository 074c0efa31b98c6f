"""The original order of a data set's rows, where it differs from the order of TFDS.

TFDS stores the rows of most data sets shuffled, so that a permutation by row number does not pick
the rows that it picks in the authors' source (the Hugging Face data sets). GLUE and SuperGLUE rows
carry their original number, `idx`, by which our tasks sort. For the others an index file gives the
original order: `TASK.json` in the folder `index_files.folder` (gin) or $PEMT_JAX_INDEX_FILES,

    {"train": [17, 4, 0], "validation": [1, 0, 2]}

where the n-th number of a split is the number, in the order of the TFDS files, of the row that is
the n-th in the original. Rows that are not listed are left out. The splits are TFDS's.
"""

import hashlib
import os
from pathlib import Path

import gin
import numpy as np

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError
from pemt_jax.common.user_input.files import read_json


@gin.configurable("index_files")  # pyright: ignore[reportCallIssue]  gin has no types
def folder_of_index_files(folder: str | None = None) -> str | None:
    """The folder of the index files: gin's `index_files.folder`, else the environment's."""
    return folder or os.environ.get("PEMT_JAX_INDEX_FILES")


def index_file(task: str) -> Path | None:
    """The index file of a task, if it has one."""
    folder = folder_of_index_files()
    path = storage.path(folder) / f"{task}.json" if folder else None
    return path if path and path.is_file() else None


def identity(task: str) -> str | None:
    """The sha256 of a task's index file, None without one."""
    path = index_file(task)
    return path and hashlib.sha256(path.read_bytes()).hexdigest()


def original_order(task: str, split: str, size: int) -> np.ndarray | None:
    """Row numbers of a split in the original order; None where no index file lists them.

    Raises:
      PemtError: the file is damaged, or its numbers are not distinct rows of the split.
    """
    path = index_file(task)
    if path is None:
        return None
    try:
        listed = read_json(path, "lists of row numbers by split")
        numbers = np.array(listed[split], np.int64) if listed.get(split) is not None else None
    except (ValueError, TypeError, AttributeError) as error:
        raise PemtError(
            f"The index file {path} is damaged ({error}), expected lists of row numbers by split."
        ) from error
    if numbers is None:
        return None
    if (
        numbers.ndim != 1
        or len(np.unique(numbers)) != numbers.size
        or not ((numbers >= 0) & (numbers < size)).all()
    ):
        raise PemtError(
            f"The index file {path} does not list different rows of split {split!r}, "
            f"expected numbers from 0 to {size - 1}, each at most once."
        )
    return numbers
