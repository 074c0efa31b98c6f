"""The data source: which rows a split has, and which faults it finds before a data set is built."""

import json

import gin
import pytest
import seqio
import tiny_tfds

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.data import token_cache as data
from pemt_jax.tasks.sources.split_source import SplitSource
from pemt_jax.tasks.splits import Halves, HeldOut, Own
from pemt_jax.tasks.targets import Answers, Label, Option


@pytest.fixture(autouse=True)
def clean_configuration():
    yield
    gin.clear_config()


def configure(*lines):
    gin.parse_config(
        "from __gin__ import dynamic_registration\n"
        "from pemt_jax.tasks import splits\n" + "\n".join(lines)
    )


def rows(task, split):
    return seqio.TaskRegistry.get(task).source.rows(split).tolist()


def test_rows_follow_their_original_numbers(tiny_data):
    # CB's tiny file is in reverse order: idx 5 .. 0; randperm(6) is 0, 3, 2, 4, 1, 5.
    assert rows("pemt_cb", "validation") == [5, 2, 3]
    assert rows("pemt_cb", "test") == [1, 4, 0]
    # SciTail's rows have no number: randperm(3) is 0, 2, 1.
    assert rows("pemt_scitail", "validation") == [0]
    assert rows("pemt_scitail", "test") == [2, 1]


def test_an_index_file_gives_the_original_rows(tiny_data, tmp_path, monkeypatch):
    source = seqio.TaskRegistry.get("pemt_scitail").source
    before = source.fingerprint("validation")
    (tmp_path / "pemt_scitail.json").write_text(json.dumps({"validation": [1, 2, 0]}))
    monkeypatch.setenv("PEMT_JAX_INDEX_FILES", str(tmp_path))
    assert rows("pemt_scitail", "validation") == [1]
    assert rows("pemt_scitail", "test") == [0, 2]
    assert rows("pemt_scitail_8", "test") == [0, 2]
    assert source.fingerprint("validation") != before


def test_multirc_can_be_split_by_row_as_the_authors_do(tiny_data):
    whole = rows("pemt_multirc", "validation")
    configure("splits.question_groups.whole = False")
    by_row = rows("pemt_multirc", "validation")
    # The tiny questions come in reverse order, three answers each: position 0 is row 15.
    order = [row for question in range(15, -1, -3) for row in range(question, question + 3)]
    assert by_row == [order[place] for place in (6, 15, 14, 7, 8, 16, 10, 3, 4)]
    assert sorted(whole) != sorted(by_row)
    assert {row // 3 for row in by_row} & {row // 3 for row in rows("pemt_multirc", "test")}


def test_few_shot_rows_by_label_and_by_number(tiny_data):
    table = seqio.TaskRegistry.get("pemt_cb").source
    labels = table.data.columns("train", ["label"])["label"]
    assert sorted(labels[rows("pemt_cb_4", "train")].tolist()) == [0, 1, 2, 2, 2, 2]
    assert len(rows("pemt_squad_8", "train")) == len(rows("pemt_winogrande_8", "train")) == 8
    assert len(rows("pemt_stsb_4", "train")) == 3
    for name in ("pemt_sst2_16", "pemt_squad_16", "pemt_record_16"):
        assert not set(rows(name, "train")) & set(rows(name, "validation"))
        assert rows(name, "validation") == rows(name.removesuffix("_16"), "validation")


def test_gin_sets_shots_seed_and_the_reference_leak(tiny_data):
    assert len(rows("pemt_squad_few", "train")) == 8
    first = rows("pemt_squad_4", "train")
    configure("splits.FewShot.shots = 20", "splits.FewShot.from_whole_train = True")
    assert sorted(rows("pemt_squad_few", "train")) == list(range(20))
    assert len(rows("pemt_squad_4", "train")) == 4
    configure("splits.FewShot.seed = 7")
    assert rows("pemt_squad_4", "train") != first


def test_the_reference_leak_draws_no_unlabelled_row(tiny_data):
    # Of SNLI's four tiny rows the second has the label -1.
    assert sorted(rows("pemt_snli_4", "train")) == [0, 2, 3]
    configure("splits.FewShot.from_whole_train = True")
    assert sorted(rows("pemt_snli_4", "train")) == [0, 2, 3]


def test_rates_and_numbers_of_examples(tiny_data):
    mixture = seqio.MixtureRegistry.get("pemt_sources")
    assert {task.name: mixture.get_rate(task) for task in mixture.tasks} == {
        "pemt_mnli": 6.0,
        "pemt_qnli": 18.0,
        "pemt_qqp": 18.0,
        "pemt_sst2": 18.0,
        "pemt_squad": 18.0,
        "pemt_record": 18.0,
    }
    source = seqio.TaskRegistry.get("pemt_multirc").source
    assert source.known_sizes() == {"train": 2, "validation": None, "test": None}
    assert source.num_input_examples("test") == 9


def test_without_data_only_the_names_of_splits_are_known(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    task = seqio.TaskRegistry.get("pemt_yelp")
    assert tuple(task.splits) == ("train", "validation", "test")
    assert task.num_input_examples("train") is None
    assert set(task.source.known_sizes().values()) == {None}
    with pytest.raises(UsageError, match="no split 'vali'.*nearest: 'validation'"):
        task.source.rows("vali")


def source_of(tmp_path, monkeypatch, name, splits, target, policy):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    tiny_tfds.write(tmp_path, name, splits)
    return SplitSource("mine", name, ["label"], target, policy)


def test_an_unlabelled_split_is_one_sentence(tmp_path, monkeypatch):
    splits = {
        split: tiny_tfds.rows_of(tiny_tfds.SENTENCE, ("a", 0), ("b", label))
        for split, label in (("train", 1), ("test", -1))
    }
    source = source_of(
        tmp_path,
        monkeypatch,
        "glue/cola:2.0.0",
        splits,
        Label(("no", "yes")),
        Own(train="test", validation=None, test=None),
    )
    with pytest.raises(PemtError) as caught:
        source.get_dataset("train")
    assert str(caught.value) == (
        "Row 1 of split 'train' of task 'mine' has the label -1, which means that it is not "
        "labelled, expected 0 to 1 or one of no, yes."
    )


def test_an_unlabelled_split_of_questions_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    tiny_tfds.write(
        tmp_path,
        "super_glue/record:1.0.2",
        {
            "test": tiny_tfds.record(
                [("P.", "@placeholder", ["X"], []), ("Q.", "@placeholder", ["X"], [])]
            )
        },
    )
    source = SplitSource(
        "mine",
        "super_glue/record:1.0.2",
        ["query", "answers"],
        Answers(),
        Own(train="test", validation=None, test=None),
    )
    with pytest.raises(
        PemtError,
        match="Row 0 of split 'train' of task 'mine' has no answer and "
        "no other row has one, which means that the split is not "
        "labelled, expected answers in the field 'answers'",
    ):
        source.get_dataset("train")


def test_a_label_outside_the_list_is_one_sentence(tmp_path, monkeypatch):
    splits = {
        split: tiny_tfds.rows_of(tiny_tfds.PAIR, ("a", "b", 1.0), ("c", "d", 2.0), fill=2)
        for split in ("train", "validation")
    }
    source = source_of(
        tmp_path, monkeypatch, "glue/stsb:2.0.0", splits, Option(("x", "y")), Halves()
    )
    with pytest.raises(
        PemtError,
        match="Row 1 of split 'train' of task 'mine' has the label 2.0, "
        r"expected 0 to 1 \(x, y\)\.",
    ):
        source.get_dataset("train")
    # Rows of the other half are not looked at.
    assert (
        len(
            list(
                SplitSource(
                    "mine", "glue/stsb:2.0.0", ["label"], Label(("a", "b", "c")), Halves()
                ).get_dataset("test")
            )
        )
        == 2
    )


def test_files_are_divided_among_hosts_of_a_big_split_only(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    splits = {
        split: tiny_tfds.rows_of(tiny_tfds.SENTENCE, ("a", 0), ("b", 1), fill=18)
        for split in ("train", "validation")
    }
    tiny_tfds.write(tmp_path, "glue/sst2:2.0.0", splits, shards=2)
    source = SplitSource("mine", "glue/sst2:2.0.0", ["label"], Label(("no", "yes")), HeldOut())
    assert len(source.list_shards("train")) == 2 and source.list_shards("test") == ["test"]
    found = [
        [
            int(row["row"])
            for row in source.get_dataset(
                "train", shuffle=False, shard_info=seqio.ShardInfo(host, 2)
            ).as_numpy_iterator()
        ]
        for host in (0, 1)
    ]
    assert max(found[0]) < 10 <= min(found[1]) and len(found[0]) + len(found[1]) == 18


def test_other_shots_make_another_token_cache(tiny_data, tmp_path):
    lengths = {"inputs": 64, "targets": 8}
    first = data.open_split("pemt_squad_few", "train", lengths, tmp_path)
    configure("splits.FewShot.shots = 3")
    second = data.open_split("pemt_squad_few", "train", lengths, tmp_path)
    assert (len(first), len(second)) == (8, 3)
