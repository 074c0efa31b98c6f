"""Rows of prepared TFDS folders: their numbers, and folders that lack something."""

import numpy as np
import pytest
import tiny_tfds

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.tasks.sources.tfds_rows import TfdsRows


@pytest.fixture
def two_files(tmp_path, monkeypatch):
    """A data set whose training rows lie in three files."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    splits = {"train": tiny_tfds.rows_of(tiny_tfds.SENTENCE, ("a", 0), ("b", 1), fill=5)}
    tiny_tfds.write(tmp_path, "glue/cola:2.0.0", splits, shards=3)
    return TfdsRows("glue/cola:2.0.0", "mine")


def test_numbers_count_through_the_files(two_files):
    rows = list(two_files.read("train", ["idx"], named="train").as_numpy_iterator())
    assert [row["row"] for row in rows] == list(range(7))
    assert [row["idx"] for row in rows] == [6, 5, 4, 3, 2, 1, 0]
    assert two_files.columns("train", ["idx", "label"])["idx"].tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert two_files.sizes() == {"train": 7} and len(two_files.shards("train")) == 3


def test_some_rows_of_some_files_keep_their_numbers(two_files):
    keep = np.array([True, False, True, False, True, False, True])
    paths = two_files.shards("train")
    rows = two_files.read("train", ["idx"], "train", keep, paths[1:])
    assert [row["row"] for row in rows.as_numpy_iterator()] == [2, 4, 6]


def test_shuffled_files_give_the_same_rows_by_seed(two_files):
    def read(seed):
        return [
            int(row["row"])
            for row in two_files.read(
                "train", ["idx"], "train", shuffle=True, seed=seed
            ).as_numpy_iterator()
        ]

    assert sorted(read(0)) == list(range(7)) and read(0) == read(0)
    assert len({tuple(read(seed)) for seed in range(5)}) > 1


def test_missing_parts_are_one_sentence(two_files):
    with pytest.raises(
        PemtError,
        match="Row 0 of split 'train' of task 'mine' has no field "
        "'sentense', .*nearest: 'sentence'",
    ):
        two_files.read("train", ["sentense"], "train")
    with pytest.raises(PemtError, match="of task 'mine' has no split 'validation' in"):
        two_files.size("validation")
    absent = TfdsRows("glue/mnli:2.0.0", "mine")
    assert absent.sizes() is None
    with pytest.raises(
        PemtError,
        match="data of task 'mine' .glue/mnli:2.0.0. are not in .*"
        "`python -m pemt_jax.tasks prepare mine`",
    ):
        absent.shards("train")
    with pytest.raises(UsageError, match="'glue/mnli' of task 'mine' has no version"):
        TfdsRows("glue/mnli", "mine")
