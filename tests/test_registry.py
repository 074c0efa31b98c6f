"""A data set of one's own is one row: JSON lines, or a TFDS name."""

import json

import pytest
import seqio

from pemt_jax import data
from pemt_jax.errors import PemtError, UsageError
from pemt_jax.tasks import Dataset, description, metrics, register
from pemt_jax.tasks.splits import Halves, Own
from pemt_jax.tasks.targets import Answers, Label

LENGTHS = {"inputs": 32, "targets": 4}


@pytest.fixture
def add():
    """Register rows; their tasks are gone after the test."""
    before = set(seqio.TaskRegistry.names())
    yield register
    for name in set(seqio.TaskRegistry.names()) - before:
        seqio.TaskRegistry.remove(name)


def reviews(folder, **changes):
    row = dict(name="reviews", data={"train": str(folder / "train.jsonl"),
                                     "validation": str(folder / "dev.jsonl")},
               inputs="review: {text}", target=Label(("bad", "good")), metric=metrics.accuracy,
               splits=Halves(), description="Say whether a review is good or bad.")
    return Dataset(**{**row, **changes})


@pytest.fixture
def files(tmp_path):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text("".join(
            json.dumps({"text": f"{name} {n}", "label": ("bad", "good")[n % 2]}) + "\n"
            for n in range(6)))
    return tmp_path


def texts(name, split):
    dataset = seqio.TaskRegistry.get(name).get_dataset(LENGTHS, split, shuffle=False)
    return [(row["inputs_pretokenized"].decode(), row["targets_pretokenized"].decode())
            for row in dataset.as_numpy_iterator()]


def test_json_lines_become_a_task_with_few_shot_variants(add, files, tmp_path):
    add(reviews(files))
    assert texts("reviews", "train")[:2] == [("review: train 0", "bad"),
                                             ("review: train 1", "good")]
    assert [len(texts("reviews", split)) for split in ("train", "validation", "test")] == [6, 3, 3]
    assert len(texts("reviews_4", "train")) == 6 and "reviews_32" in seqio.TaskRegistry.names()
    assert description("reviews_few") == "Say whether a review is good or bad."
    assert len(data.open_split("reviews", "train", LENGTHS, tmp_path / "tokens")) == 6


def test_a_tfds_name_becomes_a_task(add, tiny_data):
    add(Dataset(name="my_cola", data="glue/cola:2.0.0", inputs="is this English: {sentence}",
                target=Label(("no", "yes")), metric=metrics.matthews, splits=Own(test=None),
                description="Say whether a sentence is English."))
    assert texts("my_cola", "validation")[0] == ("is this English: Is it?", "yes")
    assert tuple(seqio.TaskRegistry.get("my_cola").splits) == ("train", "validation")


def test_lists_of_answers_work_from_json(add, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"q": "Who?", "all": ["Ann", "A."]}\n')
    add(reviews(tmp_path, data={"train": str(tmp_path / "train.jsonl")}, inputs="question: {q}",
                target=Answers("all"), metric=metrics.squad, splits=Own("train", None, None)))
    assert texts("reviews", "train") == [("question: Who?", "Ann")]


def test_faults_name_task_split_and_row(add, files):
    with (files / "train.jsonl").open("a") as file:
        file.write('{"text": "x", "label": "ugly"}\n')
    with (files / "dev.jsonl").open("a") as file:
        file.write('{"label": "good"}\n')
    add(reviews(files))
    with pytest.raises(PemtError) as caught:
        texts("reviews", "train")
    assert str(caught.value) == ("Row 6 of split 'train' of task 'reviews' has the label 'ugly', "
                                 "expected 0 to 1 or one of bad, good.")
    with pytest.raises(PemtError, match="Row 6 of split 'validation' of task 'reviews' has no "
                                        "field 'text'"):
        texts("reviews", "test")


def test_a_name_that_is_taken_is_refused(add, files):
    with pytest.raises(UsageError, match="There is a task 'pemt_cb' already"):
        add(reviews(files, name="pemt_cb"))
