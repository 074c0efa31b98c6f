"""A SeqIO data source with the paper's splits: rows chosen by number from TFDS or JSON lines.

Nothing is read at construction: tasks register at import, when neither the data's folder nor the
gin configuration is known. What a split holds is worked out at its first use from the number of
rows, the policy (splits.py), the original order (the rows' own numbers or an index file) and, for
few-shot tasks, the labels. Labels are checked then too, so that a fault is one sentence with the
task, the split and the row instead of an error inside a TensorFlow graph.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import seqio
import tensorflow as tf

from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.tasks.sources import index_files
from pemt_jax.tasks.sources.json_rows import JsonRows
from pemt_jax.tasks.sources.tfds_rows import TfdsRows
from pemt_jax.tasks.splits import FewShot, Halves, Policy, question_groups
from pemt_jax.tasks.targets import Answers, Target, as_numbers


class SplitSource(seqio.DataSource):
    """Rows of one task.

    Args:
      task: the name of the task that messages give, and of its index file without few-shot suffix.
      data: a TFDS name with version, or paths of JSON-lines files by split.
      fields: of a row, that are read.
      target: says which field is the label and which values it may have.
      policy: what becomes training, validation and test rows.
      order: fields by which rows are sorted into the original order; empty for the order they have.
      group: fields that number the questions which a policy may keep whole.
      drop_unlabelled: leave out rows with a negative label (SNLI's disputed ones).
      base: the task whose index file is used, for a few-shot variant.
      few_shot: keyword arguments of FewShot that gin does not set; None for all training rows.

    Rows come with two fields more: `row`, the number in the data set's split, and `split`, ours.
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
    ):
        self.data = TfdsRows(data, task) if isinstance(data, str) else JsonRows(data, task)
        self.task, self.base, self.policy, self.target = task, base or task, policy, target
        self._fields, self._order, self._group = tuple(fields), tuple(order), tuple(group)
        self._drop_unlabelled, self._few_shot = drop_unlabelled, few_shot
        super().__init__(splits=tuple(policy.parts))

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        """The files of a split that takes all its rows from them; else one shard, the split.

        SeqIO then divides the rows themselves among hosts, so that none gets an empty shard.
        """
        takes_most = split == "train" and self._few_shot is None
        return self.data.shards(self._part(split)) if takes_most else [split]

    def num_input_examples(self, split: str) -> int | None:
        """Rows of a split; None while the data are not on disk."""
        return None if self.data.sizes() is None else len(self.rows(split))

    def known_sizes(self) -> dict[str, int | None]:
        """Rows of our splits as far as the sizes of the data set tell, without reading a row."""
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
        """What changes when the rows of a split do; see pemt_jax.cache_key."""
        return [self.data.identity(self._part(split)), self.settings(split)]

    def settings(self, split: str) -> list:
        """All that the rows of a split depend on but the data."""
        few_shot = self.few_shot if split == "train" else None
        return [
            split,
            self.policy,
            self._order,
            self._group,
            self._group and question_groups(),
            self._drop_unlabelled,
            index_files.identity(self.base),
            few_shot,
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
        """How few training rows are drawn, as gin says now; None for all."""
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
        order = index_files.original_order(self.base, part, size)
        if order is not None:
            return order
        if not self._order:
            return np.arange(size)
        return np.lexsort([self._column(part, field) for field in reversed(self._order)])

    def _column(self, part: str, field: str) -> np.ndarray:
        """A field of all rows; all that selections and checks look at is read in one go."""
        checked = [] if isinstance(self.target, Answers) else [self.target.field]
        fields = sorted({*self._order, *self._group, *checked})
        # A list of texts only where a label is expected, which _check_labels refuses.
        return cast(np.ndarray, self.data.columns(part, fields)[field])

    def _check_labels(self, split: str, keep: np.ndarray) -> None:
        target = self.target
        if isinstance(target, Answers):
            self._check_answers(split, keep)
            return
        values = self._column(self._part(split), target.field)
        faulty = np.flatnonzero(keep & (isinstance(values, list) or target.faulty(values)))
        if not len(faulty):
            return
        row, value = faulty[0], values[faulty[0]]
        value = value.decode() if isinstance(value, bytes) else np.asarray(value).tolist()
        unlabelled = isinstance(value, int | float) and value < 0
        meaning = ", which means that it is not labelled" if unlabelled else ""
        raise PemtError(
            f"Row {row} of split {split!r} of task {self.task!r} has the label "
            f"{value!r}{meaning}, expected {target.expected}."
        )

    def _check_answers(self, split: str, keep: np.ndarray) -> None:
        """A question may have no answer; a split without any is not labelled."""
        field = self.target.field
        found = self.data.read(self._part(split), [field], split, keep)
        if not any(np.size(row[field]) for row in found.as_numpy_iterator()):
            raise PemtError(
                f"Row {np.flatnonzero(keep)[0]} of split {split!r} of task "
                f"{self.task!r} has no answer and nor has another row, which means "
                "that the split is not labelled, expected answers in the field "
                f"{field!r}."
            )


@functools.lru_cache(256)
def _chosen(source: SplitSource, split: str, fingerprint: str) -> np.ndarray:
    del fingerprint  # part of the cache's key
    return source._choose(split)
