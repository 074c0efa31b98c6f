"""A SeqIO data source that can tell whether its data changed since they were tokenised."""

from collections.abc import Callable, Sequence

import seqio
import tensorflow as tf


class TrackedSource(seqio.FunctionDataSource):
    """A source over a function of the split that yields the same order every time.

    Args:
      dataset: split -> tf.data.Dataset. Shuffling is left to its readers.
      fingerprint: split -> a value whose repr changes when the rows of the split do; part of the
        key of pemt_jax.data's token cache.
      splits: names of the splits.
    """

    def __init__(
        self,
        dataset: Callable[[str], tf.data.Dataset],
        fingerprint: Callable[[str], object],
        splits: Sequence[str],
    ):
        def dataset_fn(split: str, shuffle_files: bool = False, seed: int | None = None):
            del shuffle_files, seed
            return dataset(split)

        self.fingerprint = fingerprint
        super().__init__(dataset_fn, splits=splits)
