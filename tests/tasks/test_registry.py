"""A data set of one's own is one row: JSON lines, or a TFDS name."""

import dataclasses
import json

import pytest
import seqio

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.data import token_cache as data
from pemt_jax.tasks import Dataset, description, metrics, register
from pemt_jax.tasks.splits import Halves, Own
from pemt_jax.tasks.targets import Answers, Label, Number, Option

LENGTHS = {"inputs": 32, "targets": 4}


@pytest.fixture
def add():
    """Register rows; their tasks are gone after the test."""
    before = set(seqio.TaskRegistry.names())
    yield register
    for name in set(seqio.TaskRegistry.names()) - before:
        seqio.TaskRegistry.remove(name)


def reviews(folder, **changes):
    row = dict(
        name="reviews",
        data={"train": str(folder / "train.jsonl"), "validation": str(folder / "dev.jsonl")},
        inputs="review: {text}",
        target=Label(("bad", "good")),
        metric=metrics.accuracy,
        splits=Halves(),
        description="Say whether a review is good or bad.",
    )
    return Dataset(**{**row, **changes})


@pytest.fixture
def files(tmp_path):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(
                json.dumps({"text": f"{name} {n}", "label": ("bad", "good")[n % 2]}) + "\n"
                for n in range(6)
            )
        )
    return tmp_path


def texts(name, split):
    dataset = seqio.TaskRegistry.get(name).get_dataset(LENGTHS, split, shuffle=False)
    return [
        (row["inputs_pretokenized"].decode(), row["targets_pretokenized"].decode())
        for row in dataset.as_numpy_iterator()
    ]


def test_json_lines_become_a_task_with_few_shot_variants(add, files, tmp_path):
    add(reviews(files))
    assert texts("reviews", "train")[:2] == [
        ("review: train 0", "bad"),
        ("review: train 1", "good"),
    ]
    assert [len(texts("reviews", split)) for split in ("train", "validation", "test")] == [6, 3, 3]
    assert len(texts("reviews_4", "train")) == 6 and "reviews_32" in seqio.TaskRegistry.names()
    assert description("reviews_few") == "Say whether a review is good or bad."
    assert len(data.open_split("reviews", "train", LENGTHS, tmp_path / "tokens")) == 6


def test_a_file_that_the_policy_does_not_read_is_refused(add, files):
    dataset = reviews(files)
    with_test = dict(dataset.data) | {"test": str(files / "dev.jsonl")}
    with pytest.raises(UsageError, match="'reviews' has data of a split 'test', expected train, "):
        register(dataclasses.replace(dataset, data=with_test, splits=Halves()))
    assert "reviews" not in seqio.TaskRegistry.names()


def test_a_tfds_name_becomes_a_task(add, tiny_data):
    add(
        Dataset(
            name="my_cola",
            data="glue/cola:2.0.0",
            inputs="is this English: {sentence}",
            target=Label(("no", "yes")),
            metric=metrics.matthews,
            splits=Own(test=None),
            description="Say whether a sentence is English.",
        )
    )
    assert texts("my_cola", "validation")[0] == ("is this English: Is it?", "yes")
    assert tuple(seqio.TaskRegistry.get("my_cola").splits) == ("train", "validation")


def test_lists_of_answers_work_from_json(add, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"q": "Who?", "all": ["Ann", "A."]}\n')
    add(
        reviews(
            tmp_path,
            data={"train": str(tmp_path / "train.jsonl")},
            inputs="question: {q}",
            target=Answers("all"),
            metric=metrics.squad,
            splits=Own("train", None, None),
        )
    )
    assert texts("reviews", "train") == [("question: Who?", "Ann")]


def test_faults_name_task_split_and_row(add, files):
    with (files / "train.jsonl").open("a") as file:
        file.write('{"text": "x", "label": "ugly"}\n')
    with (files / "dev.jsonl").open("a") as file:
        file.write('{"label": "good"}\n')
    add(reviews(files))
    with pytest.raises(PemtError) as caught:
        texts("reviews", "train")
    assert str(caught.value) == (
        "Row 6 of split 'train' of task 'reviews' has the label 'ugly', "
        "expected 0 to 1 or one of bad, good."
    )
    with pytest.raises(
        PemtError, match="Row 6 of split 'validation' of task 'reviews' has no field 'text'"
    ):
        texts("reviews", "test")


def own(folder, *rows, **changes):
    """A row of a data set whose only split is a file of these rows."""
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return reviews(
        folder,
        data={"train": str(folder / "train.jsonl")},
        splits=Own("train", None, None),
        **changes,
    )


def test_numbers_and_truths_are_written_out(add, tmp_path):
    add(
        own(
            tmp_path,
            {"text": 3, "n": 2.5, "b": True, "label": True},
            {"text": -1, "n": 1e-3, "b": False, "label": False},
            inputs="{text} {n} {b}",
            target=Label(("bad", "good")),
        )
    )
    assert texts("reviews", "train") == [("3 2.5 true", "good"), ("-1 0.001 false", "bad")]


def test_one_answer_need_not_be_a_list(add, tmp_path):
    add(
        own(
            tmp_path,
            {"text": "Who?", "answer": "Ann"},
            inputs="{text}",
            target=Answers("answer"),
            metric=metrics.squad,
        )
    )
    assert texts("reviews", "train") == [("Who?", "Ann")]


def test_unlabelled_rows_of_texts_and_numbers_are_left_out(add, tmp_path):
    add(own(tmp_path, {"text": "a", "label": -1}, {"text": "b", "label": 0}, drop_unlabelled=True))
    assert texts("reviews", "train") == texts("reviews_4", "train") == [("review: b", "bad")]
    add(own(tmp_path, {"text": "a", "label": "good"}, drop_unlabelled=True, name="of_texts"))
    assert texts("of_texts", "train") == [("review: a", "good")]


@pytest.mark.parametrize(
    "rows, changes, message",
    [
        (
            [{"text": "a", "label": 0}, {"text": "b", "label": 0.5}],
            {},
            "Row 1 of split 'train' of task 'reviews' has the label 0.5, expected 0 to 1 or one of "
            "bad, good.",
        ),
        (
            [{"text": "a", "label": ["bad"]}],
            {},
            "Row 0 of split 'train' of task 'reviews' has the label ['bad'], expected 0 to 1 "
            "or one of "
            "bad, good.",
        ),
        (
            [{"text": "a", "label": "3"}],
            {"target": Number()},
            "Row 0 of split 'train' of task 'reviews' has the label '3', expected 0 to 5.",
        ),
        (
            [{"text": "a", "b": "b", "label": "1"}],
            {"target": Option(("text", "b"))},
            "Row 0 of split 'train' of task 'reviews' has the label '1', expected 0 to 1 "
            "(text, b).",
        ),
        (
            [{"text": "a", "label": 0}, {"text": "a", "label": None}],
            {},
            "Row 1 of split 'train' of task 'reviews' has no field 'label' (FILE).",
        ),
        (
            [{"text": "a", "label": {"a": 1}}],
            {},
            "Row 0 of split 'train' of task 'reviews' has {'a': 1} in the field 'label', "
            "expected a text, "
            "a number, true or false, or a list of texts.",
        ),
        (
            [{"text": "a", "all": ["b", 3]}],
            {"target": Answers("all")},
            "Row 0 of split 'train' of task 'reviews' has ['b', 3] in the field 'all', "
            "expected a text, "
            "a number, true or false, or a list of texts.",
        ),
        (
            [{"text": "a", "all": []}, {"text": "b", "all": []}],
            {"target": Answers("all")},
            "Row 0 of split 'train' of task 'reviews' has no answer and no other row has one, "
            "which means "
            "that the split is not labelled, expected answers in the field 'all'.",
        ),
        (
            [{"text": ["a"], "label": 0}],
            {},
            "The field 'text' of the template 'review: {text}' is a list, expected a text or "
            "a number "
            "(`clean` can join it).",
        ),
        ([], {}, "Split 'train' of task 'reviews' is empty, expected at least one row."),
    ],
)
def test_rows_that_do_not_fit_are_one_sentence(add, tmp_path, rows, changes, message):
    add(own(tmp_path, *rows, **changes))
    with pytest.raises(PemtError) as caught:
        texts("reviews", "train")
    assert str(caught.value) == message.replace("FILE", str(tmp_path / "train.jsonl"))


@pytest.mark.parametrize("template", ["review: {}", "review: {0}", "review: {text", "review"])
def test_a_template_without_fields_is_refused(add, files, template):
    with pytest.raises(UsageError, match="template .* of task 'reviews' cannot be filled"):
        add(reviews(files, inputs=template))
    assert "reviews" not in seqio.TaskRegistry.names()


def test_a_name_that_is_taken_is_refused(add, files):
    with pytest.raises(UsageError, match="There is a task 'pemt_cb' already"):
        add(reviews(files, name="pemt_cb"))


def test_registering_a_data_set_again_replaces_it_and_its_variants(add, files):
    for inputs in ("old: {text}", "new: {text}"):
        add(reviews(files, inputs=inputs, description=f"Read {inputs}."))
    for name in ("reviews", "reviews_4", "reviews_few"):
        assert texts(name, "train")[0] == ("new: train 0", "bad")
        assert description(name) == "Read new: {text}."


def test_a_task_that_seqio_registered_since_is_not_replaced(add, files):
    add(reviews(files))
    task = seqio.TaskRegistry.get("reviews")
    seqio.TaskRegistry.remove("reviews")
    seqio.TaskRegistry.add_provider("reviews", task.replace(source=task.source))
    with pytest.raises(UsageError, match="There is a task 'reviews' already"):
        add(reviews(files))
