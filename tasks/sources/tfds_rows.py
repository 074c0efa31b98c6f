"""The rows of a prepared TensorFlow Datasets folder, by number.

Rows are numbered through the files of their split in the order of the files' names, which is the
order of TFDS's own slices. Nothing is downloaded here and no data set's code is imported: the
folder describes its own contents. It is in the folder of `seqio.set_tfds_data_dir_override` (the
flag --tfds_data_dir of T5X), else in $TFDS_DATA_DIR, else in ~/tensorflow_datasets.
"""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import seqio
import tensorflow as tf

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.tasks.sources.raw.folder import expected

BATCH = 1024  # records parsed in one call, which is many times faster than one by one


class TfdsRows:
    """Reads the TFDS data set `name` ("glue/mnli:2.0.0", version included) for one task."""

    def __init__(self, name: str, task: str):
        if ":" not in name:
            raise UsageError(
                f"The TFDS name {name!r} of task {task!r} has no version, expected "
                f"one such as {name}:1.0.0."
            )
        self.name, self.task = name, task

    def __str__(self) -> str:
        return f"tfds {self.name}"

    @property
    def folder(self):
        """Where the prepared data are expected: a local or remote path."""
        root = (
            seqio.utils.LazyTfdsLoader(self.name).data_dir
            or os.environ.get("TFDS_DATA_DIR")
            or "~/tensorflow_datasets"
        )
        return storage.path(os.path.expanduser(root)) / self.name.replace(":", "/")

    def sizes(self) -> dict[str, int] | None:
        """Rows of each split; None when the data are not on disk."""
        info = self.folder / "dataset_info.json"
        if not info.exists():
            return None
        return {
            split["name"]: sum(map(int, split.get("shardLengths", ())))
            for split in json.loads(info.read_text()).get("splits", ())
        }

    def size(self, split: str) -> int:
        """Rows of a split; PemtError when the data or the split are missing."""
        return sum(self._split(split).shard_lengths)

    def shards(self, split: str) -> list[str]:
        """Paths of the files of a split, in the order of its rows."""
        return [str(path) for path in self._split(split).filepaths]

    def identity(self, split: str) -> list:
        """A value that changes when the rows of a split do."""
        paths = map(storage.path, self.shards(split))
        files = [(path.name, path.stat()) for path in paths]
        info = (self.folder / "dataset_info.json").read_bytes()
        return [
            self.name,
            split,
            hashlib.sha256(info).hexdigest(),
            [(name, stat.st_size, int(stat.st_mtime)) for name, stat in files],
        ]

    def columns(self, split: str, fields: Sequence[str]) -> dict[str, np.ndarray]:
        """Some fields of all rows of a split, each one number or text per row."""
        return _columns(self, split, tuple(fields), repr(self.identity(split)))

    def check_fields(self, split: str, fields: Sequence[str]) -> None:
        """Raise PemtError when the rows of a split lack a field."""
        have = self._example_spec()
        for field in fields:
            if field not in have:
                raise PemtError(
                    f"Row 0 of split {split!r} of task {self.task!r} has no field "
                    f"{field!r}, expected one of {self.name}{nearest(field, have)}."
                )

    def read(
        self,
        split: str,
        fields: Sequence[str],
        named: str,
        keep: np.ndarray | None = None,
        shards: Sequence[str] | None = None,
        shuffle: bool = False,
        seed: int | None = None,
    ) -> tf.data.Dataset:
        """The rows of a split with their number as `row` and `named` as `split`.

        Args:
          split: of the data set.
          fields: which to decode; "answers/text" is a field of a field.
          named: the value of `split` in the rows.
          keep: bool [rows], which to yield; None for all.
          shards: paths of the files to read; None for all.
          shuffle: read the files in a random order, drawn by `seed`, and several at a time.
          seed: for `shuffle`.
        """
        spec = self._spec(split, fields)
        paths = self.shards(split)
        here = _on_this_machine(paths)
        starts = np.cumsum([0, *self._split(split).shard_lengths], dtype=np.int64)[:-1]
        wanted = [i for i, path in enumerate(paths) if shards is None or path in shards]
        kept = None if keep is None else tf.constant(keep)

        def parsed(start: tf.Tensor, number: tf.Tensor, records: tf.Tensor) -> dict:
            numbers = start + number * BATCH + tf.range(tf.size(records, tf.int64))
            if kept is not None:  # before parsing, which costs most
                mask = tf.gather(kept, numbers)
                numbers, records = numbers[mask], records[mask]
            return {
                **tf.io.parse_example(records, spec),
                "row": numbers,
                "split": tf.fill(tf.shape(numbers), named),
            }

        def rows_of(*files_and_start: Any) -> tf.data.Dataset:
            files, start = files_and_start
            batches = tf.data.TFRecordDataset(files).batch(BATCH).enumerate()
            return batches.map(functools.partial(parsed, start)).unbatch()

        if len(wanted) == 1 or not (shuffle or shards):  # consecutive files
            return rows_of([here[i] for i in wanted], starts[wanted[0]])
        files = tf.data.Dataset.from_tensor_slices(([here[i] for i in wanted], starts[wanted]))
        if not shuffle:
            return files.flat_map(rows_of)
        files = files.shuffle(len(wanted), seed=seed)
        return files.interleave(rows_of, cycle_length=16, block_length=16)

    def _spec(self, split: str, fields: Sequence[str]) -> dict:
        """How the fields are stored in a record."""
        self.check_fields(split, fields)
        known = self._example_spec()
        # Lists of different lengths must not be padded to the longest of a batch.
        return {
            field: tf.io.RaggedFeature(known[field].dtype)
            if isinstance(known[field], tf.io.FixedLenSequenceFeature)
            else known[field]
            for field in fields
        }

    def _example_spec(self) -> dict:
        return cast(Any, self._builder().info.features).tf_example_spec

    def _split(self, split: str):
        splits = self._builder().info.splits
        if split not in splits:
            raise PemtError(
                f"The TFDS data set {self.name} of task {self.task!r} has no split "
                f"{split!r} in {self.folder}{nearest(split, splits)}."
            )
        return splits[split]

    def _builder(self):
        info = self.folder / "dataset_info.json"
        if not info.exists():
            raise PemtError(
                f"The data of task {self.task!r} ({self.name}) are not in "
                f"{self.folder}, expected what `python -m pemt_jax.tasks prepare "
                f"{self.task}` puts there{expected(self.name)}."
            )
        return _open(str(self.folder), int(info.stat().st_mtime))


def _on_this_machine(paths: Sequence[str]) -> list[str]:
    """The files, or copies of those in a bucket: TensorFlow reads what is on this machine."""
    return [str(storage.local_copy(storage.path(path))) for path in paths]


@functools.lru_cache(64)
def _open(folder: str, changed: int):
    del changed  # part of the cache's key: a folder that was prepared again is opened again
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    file_format = cast(Any, builder.info.file_format).value
    if file_format != "tfrecord":
        raise PemtError(f"The data in {folder} are {file_format} files, expected tfrecord.")
    return builder


@functools.lru_cache(64)
def _columns(
    rows: TfdsRows, split: str, fields: tuple[str, ...], identity: str
) -> dict[str, np.ndarray]:
    del identity  # part of the cache's key
    spec = rows._spec(split, fields)
    batches = (
        tf.data.TFRecordDataset(_on_this_machine(rows.shards(split)))
        .batch(BATCH)
        .map(lambda records: tf.io.parse_example(records, spec))
    )
    parts = list(batches.as_numpy_iterator())
    return {
        field: np.concatenate([part[field] for part in parts])
        if parts
        else np.zeros(0, spec[field].dtype.as_numpy_dtype)
        for field in fields
    }
