"""Downloading data sets and caching tasks, so that they work without network afterwards."""

import importlib
import logging
import sys

import seqio

from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.tasks.sources import cached
from pemt_jax.tasks.sources.split_source import SplitSource
from pemt_jax.tasks.sources.tfds_rows import TfdsRows


def import_tasks(module: str) -> None:
    """Import a module that registers tasks, looked for from here too."""
    sys.path.insert(0, "")
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"The module {module} cannot be imported ({error}), expected one that registers tasks."
        ) from error


def tasks_named(name: str) -> list[seqio.Task]:
    """The task of a name, or the tasks of a mixture.

    Raises:
      UsageError: neither a task nor a mixture is called so.
    """
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if name not in known:
        raise UsageError(
            f"There is no task or mixture {name!r}, expected one that `python -m "
            f"pemt_jax.tasks` lists{nearest(name, known)}."
        )
    return list(seqio.get_subtasks(seqio.get_mixture_or_task(name)))


def prepare(task: seqio.Task, folder: str) -> None:
    """Download the data of a task, if they are missing, and cache its texts below `folder`.

    TFDS keeps every file that was downloaded whole, and a split that was cached is whole or absent,
    so after an interruption the same call goes on from there.

    Raises:
      PemtError: the data cannot be downloaded or read.
      UsageError: the task has no data that can be prepared.
    """
    if not isinstance(task.source, SplitSource):
        raise UsageError(
            f"Task {task.name!r} has nothing to prepare, expected a task over TFDS or JSON lines."
        )
    data = task.source.data
    if isinstance(data, TfdsRows) and data.sizes() is None:
        _download(data)
    cached.write(task, folder, sys.stderr.isatty())


def _download(data: TfdsRows) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    downloader.MAX_RETRIES = 5  # without network that is six seconds; its own ten are 200
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # which warns of every retry
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    name = data.name
    root = data.folder
    for _ in name.replace(":", "/").split("/"):
        root = root.parent
    try:
        tfds.builder(name, data_dir=str(root)).download_and_prepare()
    except Exception as error:  # whatever a download and 20 data sets' code may raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise PemtError(
            f"The data of task {data.task!r} ({name}) could not be downloaded to "
            f"{data.folder} ({reason}), expected network or a folder that was "
            "prepared elsewhere."
        ) from error
