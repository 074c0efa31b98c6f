"""The paper's split policies and few-shot draws, against literal numbers."""

import gin
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pemt_jax.common.errors import UsageError
from pemt_jax.tasks.splits import FewShot, Halves, HeldOut, Own

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def clean_configuration():
    yield
    gin.clear_config()


def sizes(policy, sizes_of_parts):
    return [len(policy.positions(split, sizes_of_parts[policy.parts[split]])) for split in SPLITS]


def test_split_sizes_are_the_papers():
    cb = {"train": 250, "validation": 56}
    cola = {"train": 8551, "validation": 1043}
    sst2 = {"train": 67349, "validation": 872}
    yelp = {"train": 560_000, "test": 38_000}
    assert sizes(Halves(), cb) == [250, 28, 28]
    assert sizes(Halves(), cola) == [8551, 521, 522]
    assert sizes(HeldOut(), sst2) == [66349, 1000, 872]
    assert sizes(HeldOut(test="test", at_most=100_000), yelp) == [100_000, 1000, 38_000]
    assert sizes(Own(validation="a", test="b"), {"train": 9, "a": 3, "b": 2}) == [9, 3, 2]


def test_halves_are_the_two_ends_of_the_permutation():
    validation = Halves().positions("validation", 56)
    test = Halves().positions("test", 56)
    assert validation[:10].tolist() == [22, 8, 36, 39, 34, 28, 26, 6, 30, 17]
    assert (test[0], test[-2:].tolist()) == (16, [0, 3])
    assert Halves().positions("train", 4).tolist() == [0, 1, 2, 3]


def test_held_out_rows_are_the_first_of_the_permutation():
    policy = HeldOut()
    assert policy.positions("validation", 67349)[:3].tolist() == [6677, 49712, 38268]
    assert policy.positions("train", 67349)[:3].tolist() == [6043, 63299, 11082]
    # Fewer than 10,000 rows hold out a tenth.
    assert policy.positions("validation", 20).tolist() == [2, 14]


@given(st.sampled_from([Halves(), HeldOut(), HeldOut(at_most=7)]), st.integers(0, 200))
def test_splits_of_one_part_are_disjoint_and_their_sizes_known(policy, size):
    for part in set(policy.parts.values()):
        found = [policy.positions(split, size) for split in SPLITS if policy.parts[split] == part]
        together = np.concatenate(found)
        assert len(np.unique(together)) == len(together)
    for split in SPLITS:
        assert len(policy.positions(split, size)) == policy.size(split, size)


@given(st.lists(st.integers(0, 9), max_size=60))
def test_groups_stay_whole_and_lose_no_row(groups):
    groups = np.array(groups, np.int64)
    halves = [Halves().positions(split, len(groups), groups) for split in ("validation", "test")]
    assert sorted(np.concatenate(halves).tolist()) == list(range(len(groups)))
    assert not set(groups[halves[0]]) & set(groups[halves[1]])
    assert len(set(groups[halves[0]])) == len(set(groups.tolist())) // 2


def test_the_permutation_goes_over_groups_in_the_order_in_which_they_come():
    groups = np.array([7, 7, 3, 3, 3, 9])  # randperm(3) is 0, 2, 1
    assert Halves().positions("validation", 6, groups).tolist() == [0, 1]
    assert Halves().positions("test", 6, groups).tolist() == [2, 3, 4, 5]


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=80), st.integers(1, 9), st.integers(0, 99)
)
def test_few_shot_takes_that_many_rows_of_each_label(labels, shots, seed):
    labels = np.array(labels)
    drawn = FewShot(shots=shots, seed=seed).draw(range(len(labels)), len(labels), labels)
    assert len(set(drawn.tolist())) == len(drawn)
    for label in set(labels.tolist()):
        assert (labels[drawn] == label).sum() == min(shots, (labels == label).sum())


def test_few_shot_follows_pythons_shuffle():
    labels = np.array([0, 1] * 6)
    assert FewShot(shots=2).draw(range(12), 12, labels).tolist() == [7, 5, 2, 8]
    assert FewShot(shots=2).draw(range(12), 12, None).tolist() == [7, 5]


def test_few_shot_rows_are_no_validation_rows_unless_asked_for():
    policy = HeldOut()
    train, validation = (policy.positions(split, 200) for split in ("train", "validation"))
    drawn = FewShot(shots=150).draw(train, 200, None)
    assert len(drawn) == 150 and not set(drawn) & set(validation)
    leaking = FewShot(shots=150, from_whole_train=True).draw(train, 200, None)
    assert len(leaking) == 150 and set(leaking) & set(validation)


def test_gin_sets_the_number_of_shots():
    gin.parse_config(
        "from __gin__ import dynamic_registration\n"
        "from pemt_jax.tasks import splits\n"
        "splits.FewShot.shots = 64\nsplits.FewShot.seed = 3\n"
    )
    assert FewShot() == FewShot(shots=64, seed=3, from_whole_train=False)
    assert FewShot(shots=4).seed == 3


def test_no_shots_are_refused():
    with pytest.raises(UsageError, match="FewShot.shots is 0, expected 1 or more"):
        FewShot(shots=0)
