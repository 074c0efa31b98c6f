"""SeqIO's folders of cached tasks: writing them without Apache Beam, and noticing outdated ones.

A folder holds the rendered texts of a task, before tokenisation, so that it serves any vocabulary:
`TASK/SPLIT.tfrecord-00000-of-00001`, `info.SPLIT.json`, `stats.SPLIT.json` and, once all splits are
complete, `COMPLETED`, as `seqio_cache_tasks` writes them. A fifth file, `source.SPLIT.json`,
records what the examples were made from; a folder without it, from elsewhere, is used as it is.
"""

import hashlib
import json
from pathlib import Path

import seqio
import tensorflow as tf
from etils import epath
from tqdm import tqdm

from pemt_jax.common.errors import PemtError
from pemt_jax.common.storage import cache_folder, replacing
from pemt_jax.tasks.descriptions import of_task
from pemt_jax.tasks.sources.split_source import SplitSource


def default_folder() -> str:
    """Where cached tasks are written and looked for."""
    return str(cache_folder() / "seqio")


def folder(task: seqio.Task) -> str | None:
    """The cached folder of a task, None without one.

    SeqIO looks in a global list of folders. Ours is added here, at first use, so that importing
    the tasks leaves the list alone.
    """
    if not task.supports_caching:
        return None
    seqio.add_global_cache_dirs([default_folder()])
    return task.cache_dir


def usable(task: seqio.Task, split: str) -> bool:
    """Whether a task has a cached folder whose examples are what they would be now."""
    where = folder(task)
    if not where:
        return False
    made_from = epath.Path(where) / f"source.{split}.json"
    if not made_from.exists() or not isinstance(task.source, SplitSource):
        return epath.Path(seqio.get_cached_info_path(where, split)).exists()
    found = json.loads(made_from.read_text())
    if task.source.data.sizes() is None:  # only the cache is here
        return found["settings"] == _digest(task.source.settings(split))
    return found == _made_from(task.source, split)


def identity(task: seqio.Task, split: str) -> list:
    """A value that changes when the cached examples of a split do; the task has a cached folder."""
    files = sorted(epath.Path(folder(task) or "").glob(f"{split}.tfrecord-*"))
    return ["cached", split, [(file.name, file.stat().length, file.stat().mtime) for file in files]]


def write(task: seqio.Task, root: str, shown: bool) -> None:
    """Cache all splits of a task below `root`; splits that are complete already are left alone.

    Args:
      task: with a SplitSource whose data are on disk.
      root: the folder of all cached tasks.
      shown: whether to show a progress bar.
    """
    task_folder = Path(root) / seqio.get_task_dir_from_name(task.name)
    source = task.source
    assert isinstance(source, SplitSource)
    for split in task.splits:
        made_from = task_folder / f"source.{split}.json"
        now = _made_from(source, split)
        if made_from.is_file() and json.loads(made_from.read_text(encoding="utf-8")) == now:
            continue
        (task_folder / "COMPLETED").unlink(missing_ok=True)
        made_from.unlink(missing_ok=True)
        with of_task(task, split):
            _write_split(task, split, task_folder, shown)
        _write_text(made_from, json.dumps(now))  # last: it says that the split is complete
    _write_text(task_folder / "COMPLETED", "")


def _write_split(task: seqio.Task, split: str, task_folder: Path, shown: bool) -> None:
    dataset = task.preprocess_precache(task.source.get_dataset(split, shuffle=False))
    count = 0
    records = Path(f"{seqio.get_cached_tfrecord_prefix(str(task_folder), split)}-00000-of-00001")
    with replacing(records) as partial:
        with (
            tf.io.TFRecordWriter(str(partial)) as writer,
            tqdm(desc=f"{task.name} {split}", unit=" examples", disable=not shown) as bar,
        ):
            for example in dataset.as_numpy_iterator():
                writer.write(seqio.dict_to_tfexample(example).SerializeToString())
                count += 1
                bar.update()
    if not count:
        raise PemtError(
            f"Split {split!r} of task {task.name!r} is empty, expected at least one row."
        )
    features = {
        name: {"shape": spec.shape.as_list(), "dtype": spec.dtype.name}
        for name, spec in dataset.element_spec.items()
    }
    _write_text(
        seqio.get_cached_info_path(str(task_folder), split),
        json.dumps({"features": features, "num_shards": 1, "seqio_version": seqio.__version__}),
    )
    _write_text(
        seqio.get_cached_stats_path(str(task_folder), split), json.dumps({"examples": count})
    )


def _made_from(source: SplitSource, split: str) -> dict[str, str]:
    return {"settings": _digest(source.settings(split)), "rows": _digest(source.fingerprint(split))}


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _write_text(path: str | Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
