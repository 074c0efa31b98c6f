"""Buckets chosen from the data, against all choices there are."""

import itertools
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pemt_jax.common.errors import UsageError
from pemt_jax.data.buckets import buckets_for, choose_buckets


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
    assert not capsys.readouterr().out
    assert buckets_for(2, [split]) == (8, 64)
    assert "padded to (8, 64): 9% of the tokens are padding" in capsys.readouterr().out
    with pytest.raises(UsageError, match="Found 0 buckets, expected a number of at least 1"):
        buckets_for(0, [split])
