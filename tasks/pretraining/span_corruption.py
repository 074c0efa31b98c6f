"""Span corruption of token chunks, vectorised over rows: T5's pretraining noise in NumPy.

Raffel et al. 2020, section 3.1.4, in the arithmetic of T5's `random_spans_noise_mask`: of n tokens
round(0.15 n) are noise, in round(noise / 3) spans; the lengths of the noise spans and of the
stretches between them are uniformly random segmentations; a chunk begins with a stretch. Inputs
hold a sentinel for each noise span, targets a sentinel for each stretch, both end with </s>.
Sentinels count down from the end of the vocabulary.

Departure from T5: the random numbers are a hash of (seed, epoch, row), not a generator's state, so
that a row's noise depends on neither its batch nor the rows read before it.
"""

from collections.abc import Mapping

import numpy as np
import seqio
import tensorflow as tf

NOISE_DENSITY = 0.15
MEAN_SPAN = 3.0


def counts(length: int) -> tuple[int, int]:
    """Number of noise tokens and of noise spans in a chunk of `length` >= 2 tokens."""
    noise = min(max(int(np.round(length * NOISE_DENSITY)), 1), length - 1)
    spans = min(max(int(np.round(noise / MEAN_SPAN)), 1), noise, length - noise)
    return noise, spans


def corrupted_lengths(length: int) -> tuple[int, int]:
    """Lengths of inputs and targets, </s> included, that a chunk of `length` tokens becomes."""
    if length < 2:
        return length + 1, 1
    noise, spans = counts(length)
    return length - noise + spans + 1, noise + spans + 1


def chunk_length(inputs_length: int) -> int:
    """The longest chunk whose inputs still fit (T5's `random_spans_helper`)."""
    length = inputs_length - 1
    while corrupted_lengths(length + 1)[0] <= inputs_length:
        length += 1
    return length


def random_keys(seed: int, epoch: np.ndarray, row: np.ndarray, width: int) -> np.ndarray:
    """Hash (seed, epoch, row, column) to uint64 [B, width], by rounds of splitmix64."""
    key = np.full(np.shape(row), seed, np.uint64)
    for part in (epoch, row):
        key = _mix(key + np.asarray(part, np.uint64) * _STEP + _STEP)
    column = np.arange(1, width + 1, dtype=np.uint64)
    return _mix(key[:, None] + column[None, :] * _STEP)


_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _segment_ids(keys: np.ndarray, items: int, segments: int) -> np.ndarray:
    """Cut `items` into `segments` non-empty runs at random: the run number of each item."""
    starts = np.zeros((len(keys), items), np.int64)
    order = np.argsort(keys[:, : items - 1], axis=1)[:, : segments - 1]
    np.put_along_axis(starts, order + 1, 1, axis=1)
    return np.cumsum(starts, axis=1)


def noise_spans(keys: np.ndarray, length: int) -> np.ndarray:
    """Which span each token belongs to, int [B, length]: 2j in stretch j, 2j + 1 in noise span j.

    Args:
      keys: uint64 random numbers [B, >= length].
    """
    noise, spans = counts(length)
    stretch_ids = _segment_ids(keys, length - noise, spans)
    noise_ids = _segment_ids(keys[:, length - noise :], noise, spans)
    # Sorting the run numbers interleaves the runs: stretch 0, noise 0, stretch 1, noise 1, ...
    return np.sort(np.concatenate([2 * stretch_ids, 2 * noise_ids + 1], axis=1), axis=1)


def _replace_runs(
    tokens: np.ndarray,
    spans: np.ndarray,
    replaced: np.ndarray,
    first_sentinel: int,
    eos_id: int,
    out_length: int,
) -> np.ndarray:
    """Put one sentinel for every run of `replaced` tokens and </s> at the end."""
    first = np.diff(spans, axis=1, prepend=-1) != 0
    values = np.where(replaced, first_sentinel - spans // 2, tokens)
    out = np.full((len(tokens), out_length), eos_id, np.int32)
    out[:, :-1] = values[~replaced | first].reshape(len(tokens), out_length - 1)
    return out


def corrupt(
    tokens: np.ndarray, keys: np.ndarray, vocab_size: int, eos_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Corrupt chunks of equal length.

    Args:
      tokens: int32 [B, L] with no padding.
      keys: uint64 random numbers [B, >= L].
      vocab_size: one more than the id of the first sentinel.
      eos_id: id of </s>.

    Returns:
      inputs and targets, int32, of the widths `corrupted_lengths(L)`.
    """
    length = tokens.shape[1]
    inputs_length, targets_length = corrupted_lengths(length)
    if length < 2:  # nothing can be hidden and still be told from the rest
        end = np.full((len(tokens), 1), eos_id, np.int32)
        return np.concatenate([tokens, end], axis=1), end
    spans = noise_spans(keys, length)
    is_noise = spans % 2 == 1
    return (
        _replace_runs(tokens, spans, is_noise, vocab_size - 1, eos_id, inputs_length),
        _replace_runs(tokens, spans, ~is_noise, vocab_size - 1, eos_id, targets_length),
    )


class SpanCorruption:
    """The online transform: a SeqIO preprocessor, and what pemt_jax.data applies to its cache.

    Both take chunks of tokens in the feature `targets` and give `inputs` and `targets`.
    """

    def lengths(self, raw_lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lengths of inputs and targets of chunks of these lengths."""
        longest = int(np.max(raw_lengths, initial=1))
        table = np.array([corrupted_lengths(n) for n in range(longest + 1)], np.int32)
        return table[raw_lengths, 0], table[raw_lengths, 1]

    def apply(
        self,
        chunks: list[np.ndarray],
        seed: int,
        epochs: np.ndarray,
        rows: np.ndarray,
        vocabulary: seqio.Vocabulary,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Corrupt chunks of any lengths; returns (inputs, targets) for each."""
        eos_id = vocabulary.eos_id
        assert eos_id is not None
        lengths = np.array([len(chunk) for chunk in chunks])
        pairs: list = [None] * len(chunks)
        for length in np.unique(lengths):
            where = np.flatnonzero(lengths == length)
            keys = random_keys(seed, epochs[where], rows[where], int(length))
            inputs, targets = corrupt(
                np.stack([chunks[i] for i in where]), keys, vocabulary.vocab_size, eos_id
            )
            for i, pair in zip(where, zip(inputs, targets, strict=True), strict=True):
                pairs[i] = pair
        return pairs

    def __call__(
        self, dataset: tf.data.Dataset, output_features: Mapping[str, seqio.utils.Feature]
    ) -> tf.data.Dataset:
        vocabulary = output_features["targets"].vocabulary
        vocab_size, eos_id = vocabulary.vocab_size, vocabulary.eos_id
        assert eos_id is not None

        def corrupt_one(tokens, seed):
            epoch, row = np.asarray(seed, np.int64).astype(np.uint32)
            keys = random_keys(0, np.array([epoch]), np.array([row]), len(tokens))
            inputs, targets = corrupt(tokens[None], keys, vocab_size, eos_id)
            return inputs[0], targets[0]

        @seqio.map_over_dataset(num_seeds=1)
        def to_pair(features, seed):
            inputs, targets = tf.numpy_function(
                corrupt_one, [features["targets"], seed], [tf.int32, tf.int32]
            )
            return {
                "inputs": tf.ensure_shape(inputs, [None]),
                "targets": tf.ensure_shape(targets, [None]),
            }

        return to_pair(dataset)  # pyright: ignore[reportCallIssue]  # SeqIO passes the seed
