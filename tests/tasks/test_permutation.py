"""The permutation of the paper's splits against numbers of torch.randperm."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pemt_jax.tasks.sources.permutation import torch_randperm


def test_the_permutation_is_that_of_torch():
    # torch.manual_seed(42); torch.randperm(n)
    assert torch_randperm(56)[:10].tolist() == [22, 8, 36, 39, 34, 28, 26, 6, 30, 17]
    assert torch_randperm(67349)[[0, 1, -1]].tolist() == [6677, 49712, 3253]
    assert torch_randperm(20)[:4].tolist() == [2, 14, 18, 15]


@given(st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_it_is_a_permutation(n, seed):
    assert sorted(torch_randperm(n, seed).tolist()) == list(range(n))


def test_callers_cannot_change_what_they_share():
    assert not torch_randperm(5).flags.writeable
    assert np.array_equal(torch_randperm(5), torch_randperm(5))
