"""Buckets chosen from the data, against all choices there are."""

import itertools
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pemt_jax.common.errors import UsageError
from pemt_jax.data.batching import BatchSource, eval_batches
from pemt_jax.data.buckets import (
    buckets_for,
    choose_buckets,
    choose_shapes,
    eval_buckets,
    pad_to,
    train_buckets,
)


def padded(lengths, buckets) -> int:
    return sum(min(bucket for bucket in buckets if bucket >= length) for length in lengths)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 61), min_size=1, max_size=40), count=st.integers(1, 5))
def test_no_other_choice_pads_less(lengths, count):
    chosen = choose_buckets(np.array(lengths), count, limit=61)
    assert len(chosen) <= count and chosen == tuple(sorted(set(chosen)))
    ladder = sorted({min(-(-length // 8) * 8, 61) for length in lengths})
    assert set(chosen) <= set(ladder)
    others = [
        (*shorter, ladder[-1])
        for size in range(count)
        for shorter in itertools.combinations(ladder[:-1], size)
    ]
    assert padded(lengths, chosen) == min(padded(lengths, other) for other in others)


def test_lengths_are_kept_and_a_number_is_chosen_and_printed(capsys):
    split = types.SimpleNamespace(input_lengths=np.array([3, 8, 8, 60, 60]), lengths={"inputs": 64})
    assert buckets_for([32, 64], [split]) == (32, 64)
    assert not capsys.readouterr().err
    assert buckets_for(2, [split]) == (8, 64)
    assert "padded to (8, 64): 9% of the tokens are padding" in capsys.readouterr().err
    with pytest.raises(UsageError, match="Found 0 buckets, expected a number of at least 1"):
        buckets_for(0, [split])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 14)), min_size=1, max_size=20),
    count=st.integers(1, 4),
)
def test_no_other_ascending_pairs_pad_less(lengths, count):
    inputs, targets = np.array(lengths).T
    chosen = choose_shapes(inputs, targets, count, (30, 14))
    assert len(chosen) <= count and list(chosen) == sorted(set(chosen))
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(chosen))
    ladders = [
        sorted({min(-(-n // multiple) * multiple, limit) for n in values})
        for values, multiple, limit in ((inputs, 8, 30), (targets, 4, 14))
    ]
    *shorter, longest = itertools.product(*ladders)
    least = min(
        pad_to((*others, longest), inputs, targets).sum()
        for size in range(count)
        for others in itertools.combinations(shorter, size)
        if all(a[1] <= b[1] for a, b in itertools.pairwise(others))
    )
    assert pad_to(chosen, inputs, targets).sum() == least


class Split:
    """A `TokenizedSplit` of random lengths; short inputs have long targets now and then."""

    def __init__(self, size: int, seed: int = 0, **lengths: int):
        random = np.random.default_rng(seed)
        self.lengths, self.task_name = lengths, f"task_{seed}"
        self.input_lengths = random.integers(1, lengths["inputs"] + 1, size)
        self.target_lengths = random.integers(1, lengths["targets"] + 1, size)

    def __len__(self):
        return len(self.input_lengths)

    def pairs(self, rows, epochs=None, seed=0):
        return [
            (np.full(self.input_lengths[row], 5), np.full(self.target_lengths[row], 6))
            for row in rows
        ]


def test_by_default_a_run_has_four_shapes_of_training_and_two_of_evaluation(capsys):
    splits = [Split(150, seed, inputs=90, targets=20) for seed in (1, 2)]
    buckets = train_buckets(None, splits)
    assert "are padded to" in capsys.readouterr().err and len(buckets) == 4
    for parts in ([(1.0, splits[0])], [(0.7, splits[0]), (0.3, splits[1])]):
        source = BatchSource(parts, 8, seed=0, window=4, buckets=buckets)
        batches = [source[step] for step in range(60)]
        shapes = {
            (batch["encoder_input_tokens"].shape[1], batch["decoder_target_tokens"].shape[1])
            for batch in batches
        }
        assert shapes <= set(buckets) and len(shapes) > 1
    lengths = eval_buckets(None, splits)
    assert lengths == eval_buckets(buckets, splits) and not capsys.readouterr().err
    evaluated = {
        batch["encoder_input_tokens"].shape[1] for _, batch in eval_batches(splits[0], 8, lengths)
    }
    assert len(lengths) == 2 and evaluated == set(lengths)


def test_an_example_longer_than_all_pairs_is_padded_to_the_limit():
    split = Split(50, inputs=40, targets=9)
    source = BatchSource([(1.0, split)], 4, seed=0, buckets=[[16, 4], [24, 100]])
    shapes = {source[step]["encoder_input_tokens"].shape[1] for step in range(12)}
    assert shapes <= {16, 24, 40} and 40 in shapes
