"""Batches: every row once an epoch, the same again from any step, mixtures at their rates."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pemt_jax.common.errors import PemtError
from pemt_jax.data.batching import BatchSource, bucket_of, eval_batches, make_batch, train_iterator
from pemt_jax.data.tokenized import Ragged, TokenizedSplit

LIMITS = {"inputs": 40, "targets": 10}


def make_split(rows, seed=0, name="task", online=None, base=1000):
    """Rows of random lengths whose tokens name the row: row r is base + r all along."""
    rng = np.random.default_rng(seed)

    def ragged(longest):
        return Ragged.of(
            [np.full(rng.integers(1, longest + 1), base + row) for row in range(rows)], np.int32
        )

    columns = {"inputs": ragged(LIMITS["inputs"]), "targets": ragged(LIMITS["targets"])}
    return TokenizedSplit(name, "train", LIMITS, columns, Ragged.of([], np.uint8), {}, online, "")


def rows_of(batch, base=1000):
    return [token - base for token in batch["encoder_input_tokens"][:, 0] if token]


@given(
    rows=st.integers(1, 70),
    batch_size=st.integers(1, 12),
    window=st.integers(1, 5),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=40)
def test_an_epoch_holds_every_row_once_and_every_token(rows, batch_size, window, seed):
    split = make_split(rows)
    source = BatchSource([(1.0, split)], batch_size, seed, window)
    steps = source.steps_per_epoch
    assert steps == -(-rows // batch_size)
    for epoch in range(2):
        batches = [source[step] for step in range(epoch * steps, (epoch + 1) * steps)]
        assert sorted(sum(map(rows_of, batches), [])) == list(range(rows))
        for batch in batches:
            assert batch["encoder_input_tokens"].shape[0] == batch_size
            for i, row in enumerate(rows_of(batch)):
                tokens = batch["encoder_input_tokens"][i]
                assert tokens[tokens != 0].tolist() == split.inputs(row).tolist()
                tokens = batch["decoder_target_tokens"][i]
                assert tokens[tokens != 0].tolist() == split.targets(row).tolist()


def test_make_batch_gives_literally_the_features_of_t5x():
    pairs = [(np.array([5, 6, 1]), np.array([7, 1])), (np.array([8, 1]), np.array([1]))]
    batch = make_batch(pairs, batch_size=3, inputs_length=4, targets_length=3)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "encoder_input_tokens": [[5, 6, 1, 0], [8, 1, 0, 0], [0, 0, 0, 0]],
        "decoder_input_tokens": [[0, 7, 1], [0, 1, 0], [0, 0, 0]],
        "decoder_target_tokens": [[7, 1, 0], [1, 0, 0], [0, 0, 0]],
        "decoder_loss_weights": [[1, 1, 0], [1, 0, 0], [0, 0, 0]],
    }
    assert {value.dtype for value in batch.values()} == {np.dtype(np.int32)}


def test_epochs_and_seeds_differ_in_order():
    split = make_split(64)
    first, second = BatchSource([(1.0, split)], 8, seed=0), BatchSource([(1.0, split)], 8, seed=1)
    order = [rows_of(first[step]) for step in range(16)]
    assert order[:8] != order[8:]
    assert order[:8] != [rows_of(second[step]) for step in range(8)]


def same(a, b):
    return set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_resumed_run_gets_the_batches_of_the_run_that_never_stopped(tasks, threads):
    parts = [(float(i + 1), make_split(20 + 30 * i, seed=i)) for i in range(tasks)]
    whole = list(train_iterator(BatchSource(parts, 4, seed=3, window=3), 0, 40, threads))
    assert len(whole) == 40
    rest = list(train_iterator(BatchSource(parts, 4, seed=3, window=3), 23, 17, threads))
    assert all(same(a, b) for a, b in zip(whole[23:], rest, strict=True))


def test_the_iterator_goes_on_from_its_state():
    source = BatchSource([(1.0, make_split(50))], 4, seed=0)
    iterator = train_iterator(source, 5, 20)
    list(itertools.islice(iterator, 7))
    state = iterator.get_state()
    expected = list(iterator)
    other = train_iterator(source, 5, 20)
    other.set_state(state)
    assert all(same(a, b) for a, b in zip(expected, other, strict=True))
    assert len(expected) == 13


def test_a_window_gathers_lengths_and_wastes_less():
    split = make_split(512)

    def padding(window):
        source = BatchSource([(1.0, split)], 8, seed=0, window=window)
        return sum((source[step]["encoder_input_tokens"] == 0).sum() for step in range(64))

    assert padding(16) < 0.6 * padding(1)


@given(length=st.integers(1, 100), limit=st.integers(1, 100))
def test_a_bucket_holds_its_length_and_stays_within_the_limit(length, limit):
    if length > limit:
        return
    bucket = int(bucket_of(length, (16, 32, 64), limit))
    assert length <= bucket <= limit
    assert bucket in (16, 32, 64, limit)
    assert all(not length <= other < bucket for other in (16, 32, 64))


def mixture_rows(parts, steps, **options):
    """(task, row) in the order of the batches; tasks use tokens from 1000, 2000, ..."""
    source = BatchSource(parts, **options)
    tokens = np.concatenate([source[step]["encoder_input_tokens"][:, 0] for step in range(steps)])
    return tokens // 1000 - 1, tokens % 1000


@pytest.mark.parametrize("window", [1, 8])
def test_a_mixture_keeps_its_rates_and_its_batches_full(window):
    parts = [
        (0.7, make_split(100)),
        (0.2, make_split(40, base=2000)),
        (0.1, make_split(10, base=3000)),
    ]
    tasks, _ = mixture_rows(parts, 400, batch_size=10, seed=0, window=window)
    assert len(tasks) == 4000
    # Standard deviations of the three shares are below 0.0075.
    np.testing.assert_allclose(np.bincount(tasks) / 4000, [0.7, 0.2, 0.1], atol=0.03)


def test_each_task_of_a_mixture_walks_through_whole_epochs():
    parts = [(3.0, make_split(50)), (1.0, make_split(7, base=2000))]
    # Window 40 of 10 rows: one window, whose rows are sorted; so count how often each row came.
    tasks, rows = mixture_rows(parts, 400, batch_size=10, seed=5, window=40)
    for task, size in ((0, 50), (1, 7)):
        times = np.bincount(rows[tasks == task], minlength=size)
        assert times.max() - times.min() <= 1


def test_rates_need_not_sum_to_one():
    parts = [(3.0, make_split(50)), (1.0, make_split(7, base=2000))]
    scaled = [(rate / 4, split) for rate, split in parts]
    a, b = BatchSource(parts, 4, seed=0), BatchSource(scaled, 4, seed=0)
    assert all(same(a[step], b[step]) for step in range(20))


def test_steps_far_ahead_are_reached_directly():
    parts = [(1.0, make_split(50)), (1.0, make_split(7, base=2000))]
    source = BatchSource(parts, 4, seed=0, window=2)
    late = source[100_000]
    assert same(late, BatchSource(parts, 4, seed=0, window=2)[100_000])
    assert late["encoder_input_tokens"].shape[0] == 4


class Recorder:
    """An online transform that puts (seed, epoch, row) into the inputs."""

    def lengths(self, raw_lengths):
        return np.full(len(raw_lengths), 3), raw_lengths

    def apply(self, chunks, seed, epochs, rows, vocabulary):
        return [
            (np.array([seed + 1, epoch + 1, row + 1]), chunk)
            for chunk, epoch, row in zip(chunks, epochs, rows, strict=True)
        ]


@pytest.mark.parametrize("tasks", [1, 2])
def test_an_online_transform_gets_seed_epoch_and_row(tasks, monkeypatch):
    monkeypatch.setattr(TokenizedSplit, "vocabulary", None)
    split = make_split(6, online=Recorder())
    source = BatchSource([(1.0, split)] * tasks, batch_size=4, seed=10, window=2)
    seen = np.concatenate([source[step]["encoder_input_tokens"][:, :3] for step in range(40)])
    seen = seen[seen[:, 0] != 0] - 1
    assert (seen[:, 0] == 10).all()
    triples = [tuple(row) for row in seen]
    # A row has one noise an epoch: each triple once a task.
    assert max(map(triples.count, triples)) == tasks
    assert set(seen[:, 2]) == set(range(6)) and seen[:, 1].max() > 5


@given(rows=st.integers(1, 40), batch_size=st.integers(1, 9))
@settings(deadline=None, max_examples=25)
def test_evaluation_sees_every_row_once_in_order_of_length(rows, batch_size):
    split = make_split(rows)
    found = []
    for indices, batch in eval_batches(split, batch_size, buckets=(8, 16, 32)):
        assert batch["encoder_input_tokens"].shape[0] == batch_size
        assert rows_of(batch) == indices.tolist()
        assert (batch["decoder_loss_weights"].sum(axis=1) > 0).sum() == len(indices)
        found += indices.tolist()
    assert sorted(found) == list(range(rows))
    lengths = split.input_lengths[found]
    assert (np.diff(lengths) >= 0).all()


def test_a_source_without_tasks_is_one_sentence():
    with pytest.raises(PemtError, match="at least 1 of each"):
        BatchSource([], 4, seed=0)
