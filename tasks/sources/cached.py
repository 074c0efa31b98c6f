"""SeqIO's folders of cached tasks: writing them without Apache Beam, and knowing when they are old.

A folder holds the rendered texts of a task, before tokenisation, so that it serves any vocabulary:
`TASK/SPLIT.tfrecord-00000-of-00001`, `info.SPLIT.json`, `stats.SPLIT.json` and, when all splits are
there, `COMPLETED`, as `seqio_cache_tasks` writes them. A fifth file, `source.SPLIT.json`, says what
the rows were made from; a folder without it, from somewhere else, is taken as it is.
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
from pemt_jax.tasks.sources.split_source import SplitSource


def default_folder() -> str:
    """Where cached tasks are written and, as one of SeqIO's global folders, looked for."""
    return str(cache_folder() / "seqio")


def usable(task: seqio.Task, split: str) -> bool:
    """Whether SeqIO finds a cached folder of the task whose rows are what they would be now."""
    if not (task.supports_caching and task.cache_dir):
        return False
    made_from = epath.Path(task.cache_dir) / f"source.{split}.json"
    if not made_from.exists() or not isinstance(task.source, SplitSource):
        return epath.Path(seqio.get_cached_info_path(task.cache_dir, split)).exists()
    found = json.loads(made_from.read_text())
    if task.source.data.sizes() is None:  # only the cache is here
        return found["settings"] == _digest(task.source.settings(split))
    return found == _made_from(task.source, split)


def identity(task: seqio.Task, split: str) -> list:
    """What changes when the cached rows of a split do."""
    files = sorted(epath.Path(task.cache_dir).glob(f"{split}.tfrecord-*"))
    return ["cached", split, [(file.name, file.stat().length, file.stat().mtime) for file in files]]


def write(task: seqio.Task, folder: str, shown: bool) -> None:
    """Cache all splits of a task below `folder`; splits that are there already are left alone.

    Args:
      task: with a SplitSource whose data are on disk.
      folder: of all cached tasks.
      shown: whether to show a progress bar.
    """
    place = Path(folder) / seqio.get_task_dir_from_name(task.name)
    for split in task.splits:
        made_from = place / f"source.{split}.json"
        now = _made_from(task.source, split)
        if made_from.is_file() and json.loads(made_from.read_text(encoding="utf-8")) == now:
            continue
        (place / "COMPLETED").unlink(missing_ok=True)
        made_from.unlink(missing_ok=True)
        _write_split(task, split, place, shown)
        _write_text(made_from, json.dumps(now))  # last, for it says that the split is whole
    _write_text(place / "COMPLETED", "")


def _write_split(task: seqio.Task, split: str, place: Path, shown: bool) -> None:
    dataset = task.preprocess_precache(task.source.get_dataset(split, shuffle=False))
    count = 0
    records = Path(f"{seqio.get_cached_tfrecord_prefix(str(place), split)}-00000-of-00001")
    with replacing(records) as partial:
        with (
            tf.io.TFRecordWriter(str(partial)) as writer,
            tqdm(desc=f"{task.name} {split}", unit=" rows", disable=not shown) as bar,
        ):
            for example in dataset.as_numpy_iterator():
                writer.write(seqio.dict_to_tfexample(example).SerializeToString())
                count += 1
                bar.update()
    if not count:
        raise PemtError(f"Split {split!r} of task {task.name!r} is empty, expected a row at least.")
    features = {
        name: {"shape": spec.shape.as_list(), "dtype": spec.dtype.name}
        for name, spec in dataset.element_spec.items()
    }
    _write_text(
        seqio.get_cached_info_path(str(place), split),
        json.dumps({"features": features, "num_shards": 1, "seqio_version": seqio.__version__}),
    )
    _write_text(seqio.get_cached_stats_path(str(place), split), json.dumps({"examples": count}))


def _made_from(source: SplitSource, split: str) -> dict[str, str]:
    return {"settings": _digest(source.settings(split)), "rows": _digest(source.fingerprint(split))}


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _write_text(path: str | Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
