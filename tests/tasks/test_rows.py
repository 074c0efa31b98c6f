"""`from_rows`: a task over examples in memory or in files, and registering it again."""

import json

import numpy as np
import pytest
import seqio

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.data import token_cache
from pemt_jax.tasks import Dataset, description, from_rows, metrics
from pemt_jax.tasks.splits import Halves, HeldOut, Own
from pemt_jax.tasks.targets import Answers, Label, Number

LENGTHS = {"inputs": 32, "targets": 8}
TEXT = {"inputs": "review: {text}", "description": "Say whether a review is good or bad."}
WORDS = ("bad", "good")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder; the tasks of a test are gone after it."""
    monkeypatch.setenv("PEMT_JAX_CACHE", str(tmp_path / "cache"))
    before = set(seqio.TaskRegistry.names())
    yield tmp_path / "cache"
    for name in set(seqio.TaskRegistry.names()) - before:
        seqio.TaskRegistry.remove(name)


def rows(*texts, label="good"):
    return [{"text": text, "label": label} for text in texts]


def examples(name, split):
    dataset = seqio.TaskRegistry.get(name).get_dataset(LENGTHS, split, shuffle=False)
    return [
        (row["inputs_pretokenized"].decode(), row["targets_pretokenized"].decode())
        for row in dataset.as_numpy_iterator()
    ]


def test_rows_in_memory_become_a_task(cache):
    data = {
        "train": rows("So good.", "Caf\u00e9\u2028\nfine") + rows("No.", label="bad"),
        "validation": rows("a", "b", "c", "d", label="bad"),
    }
    dataset = from_rows("reviews", data, labels=WORDS, **TEXT)
    assert examples("reviews", "train") == [
        ("review: So good.", "good"),
        ("review: Caf\u00e9\u2028\nfine", "good"),
        ("review: No.", "bad"),
    ]
    assert [len(examples("reviews", split)) for split in ("validation", "test")] == [2, 2]
    assert dataset == Dataset(
        name="reviews",
        data=dataset.data,
        target=Label(WORDS),
        metric=metrics.accuracy,
        splits=Halves(),
        **TEXT,
    )
    assert description("reviews_few") == dataset.description
    assert len(examples("reviews_4", "train")) == 3
    assert len(token_cache.open_split("reviews", "train", LENGTHS)) == 3
    assert {path.parent for path in (cache / "rows").iterdir()} == {cache / "rows"}


def test_equal_rows_are_one_file_that_is_written_once(cache):
    data = {"train": rows("a", "b"), "validation": rows("a", "b"), "test": iter(rows("c"))}
    dataset = from_rows("reviews", data, labels=WORDS, **TEXT)
    assert dataset.splits == Own() and len(examples("reviews", "test")) == 1
    assert dataset.data["train"] == dataset.data["validation"] != dataset.data["test"]
    before = {path: path.stat().st_mtime_ns for path in (cache / "rows").iterdir()}
    assert len(before) == 2
    again = from_rows("reviews", {**data, "test": rows("c")}, labels=WORDS, **TEXT)
    assert again == dataset
    assert {path: path.stat().st_mtime_ns for path in (cache / "rows").iterdir()} == before
    with open(dataset.data["test"], "a") as file:  # whatever happened to it
        file.write("damage")
    from_rows("reviews", {**data, "test": rows("c")}, labels=WORDS, **TEXT)
    assert examples("reviews", "test") == [("review: c", "good")]


def test_files_and_rows_can_be_mixed_and_files_are_read_where_they_are(cache, tmp_path):
    path = tmp_path / "dev.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows("a", "b")))
    dataset = from_rows(
        "reviews", {"train": rows("c"), "validation": path}, labels=list(WORDS), **TEXT
    )
    assert dataset.data["validation"] == str(path)
    assert examples("reviews", "validation") + examples("reviews", "test") == [
        ("review: a", "good"),
        ("review: b", "good"),
    ]


def test_numbers_of_numpy_and_other_targets(cache):
    data = {
        "train": [{"text": "a", "score": np.float32(2.5)}, {"text": "b", "score": np.int64(3)}],
        "dev": [{"text": "c", "score": 1}],
    }
    dataset = from_rows(
        "scores", data, labels=Number("score"), splits=Own(validation="dev", test=None), **TEXT
    )
    assert dataset.metric is metrics.correlations
    assert examples("scores", "train") == [("review: a", "2.5"), ("review: b", "3.0")]
    assert list(seqio.TaskRegistry.get("scores").splits) == ["train", "validation"]
    answers = [{"text": "Who?", "all": np.array(["Ann", "A."])}]
    dataset = from_rows(
        "questions", {"train": answers, "validation": answers}, labels=Answers("all"), **TEXT
    )
    assert dataset.metric is metrics.squad
    assert examples("questions", "train") == [("review: Who?", "Ann")]
    dataset = from_rows(
        "held",
        {"train": rows("a"), "dev": rows("b")},
        labels=WORDS,
        metric=metrics.matthews,
        splits=HeldOut(test="dev"),
        **TEXT,
    )
    assert (dataset.metric, dataset.splits) == (metrics.matthews, HeldOut(test="dev"))


def test_a_cell_that_runs_again_replaces_its_task(cache):
    for text in ("first", "second"):
        data = {"train": rows(text), "validation": rows("a", "b")}
        from_rows("reviews", data, labels=WORDS, **{**TEXT, "description": f"The {text}."})
        for name in ("reviews", "reviews_8", "reviews_few"):
            assert examples(name, "train") == [(f"review: {text}", "good")]
            assert description(name) == f"The {text}."


@pytest.mark.parametrize(
    "name, kind, taken",
    [
        ("pemt_cb", "task", "pemt_cb"),  # the package's own
        ("pemt_cb_8", "task", "pemt_cb_8"),
        ("vader_movies", "task", "vader_movies"),
        ("pemt_glue", "mixture", "pemt_glue"),
        ("mine", "task", "mine"),  # registered by SeqIO alone
        ("few_8", "task", "few_8"),  # a variant of another data set
        ("of", "task", "of_few"),  # whose variant has the name of another task
    ],
)
def test_other_tasks_are_never_replaced(cache, name, kind, taken):
    data = {"train": rows("a"), "validation": rows("b")}
    from_rows("few", data, labels=WORDS, **TEXT)
    own = seqio.TaskRegistry.get("few")
    for other in ("mine", "of_few"):
        seqio.TaskRegistry.add(
            other,
            source=own.source,
            preprocessors=[],
            output_features=own.output_features,
            metric_fns=[],
        )
    before = dict(seqio.TaskRegistry._REGISTRY)
    with pytest.raises(UsageError) as caught:
        from_rows(name, data, labels=WORDS, **TEXT)
    assert str(caught.value) == (
        f"There is a {kind} {taken!r} already, expected a name that is free."
    )
    assert dict(seqio.TaskRegistry._REGISTRY) == before


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"data": rows("a")},
            "The data of task 'reviews' are a list, expected a dictionary such as "
            '{"train": rows, "validation": rows}.',
        ),
        (
            {"data": {"train": rows("a")}},
            "Task 'reviews' has no data of the split 'validation', expected train, validation; "
            "`splits` can name others.",
        ),
        (
            {"data": {"train": rows("a"), "validaton": rows("a")}},
            "Task 'reviews' has data of a split 'validaton', expected train, validation "
            "(nearest: 'validation'); `splits` can name others.",
        ),
        (
            {"data": {"train": rows("a"), "validation": []}},
            "Split 'validation' of task 'reviews' is empty, expected at least one row.",
        ),
        (
            {"data": {"train": [*rows("a"), {"text": {1, 2}}], "validation": rows("a")}},
            "Row 1 of split 'train' of task 'reviews' cannot be written as JSON (set is not a "
            "JSON value), expected a dictionary of texts, numbers, true or false, or lists of "
            "texts.",
        ),
        (
            {"data": {"train": ["a"], "validation": rows("a")}},
            "Row 0 of split 'train' of task 'reviews' cannot be written as JSON (it is 'a'), "
            "expected a dictionary of texts, numbers, true or false, or lists of texts.",
        ),
        (
            {"data": {"train": rows("\ud800"), "validation": rows("a")}},
            "Row 0 of split 'train' of task 'reviews' cannot be written as JSON ('utf-8' codec "
            "can't encode character '\\ud800' in position 10: surrogates not allowed), expected a "
            "dictionary of texts, numbers, true or false, or lists of texts.",
        ),
        (
            {"labels": "good"},
            "The labels of task 'reviews' are 'good', expected the words of its classes, such as "
            "('bad', 'good'), or a target of pemt_jax.tasks.targets.",
        ),
        (
            {"labels": (0, 1)},
            "The labels of task 'reviews' are (0, 1), expected the words of its classes, such as "
            "('bad', 'good'), or a target of pemt_jax.tasks.targets.",
        ),
    ],
)
def test_wrong_arguments_are_one_sentence_and_register_nothing(cache, changes, message):
    data = {"train": rows("a"), "validation": rows("b")}
    with pytest.raises(UsageError) as caught:
        from_rows("reviews", **{"data": data, "labels": WORDS, **TEXT, **changes})
    assert str(caught.value) == message
    assert "reviews" not in seqio.TaskRegistry.names()


def test_a_cache_that_cannot_be_written_is_one_sentence(cache):
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file")
    with pytest.raises(PemtError, match="^Cannot write .*rows/.*jsonl: "):
        from_rows("reviews", {"train": rows("a"), "validation": rows("b")}, labels=WORDS, **TEXT)
