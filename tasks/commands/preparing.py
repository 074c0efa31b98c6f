"""The command `prepare`: downloads data sets and caches tasks, which then work without network."""

import logging
import sys
from collections.abc import Sequence

import seqio

from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.common.user_input.code import import_module
from pemt_jax.tasks.sources import cached
from pemt_jax.tasks.sources.split_source import SplitSource
from pemt_jax.tasks.sources.tfds_rows import TfdsRows


def import_tasks(module: str) -> None:
    """Import a module that registers tasks; it may be in the working directory."""
    sys.path.insert(0, "")
    import_module(module)


def tasks_named(names: Sequence[str], command: str) -> list[seqio.Task]:
    """The tasks of these names, and for each name of a mixture its tasks.

    Raises:
      UsageError: no name is given, or one is neither a task's nor a mixture's.
    """
    if not names:
        raise UsageError(f"No task was named, expected `python -m pemt_jax.tasks {command} NAME`.")
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    for name in names:
        if name not in known:
            raise UsageError(
                f"There is no task or mixture {name!r}, expected one that `python -m "
                f"pemt_jax.tasks` lists{nearest(name, known)}."
            )
    return [task for name in names for task in seqio.get_subtasks(seqio.get_mixture_or_task(name))]


def prepare_all(names: Sequence[str], folder: str) -> None:
    """Prepare the named tasks and mixtures one after the other, printing which."""
    tasks = tasks_named(names, "prepare")
    for number, task in enumerate(tasks, 1):
        source = f": {task.source.data}" if isinstance(task.source, SplitSource) else ""
        print(f"{number}/{len(tasks)} {task.name}{source}", flush=True)
        prepare(task, folder)


def prepare(task: seqio.Task, folder: str) -> None:
    """Download the data of a task if they are missing, and cache its texts below `folder`.

    TFDS keeps every file that was downloaded completely, and a cached split is complete or absent,
    so after an interruption the same call continues where it stopped.

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

    downloader.MAX_RETRIES = 5  # six seconds without network; TFDS's own ten take 200
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns about every retry
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    name = data.name
    root = data.folder
    for _ in name.replace(":", "/").split("/"):
        root = root.parent
    try:
        tfds.builder(name, data_dir=str(root)).download_and_prepare()
    except Exception as error:  # whatever a download and the code of 20 data sets may raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise PemtError(
            f"The data of task {data.task!r} ({name}) could not be downloaded to "
            f"{data.folder} ({reason}), expected network or a folder that was "
            "prepared elsewhere."
        ) from error
