"""Span corruption: nothing is lost, T5's arithmetic, noise that depends on (seed, epoch, row)."""

import numpy as np
import pytest
import seqio
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from pemt_jax.tasks.pretraining.span_corruption import (
    SpanCorruption,
    chunk_length,
    corrupt,
    corrupted_lengths,
    counts,
    noise_spans,
    random_keys,
)

VOCAB, EOS = 1000, 1


class ThousandIds:
    vocab_size, eos_id = VOCAB, EOS


def restore(inputs, targets):
    """Put the spans of the targets back where the inputs have their sentinels."""
    assert inputs[-1] == EOS and targets[-1] == EOS
    spans, sentinels = {}, []
    for token in targets[:-1]:
        if token >= VOCAB - 100:
            sentinels.append(token)
            spans[token] = []
        else:
            spans[sentinels[-1]].append(token)
    assert sentinels == list(range(VOCAB - 1, VOCAB - 1 - len(sentinels), -1))
    assert [t for t in inputs if t >= VOCAB - 100] == sentinels
    return [token for t in inputs[:-1] for token in spans.get(t, [t])]


def random_chunks(rows, length, seed=0):
    return np.random.default_rng(seed).integers(2, VOCAB - 100, (rows, length)).astype(np.int32)


@given(length=st.integers(2, 600), seed=st.integers(0, 2**31), epoch=st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_inputs_and_targets_together_hold_the_chunk(length, seed, epoch):
    chunks = random_chunks(3, length)
    rows = np.arange(3)
    keys = random_keys(seed, np.full(3, epoch), rows, length)
    inputs, targets = corrupt(chunks, keys, VOCAB, EOS)
    assert (inputs.shape[1], targets.shape[1]) == corrupted_lengths(length)
    assert inputs.dtype == targets.dtype == np.int32
    for row in rows:
        assert restore(inputs[row].tolist(), targets[row].tolist()) == chunks[row].tolist()


def test_a_chunk_of_one_token_is_kept():
    inputs, targets = corrupt(np.array([[7]], np.int32), np.zeros((1, 1), np.uint64), VOCAB, EOS)
    assert (inputs.tolist(), targets.tolist()) == ([[7, EOS]], [[EOS]])


def test_lengths_are_those_of_t5():
    # T5 1.0 pretrains on chunks of 568 tokens: 512 inputs and 114 targets.
    assert chunk_length(512) == 568
    assert corrupted_lengths(568) == (512, 114)
    assert corrupted_lengths(chunk_length(64)) == (64, 14)


@given(inputs_length=st.integers(4, 700))
def test_chunk_length_is_the_longest_that_fits(inputs_length):
    length = chunk_length(inputs_length)
    assert corrupted_lengths(length)[0] <= inputs_length < corrupted_lengths(length + 1)[0]


@pytest.mark.parametrize("length", [20, 70, 568])
def test_density_and_mean_span(length):
    noise, spans = counts(length)
    assert abs(noise - 0.15 * length) <= 0.5 + 1e-9
    assert abs(noise / spans - 3) <= 0.5
    found = noise_spans(random_keys(0, np.zeros(50, int), np.arange(50), length), length)
    np.testing.assert_array_equal((found % 2 == 1).sum(axis=1), noise)
    np.testing.assert_array_equal(found.max(axis=1), 2 * spans - 1)
    assert (np.diff(found, axis=1) >= 0).all() and (found[:, 0] == 0).all()


def test_every_segmentation_is_equally_likely():
    rows = np.arange(6000)
    assert counts(40) == (6, 2)
    found = noise_spans(random_keys(3, np.zeros_like(rows), rows, 40), 40)
    first_span = (found == 1).sum(axis=1)  # 6 noise tokens in 2 spans: 1 + 5 .. 5 + 1
    shares = np.bincount(first_span, minlength=6)[1:6] / len(rows)
    np.testing.assert_allclose(shares, 0.2, atol=0.02)  # 4 standard deviations
    first_stretch = (found == 0).sum(axis=1)  # 34 tokens in 2 stretches: 1 .. 33
    np.testing.assert_allclose(np.bincount(first_stretch)[1:34] / len(rows), 1 / 33, atol=0.01)


def test_noise_depends_on_seed_epoch_and_row_alone():
    transform = SpanCorruption()
    chunks = list(np.repeat(random_chunks(1, 70), 8, axis=0))
    rows = np.arange(100, 108)

    def run(seed, epoch, order=range(8)):
        order = np.array(order)
        pairs = transform.apply(
            [chunks[i] for i in order], seed, np.full(len(order), epoch), rows[order], ThousandIds
        )
        return [inputs.tolist() for inputs, _ in pairs]

    base = run(0, 0)
    assert len({tuple(row) for row in base}) == 8
    assert run(0, 0) == base
    assert run(0, 0, [5, 2]) == [base[5], base[2]]
    for other in (run(0, 1), run(1, 0)):
        assert all(a != b for a, b in zip(base, other, strict=True))


def test_chunks_of_different_lengths_keep_their_order():
    chunks = [random_chunks(1, length, length)[0] for length in (70, 9, 70, 2, 9, 1)]
    pairs = SpanCorruption().apply(chunks, 0, np.zeros(6, int), np.arange(6), ThousandIds)
    for chunk, (inputs, targets) in zip(chunks, pairs, strict=True):
        assert restore(inputs.tolist(), targets.tolist()) == chunk.tolist()
    lengths = SpanCorruption().lengths(np.array([len(chunk) for chunk in chunks]))
    assert lengths[0].tolist() == [len(inputs) for inputs, _ in pairs]
    assert lengths[1].tolist() == [len(targets) for _, targets in pairs]


def test_as_a_seqio_preprocessor_it_loses_nothing_and_follows_the_seed():
    chunks = random_chunks(5, 40)
    features = {"targets": seqio.Feature(seqio.PassThroughVocabulary(VOCAB, EOS))}

    def run(seed):
        dataset = tf.data.Dataset.from_tensor_slices({"targets": chunks})
        with seqio.utils.map_seed_manager(seed):
            dataset = SpanCorruption()(dataset, output_features=features)
        return list(dataset.as_numpy_iterator())

    found = run(1)
    for chunk, row in zip(chunks, found, strict=True):
        assert restore(row["inputs"].tolist(), row["targets"].tolist()) == chunk.tolist()
    assert [r["inputs"].tolist() for r in run(1)] == [r["inputs"].tolist() for r in found]
    assert [r["inputs"].tolist() for r in run(2)] != [r["inputs"].tolist() for r in found]
