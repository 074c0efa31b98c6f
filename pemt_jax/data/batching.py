"""Batches by step number: deterministic, resumable, bucketed by length.

A batch is a function of (seed, step) alone, so the data position of a run is its step number and
every host makes the same batches. Lengths are padded to buckets (buckets.py), so that a model
compiles few steps, and examples of one bucket are gathered within windows, so that little of a
batch is padding:

- one task: each epoch is a new permutation of all examples, cut into windows of `window` batches;
  the examples of a window are sorted by bucket, and then the batches of the epoch are shuffled. The
  epoch's last batch is filled up with empty rows.
- a mixture: each window draws its numbers of examples from a multinomial over the rates; each task
  goes through its own permuted epochs. All batches are full.

With window=1 nothing is sorted between batches, and the batches of a mixture are mixed evenly.
"""

import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol, cast

import grain
import numpy as np

from pemt_jax.common.errors import PemtError
from pemt_jax.data.buckets import is_pairs, pad_to
from pemt_jax.data.tokenized import Pair, TokenizedSplit
from pemt_jax.run_config import DEFAULT_BUCKETS

DEFAULT_TARGET_BUCKETS = (4, 8, *DEFAULT_BUCKETS)
BLOCK = 256  # windows whose multinomial draws are made together
EMPTY = -1  # the example number of a row that only fills up a batch

Batch = dict[str, np.ndarray]


def bucket_of(length: np.ndarray | int, buckets: Sequence[int], limit: int) -> np.ndarray:
    """The smallest bucket that fits each length, at most `limit`; no length is above it."""
    ladder = np.array(sorted({min(bucket, limit) for bucket in buckets} | {limit}))
    return ladder[np.searchsorted(ladder, length)]


def shapes_of(
    split: TokenizedSplit, buckets: Sequence, target_buckets: Sequence[int]
) -> np.ndarray:
    """The lengths to which each example of a split is padded, [examples, 2]; as in BatchSource."""
    inputs, targets, limits = split.input_lengths, split.target_lengths, split.lengths
    if is_pairs(buckets):
        cut = [(min(s, limits["inputs"]), min(t, limits["targets"])) for s, t in buckets]
        return pad_to([*cut, (limits["inputs"], limits["targets"])], inputs, targets)
    return np.stack(
        [
            bucket_of(inputs, buckets, limits["inputs"]),
            bucket_of(targets, target_buckets, limits["targets"]),
        ],
        axis=1,
    )


def take_local(rows: np.ndarray, local: np.ndarray | None) -> np.ndarray:
    """The rows of a batch, without empty ones, that this process has; `local` as in BatchSource."""
    return rows if local is None else rows[local[local < len(rows)]]


def make_batch(
    pairs: Sequence[Pair], batch_size: int, inputs_length: int, targets_length: int
) -> Batch:
    """Pad (inputs, targets) to int32 arrays [B, S] and [B, T] under the names of T5X."""
    inputs = np.zeros((batch_size, inputs_length), np.int32)
    targets = np.zeros((batch_size, targets_length), np.int32)
    weights = np.zeros((batch_size, targets_length), np.int32)
    for row, (input_tokens, target_tokens) in enumerate(pairs):
        inputs[row, : len(input_tokens)] = input_tokens
        targets[row, : len(target_tokens)] = target_tokens
        weights[row, : len(target_tokens)] = 1
    shifted = np.zeros_like(targets)
    shifted[:, 1:] = targets[:, :-1]
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": weights,
    }


class BatchSource:
    """Random access to batches by step number (grain's RandomAccessDataSource).

    Args:
      parts: rates and splits, as `token_cache.open_mixture` returns them.
      batch_size: rows of a batch, over all hosts.
      seed: of the order, the mixture's draws and an online transform's noise.
      window: batches among which examples are sorted by bucket.
      buckets, target_buckets: lengths to pad to; each is cut to the splits' limits. Or `buckets`
        are pairs (inputs, targets), both ascending.
      local_rows: the only rows of a batch that are read and returned, in order, as
        partitioning.local_rows gives them; None for all.
    """

    def __init__(
        self,
        parts: Sequence[tuple[float, TokenizedSplit]],
        batch_size: int,
        seed: int,
        window: int = 16,
        buckets: Sequence = DEFAULT_BUCKETS,
        target_buckets: Sequence[int] = DEFAULT_TARGET_BUCKETS,
        local_rows: np.ndarray | None = None,
    ):
        self.local_rows = local_rows
        if not parts or batch_size < 1 or window < 1:
            raise PemtError(
                f"{len(parts)} tasks, batch size {batch_size} and window {window} were "
                "given; at least 1 of each was expected"
            )
        rates, self.splits = zip(*parts, strict=True)
        self.batch_size, self.seed, self.window = batch_size, seed, window
        self._rates = np.array(rates) / np.sum(rates)
        self._sizes = np.array([len(split) for split in self.splits])
        self._buckets = [shapes_of(split, buckets, target_buckets) for split in self.splits]
        self._rows_before_block = [np.zeros(len(parts), np.int64)]
        self._lock = threading.Lock()
        # Plans are read in the order of steps, so the current and the next one are enough.
        self._epoch_plan = functools.lru_cache(2)(self._make_epoch_plan)
        self._window_plan = functools.lru_cache(2)(self._make_window_plan)
        self._permutation = functools.lru_cache(2 * len(parts))(self._make_permutation)

    def __len__(self) -> int:
        return 1 << 40  # epochs have no end; a run stops after its number of steps

    @property
    def steps_per_epoch(self) -> int:
        """Batches with every example once; for a mixture, as many as all its examples fill."""
        return -(-int(self._sizes.sum()) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        return self.batch(int(index), self.local_rows)

    def batch(self, step: int, local_rows: np.ndarray | None) -> Batch:
        """The batch of a step, or these rows of it, padded as the complete batch is."""
        plan = self.plan(step)
        plan = plan[np.argsort(plan[:, 0], kind="stable")]  # the rows of a task are consecutive
        lengths = [
            self._buckets[index][plan[plan[:, 0] == index, 1]] for index in np.unique(plan[:, 0])
        ]
        inputs_length, targets_length = np.concatenate(lengths).max(axis=0)
        plan = take_local(plan, local_rows)
        pairs = []
        for index in np.unique(plan[:, 0]):
            rows, epochs = plan[plan[:, 0] == index, 1:].T
            pairs += self.splits[index].pairs(rows, epochs, self.seed)
        size = self.batch_size if local_rows is None else len(local_rows)
        return make_batch(pairs, size, inputs_length, targets_length)

    def plan(self, step: int) -> np.ndarray:
        """(split, example, epoch) of each row of a batch that is not empty, int [<= B, 3]."""
        with self._lock:  # grain may read in several threads
            if len(self.splits) == 1:
                epoch, position = divmod(step, self.steps_per_epoch)
                plan = self._epoch_plan(epoch)[position]
            else:
                window, position = divmod(step, self.window)
                plan = self._window_plan(window)[position]
        return plan[plan[:, 1] != EMPTY]

    def _make_permutation(self, index: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 0, index, epoch]).permutation(self._sizes[index])

    def _make_epoch_plan(self, epoch: int) -> np.ndarray:
        """The epoch's batches of the only task, [batches, B, 3]."""
        batches, size = self.steps_per_epoch, self._sizes[0]
        plan = np.zeros((batches * self.batch_size, 3), np.int64)
        plan[:, 1], plan[:, 2] = EMPTY, epoch
        plan[:size, 1] = self._permutation(0, epoch)
        rows_per_window = self.window * self.batch_size
        parts = [
            self._by_bucket(plan[start : start + rows_per_window])
            for start in range(0, len(plan), rows_per_window)
        ]
        plan = np.concatenate(parts).reshape(batches, self.batch_size, 3)
        return np.random.default_rng([self.seed, 1, epoch]).permutation(plan)

    def _make_window_plan(self, window: int) -> np.ndarray:
        """The batches of one window of a mixture, [window, B, 3]."""
        counts, before = self._draws(window)
        parts = []
        for index, (count, first) in enumerate(zip(counts, before, strict=True)):
            epochs, positions = np.divmod(np.arange(first, first + count), self._sizes[index])
            rows = np.concatenate(
                [np.zeros(0, np.int64)]
                + [
                    self._permutation(index, int(epoch))[positions[epochs == epoch]]
                    for epoch in np.unique(epochs)
                ]
            )
            parts.append(np.stack([np.full(count, index), rows, epochs], axis=1))
        rng = np.random.default_rng([self.seed, 2, window])
        plan = self._by_bucket(rng.permutation(np.concatenate(parts)))
        return rng.permutation(plan.reshape(self.window, self.batch_size, 3))

    def _draws(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """How many examples of each task a window takes, and how many all earlier windows took."""
        block, position = divmod(window, BLOCK)
        while len(self._rows_before_block) <= block:
            last = len(self._rows_before_block) - 1
            self._rows_before_block.append(
                self._rows_before_block[last] + self._block(last).sum(axis=0)
            )
        draws = self._block(block)
        return draws[position], self._rows_before_block[block] + draws[:position].sum(axis=0)

    def _block(self, block: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 3, block])
        return rng.multinomial(self.window * self.batch_size, self._rates, size=BLOCK)

    def _by_bucket(self, plan: np.ndarray) -> np.ndarray:
        """Sort the rows of a window by bucket, empty ones last, in a stable order."""
        if self.window == 1:
            return plan
        keys = np.full((len(plan), 2), np.iinfo(np.int64).max)
        for index in range(len(self.splits)):
            where = (plan[:, 0] == index) & (plan[:, 1] != EMPTY)
            keys[where] = self._buckets[index][plan[where, 1]]
        return plan[np.lexsort((keys[:, 1], keys[:, 0]))]


class StepSource(Protocol):
    """Random access by step number, as grain reads it."""

    def __len__(self) -> int: ...
    def __getitem__(self, step: int, /) -> Batch: ...


def train_iterator(
    source: StepSource, start_step: int, num_steps: int, num_threads: int = 1
) -> Iterator[Batch]:
    """Batches of steps start_step .. start_step + num_steps - 1, read ahead in threads.

    The iterator is grain's, with `get_state` and `set_state`. Threads, never processes: grain's
    workers need parsed absl flags.
    """
    steps = grain.MapDataset.source(cast(Sequence, source)).slice(
        slice(start_step, start_step + num_steps)
    )
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(steps.to_iter_dataset(options))


def eval_batches(
    split: TokenizedSplit,
    batch_size: int,
    buckets: Sequence[int] = DEFAULT_BUCKETS,
    target_buckets: Sequence[int] = DEFAULT_TARGET_BUCKETS,
    local_rows: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, Batch]]:
    """(example numbers, batch) over all examples of a split in the order of their lengths.

    The last batch is filled up with empty rows, which have no example numbers. All batches have the
    targets' length of the complete split: it also limits the length of predictions, which must not
    depend on the labels of other examples. With `local_rows` (see BatchSource) only those are in a
    batch, but the example numbers are those of the complete batch: every process does the same
    batches.
    """
    size = batch_size if local_rows is None else len(local_rows)
    order = np.lexsort((split.target_lengths, split.input_lengths))
    targets_length = int(
        bucket_of(split.target_lengths.max(), target_buckets, split.lengths["targets"])
    )
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield (
            rows,
            make_batch(
                split.pairs(take_local(rows, local_rows)),
                size,
                int(bucket_of(split.input_lengths[rows].max(), buckets, split.lengths["inputs"])),
                targets_length,
            ),
        )
