"""A SeqIO data source with the paper's splits: rows chosen by number from TFDS or from files.

Nothing is read at construction: tasks register at import, when neither the data's folder nor the
gin configuration is known. The rows of a split are chosen at its first use, from the number of
rows, the policy (splits.py), the original order (the rows' own numbers or an index file) and, for
few-shot tasks, the labels. Labels are checked then too, so that a fault is one sentence with the
task, the split and the row instead of an error inside a TensorFlow graph.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import seqio
import tensorflow as tf

from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.tasks.sources import index_files
from pemt_jax.tasks.sources.json_rows import JsonRows
from pemt_jax.tasks.sources.raw.raw_rows import RawRows
from pemt_jax.tasks.sources.tfds_rows import TfdsRows
from pemt_jax.tasks.splits import FewShot, Halves, Policy, question_groups
from pemt_jax.tasks.targets import Answers, Target, as_numbers


class SplitSource(seqio.DataSource):
    """Rows of one task.

    Args:
      task: the name of the task, for messages.
      data: a TFDS name with version, whose authors' files are read instead where they are in the
        folder of raw data (raw/folder.py), or paths of JSON-lines files by split.
      fields: the fields of a row that are read.
      target: which field is the label and which values it may have.
      policy: what becomes training, validation and test rows.
      order: fields by which rows are sorted into the original order; empty if they are in it.
      group: fields that number the questions which a policy may keep in one split.
      drop_unlabelled: leave out rows with a negative label (SNLI's disputed ones).
      base: the name of the data set, and of its index file, for a few-shot variant.
      few_shot: keyword arguments of FewShot that gin does not set; None for all training rows.
      choices: gin's choices on which the examples depend besides those of the splits.

    Rows have two more fields: `row`, the number in the data set's split, and `split`, ours.
    """

    def __init__(
        self,
        task: str,
        data: str | Mapping[str, str],
        fields: Sequence[str],
        target: Target,
        policy: Policy,
        order: Sequence[str] = (),
        group: Sequence[str] = (),
        drop_unlabelled: bool = False,
        base: str | None = None,
        few_shot: Mapping[str, Any] | None = None,
        choices: Sequence[Callable[[], object]] = (),
    ):
        self._given = TfdsRows(data, task) if isinstance(data, str) else JsonRows(data, task)
        self._raw = RawRows(data, task) if isinstance(data, str) else None
        self.task, self.base, self.policy, self.target = task, base or task, policy, target
        self._fields, self._order, self._group = tuple(fields), tuple(order), tuple(group)
        self._drop_unlabelled, self._few_shot = drop_unlabelled, few_shot
        self._choices = tuple(choices)
        super().__init__(splits=tuple(policy.parts))

    @property
    def data(self) -> TfdsRows | JsonRows | RawRows:
        """The rows of the data set, from where they are now."""
        return self._raw if self._raw and self._raw.here() else self._given

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        """The files of a split that takes most of their rows; else one shard, the split.

        SeqIO then divides the rows themselves among hosts, so that none gets an empty shard.
        """
        takes_most = split == "train" and self._few_shot is None
        return self.data.shards(self._part(split)) if takes_most else [split]

    def num_input_examples(self, split: str) -> int | None:
        """Rows of a split; None while the data are not on disk."""
        return None if self.data.sizes() is None else len(self.rows(split))

    def known_sizes(self) -> dict[str, int | None]:
        """Sizes of our splits where the sizes of the data set determine them; reads no row."""
        sizes = self.data.sizes() or {}
        few = self._few_shot is not None
        grouped = bool(self._group) and isinstance(self.policy, Halves) and question_groups()
        return {
            split: None
            if part not in sizes
            or self._drop_unlabelled
            or (grouped and split != "train")
            or (few and split == "train")
            else self.policy.size(split, sizes[part])
            for split, part in self.policy.parts.items()
        }

    def fingerprint(self, split: str) -> list:
        """A value that changes when the rows of a split do; see pemt_jax.data.cache_key."""
        return [self.data.identity(self._part(split)), self.settings(split)]

    def settings(self, split: str) -> list:
        """Everything that the examples of a split depend on except the data."""
        few_shot = self.few_shot if split == "train" else None
        in_order = isinstance(self.data, RawRows)
        return [
            split,
            self.policy,
            self._order,
            self._group,
            self._group and question_groups(),
            self._drop_unlabelled,
            None if in_order else index_files.identity(self.base),
            few_shot,
            *(choice() for choice in self._choices),
        ]

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split in the policy's order, int64."""
        return _chosen(self, split, repr(self.fingerprint(split)))

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        *,
        sequence_length=None,
        use_cached: bool = False,
        num_epochs: int | None = 1,
    ) -> tf.data.Dataset:
        """The rows of a split, in the order of the files unless they are shuffled."""
        del sequence_length, use_cached, num_epochs
        part = self._part(split)
        rows = self.rows(split)
        if not len(rows):
            raise PemtError(
                f"Split {split!r} of task {self.task!r} is empty, expected at least one row."
            )
        keep = np.zeros(self.data.size(part), bool)
        keep[rows] = True
        self._check_labels(split, keep)
        shards = None
        if shard_info and shard_info.num_shards > 1:
            shards = self.list_shards(split)[shard_info.index :: shard_info.num_shards]
        dataset = self.data.read(
            part, self._fields, split, None if keep.all() else keep, shards, shuffle, seed
        )
        if shards is None:
            dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(rows)))
        return dataset

    def _part(self, split: str) -> str:
        if split not in self.policy.parts:
            raise UsageError(
                f"Task {self.task!r} has no split {split!r}, expected one of "
                f"{', '.join(self.policy.parts)}{nearest(split, self.policy.parts)}."
            )
        return self.policy.parts[split]

    @property
    def few_shot(self) -> FewShot | None:
        """How many training rows are drawn, as gin configures now; None for all."""
        return None if self._few_shot is None else FewShot(**self._few_shot)

    def _choose(self, split: str) -> np.ndarray:
        part = self._part(split)
        order = self._original_order(part)
        if self._drop_unlabelled:
            order = order[~(as_numbers(self._column(part, self.target.field)[order]) < 0)]
        groups = None
        if self._group and question_groups() and isinstance(self.policy, Halves):
            columns = [self._column(part, field)[order] for field in self._group]
            groups = np.unique(np.stack(columns), axis=1, return_inverse=True)[1].ravel()
        positions = self.policy.positions(split, len(order), groups)
        settings = self.few_shot if split == "train" else None
        if settings:
            labels = self._column(part, self.target.field)[order] if self.target.counted else None
            positions = settings.draw(positions, len(order), labels)
        return order[positions]

    def _original_order(self, part: str) -> np.ndarray:
        size = self.data.size(part)
        if isinstance(self.data, RawRows):
            return np.arange(size)
        order = index_files.original_order(self.base, part, size)
        if order is not None:
            return order
        if not self._order:
            return np.arange(size)
        return np.lexsort([self._column(part, field) for field in reversed(self._order)])

    def _column(self, part: str, field: str) -> np.ndarray:
        """A field of all rows; the fields that selections and checks need are read together."""
        checked = [] if isinstance(self.target, Answers) else [self.target.field]
        fields = sorted({*self._order, *self._group, *checked})
        return cast(np.ndarray, self.data.columns(part, fields)[field])

    def _check_labels(self, split: str, keep: np.ndarray) -> None:
        if isinstance(self.target, Answers):
            self._check_answers(split, keep)
            return
        values = self._column(self._part(split), self.target.field)
        faulty = np.flatnonzero(keep & (isinstance(values, list) or self.target.faulty(values)))
        if not len(faulty):
            return
        row, value = faulty[0], values[faulty[0]]
        value = value.decode() if isinstance(value, bytes) else np.asarray(value).tolist()
        unlabelled = isinstance(value, int | float) and value < 0
        meaning = ", which means that it is not labelled" if unlabelled else ""
        raise PemtError(
            f"Row {row} of split {split!r} of task {self.task!r} has the label "
            f"{value!r}{meaning}, expected {self.target.expected}."
        )

    def _check_answers(self, split: str, keep: np.ndarray) -> None:
        """A question may have no answer; a split without any answer is not labelled."""
        field = self.target.field
        found = self.data.read(self._part(split), [field], split, keep)
        if not any(np.size(row[field]) for row in found.as_numpy_iterator()):
            raise PemtError(
                f"Row {np.flatnonzero(keep)[0]} of split {split!r} of task "
                f"{self.task!r} has no answer and no other row has one, which means "
                "that the split is not labelled, expected answers in the field "
                f"{field!r}."
            )


@functools.lru_cache(256)
def _chosen(source: SplitSource, split: str, fingerprint: str) -> np.ndarray:
    del fingerprint  # part of the cache's key
    return source._choose(split)
