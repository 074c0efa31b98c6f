"""The token cache: what is in it, what makes a new one, and the sentences for wrong input."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.data import token_cache as data
from pemt_jax.tasks.pretraining.span_corruption import SpanCorruption
from pemt_jax.tasks.vocabulary import PACKAGED, Vocabulary

LENGTHS = {"inputs": 16, "targets": 4}
VOCABULARY = Vocabulary(str(PACKAGED))
STEPS = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim]


@pytest.fixture
def add_task(request):
    """Register tasks over lists of examples; they are gone after the test."""
    names = []

    def add(name, examples, steps=STEPS, vocabulary=VOCABULARY, splits=("train",)):
        def dataset_fn(split, shuffle_files=False, seed=None):
            if callable(examples):
                return examples()
            return tf.data.Dataset.from_tensor_slices(examples)

        feature = seqio.Feature(vocabulary, add_eos=True)
        if name in names:
            seqio.TaskRegistry.remove(name)
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(dataset_fn, splits=splits),
            preprocessors=steps,
            output_features={"inputs": feature, "targets": feature},
            metric_fns=[],
        )
        names.append(name)

    yield add
    for name in set(names):
        seqio.TaskRegistry.remove(name)


TWO_ROWS = {
    "inputs": ["the good film", "a bad story"],
    "targets": ["positive", "negative"],
    "number": [3, 4],
}


def test_rows_hold_what_seqio_makes_of_them(add_task, tmp_path):
    add_task("two_rows", TWO_ROWS)
    split = data.open_split("two_rows", "train", LENGTHS, tmp_path)
    expected = seqio.TaskRegistry.get("two_rows").get_dataset(LENGTHS, "train", shuffle=False)
    for row, example in enumerate(expected.as_numpy_iterator()):
        np.testing.assert_array_equal(split.inputs(row), example["inputs"])
        np.testing.assert_array_equal(split.targets(row), example["targets"])
        assert split.inputs(row).dtype == np.int32
        assert split.example(row) == {
            name: example[name]
            for name in ("number", "inputs_pretokenized", "targets_pretokenized")
        }
    assert len(split) == 2
    assert split.input_lengths.tolist() == [len(split.inputs(0)), len(split.inputs(1))]
    assert split.target_lengths.tolist() == [2, 2]


def test_a_second_opening_tokenises_nothing(add_task, tmp_path):
    add_task("two_rows", TWO_ROWS)
    first = data.open_split("two_rows", "train", LENGTHS, tmp_path)
    before = [(path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*.npy")]
    second = data.open_split("two_rows", "train", LENGTHS, tmp_path)
    assert [(path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*.npy")] == before
    assert first.sha256 == second.sha256
    assert len(list(tmp_path.iterdir())) == 1


def test_anything_that_tokens_depend_on_makes_a_new_cache(add_task, tmp_path):
    def caches():
        data.open_split("two_rows", "train", lengths, tmp_path)
        return len(list(tmp_path.iterdir()))

    def upper(dataset, suffix="!"):
        return dataset.map(lambda row: {**row, "inputs": row["inputs"] + suffix})

    lengths = LENGTHS
    add_task("two_rows", TWO_ROWS)
    assert caches() == 1
    lengths = {"inputs": 17, "targets": 4}
    assert caches() == 2
    add_task("two_rows", TWO_ROWS, vocabulary=Vocabulary(str(PACKAGED), extra_ids=7))
    assert caches() == 3
    add_task("two_rows", TWO_ROWS, steps=[upper, *STEPS])
    assert caches() == 4
    add_task("two_rows", TWO_ROWS, steps=[functools.partial(upper, suffix="?"), *STEPS])
    assert caches() == 5
    seqio.TaskRegistry.get("two_rows").source.fingerprint = lambda split: "other rows"
    assert caches() == 6
    assert caches() == 6


def inputs_of(name, folder):
    split = data.open_split(name, "train", LENGTHS, folder)
    return [VOCABULARY.decode(split.inputs(row).tolist()) for row in range(len(split))]


def test_rows_of_a_function_that_changed_are_tokenised_again(add_task, tmp_path):
    rows = {"inputs": ["the good film"], "targets": ["positive"]}
    add_task("changing", lambda: tf.data.Dataset.from_tensor_slices(rows))
    assert inputs_of("changing", tmp_path) == ["the good film"]
    rows["inputs"] = ["the bad film"]  # the function's text stays
    assert inputs_of("changing", tmp_path) == ["the bad film"]


def test_a_changed_file_is_tokenised_again(tmp_path):
    def parse(dataset):
        return dataset.map(lambda line: {"inputs": line, "targets": "positive"})

    feature = seqio.Feature(VOCABULARY, add_eos=True)
    seqio.TaskRegistry.add(
        "lines",
        source=seqio.TextLineDataSource({"train": str(tmp_path / "lines.txt")}),
        preprocessors=[parse, *STEPS],
        output_features={"inputs": feature, "targets": feature},
        metric_fns=[],
    )
    try:
        for line in ("the good film", "the bad story"):
            (tmp_path / "lines.txt").write_text(line + "\n")
            assert inputs_of("lines", tmp_path / "cache") == [line]
    finally:
        seqio.TaskRegistry.remove("lines")


class Suffix:
    """A preprocessor with a value of its own."""

    def __init__(self, suffix):
        self.suffix = suffix

    def __call__(self, dataset):
        return dataset.map(lambda row: {**row, "inputs": row["inputs"] + self.suffix})


def suffix_of_a_closure(suffix):
    @seqio.map_over_dataset
    def add(row):
        return {**row, "inputs": row["inputs"] + suffix}

    return add


def suffix_of_a_default(suffix):
    def add(dataset, suffix=suffix):
        return dataset.map(lambda row: {**row, "inputs": row["inputs"] + suffix})

    return add


@pytest.mark.parametrize(
    "step",
    [Suffix, suffix_of_a_closure, suffix_of_a_default, lambda suffix: Suffix(suffix).__call__],
)
def test_a_value_that_a_preprocessor_has_captured_counts(add_task, tmp_path, step):
    for suffix in (" one", " two", " one"):
        add_task("captured", TWO_ROWS, steps=[step(suffix), *STEPS])
        assert inputs_of("captured", tmp_path) == [f"the good film{suffix}", f"a bad story{suffix}"]
    assert len(list(tmp_path.iterdir())) == 2


SETS = """
import functools

import seqio

from pemt_jax.data.cache_key import cache_key
from pemt_jax.tasks.sources.tracked import TrackedSource
from pemt_jax.tasks.vocabulary import FEATURES


class Drop:
    def __init__(self, words):
        self.words = words

    def __call__(self, dataset):
        return dataset


def keep(dataset, words, pairs=frozenset({("a", "b"), ("c", "d"), ("e", "f")})):
    return dataset


def closure(words):
    return lambda dataset: dataset if words else None


def key(words):
    pairs = [tuple(word) for word in words]
    task = seqio.Task(
        "sets",
        source=TrackedSource(lambda split: None, lambda split: "rows", ["train"]),
        preprocessors=[
            functools.partial(keep, words=set(words)),
            Drop({"nested": frozenset(words), "pairs": {*pairs}, "first": pairs[0]}),
            closure({frozenset(word) for word in words} | {None, 1, 2.5, b"bytes"}),
        ],
        output_features=FEATURES,
    )
    return cache_key(task, "train", {"inputs": 8, "targets": 8})


words = "the good film a bad story of nine words".split()
print(key(words), key([*words, "more"]))
"""


@pytest.mark.slow
def test_the_key_of_captured_sets_does_not_depend_on_the_hash_seed(tmp_path):
    (tmp_path / "sets.py").write_text(SETS)
    processes = [
        subprocess.Popen(
            [sys.executable, tmp_path / "sets.py"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (process.communicate()[0].split() for process in processes)
    assert first == second and len(set(first)) == 2


def test_long_inputs_are_cut_and_keep_their_end(add_task, tmp_path):
    add_task("long", {"inputs": ["word " * 50], "targets": ["positive"]})
    split = data.open_split("long", "train", LENGTHS, tmp_path)
    assert len(split.inputs(0)) == 16
    assert split.inputs(0)[-1] == VOCABULARY.eos_id
    assert VOCABULARY.eos_id not in split.inputs(0)[:-1]


def test_a_long_target_is_one_sentence_and_leaves_nothing(add_task, tmp_path):
    add_task("long", {"inputs": ["a", "b"], "targets": ["positive", "good bad good bad"]})
    message = "row 1 of split 'train' of task 'long' has a target of 5 tokens but .* allows 4$"
    with pytest.raises(PemtError, match=message):
        data.open_split("long", "train", LENGTHS, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_split_is_one_sentence(add_task, tmp_path):
    add_task("empty", {"inputs": np.array([], "S1"), "targets": np.array([], "S1")})
    with pytest.raises(PemtError, match="split 'train' of task 'empty' is empty"):
        data.open_split("empty", "train", LENGTHS, tmp_path)


def test_wrong_names_are_answered_with_the_nearest(add_task, tmp_path):
    add_task("two_rows", TWO_ROWS, splits=("train", "validation"))
    with pytest.raises(UsageError, match="no task or mixture 'two_row' .nearest: 'two_rows'"):
        data.open_mixture("two_row", "train", LENGTHS, tmp_path)
    with pytest.raises(UsageError, match="has no split 'valid'.*nearest: 'validation'"):
        data.open_split("two_rows", "valid", LENGTHS, tmp_path)
    with pytest.raises(UsageError, match="no length for 'targets'"):
        data.open_split("two_rows", "train", {"inputs": 4}, tmp_path)


@pytest.mark.parametrize(
    "damage", ["cut", "remove", "meta", "empty", "flipped token", "flipped offset", "flipped meta"]
)
def test_a_damaged_cache_is_made_anew(add_task, tmp_path, damage):
    add_task("two_rows", TWO_ROWS)
    before = data.open_split("two_rows", "train", LENGTHS, tmp_path)
    expected, (folder,) = before.inputs(1).tolist(), tmp_path.iterdir()
    file = folder / (
        "meta.json"
        if "meta" in damage
        else "inputs_offsets.npy"
        if "offset" in damage
        else "inputs.npy"
    )
    if damage == "remove":
        file.unlink()
    else:
        content = file.read_bytes()
        file.unlink()  # the open split has the old file in its memory map
        flipped = content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]
        file.write_bytes(
            flipped
            if "flipped" in damage
            else b""
            if damage == "empty"
            else content[: len(content) // 2]
        )
    after = data.open_split("two_rows", "train", LENGTHS, tmp_path)
    assert after.inputs(1).tolist() == expected
    assert len(list(tmp_path.iterdir())) == 1


def test_other_features_keep_their_types(add_task, tmp_path):
    rows = {
        "inputs": ["a"],
        "targets": ["b"],
        "answers": [["yes", "caf\u00e9"]],
        "idx": [7],
        "score": np.array([0.5], np.float32),
        "where": {"paragraph": [1], "name": ["x"]},
        "raw": [b"\xff\x00"],
    }
    add_task("typed", rows)
    example = data.open_split("typed", "train", LENGTHS, tmp_path).example(0)
    assert example["answers"].tolist() == [b"yes", "caf\u00e9".encode()]
    assert (example["idx"], example["idx"].dtype) == (7, np.dtype(np.int32))
    assert (example["score"], example["score"].dtype) == (0.5, np.dtype(np.float32))
    assert example["where"] == {"paragraph": 1, "name": b"x"}
    assert example["raw"] == b"\xff\x00"
    assert example["targets_pretokenized"] == b"b"


def test_answers_of_any_number_are_kept(add_task, tmp_path):
    def rows():
        return tf.data.Dataset.from_generator(
            lambda: ({"inputs": "a", "targets": "b", "answers": ["x"] * n} for n in (0, 1, 3)),
            output_signature={
                "inputs": tf.TensorSpec([], tf.string),
                "targets": tf.TensorSpec([], tf.string),
                "answers": tf.TensorSpec([None], tf.string),
            },
        )

    add_task("answers", rows)
    split = data.open_split("answers", "train", LENGTHS, tmp_path)
    assert [split.example(row)["answers"].tolist() for row in range(3)] == [[], [b"x"], [b"x"] * 3]


def test_a_mixture_opens_the_tasks_that_have_the_split(add_task, tmp_path):
    add_task("one", TWO_ROWS)
    add_task("both", TWO_ROWS, splits=("train", "validation"))
    seqio.MixtureRegistry.add("one_and_both", [("one", 0.25), ("both", 0.75)])
    try:
        parts = data.open_mixture("one_and_both", "train", LENGTHS, tmp_path)
        assert sorted((rate, split.task_name) for rate, split in parts) == [
            (0.25, "one"),
            (0.75, "both"),
        ]
        (part,) = data.open_mixture("one_and_both", "validation", LENGTHS, tmp_path)
        assert part[1].task_name == "both"
        with pytest.raises(UsageError, match="no task of the mixture 'one_and_both'"):
            data.open_mixture("one_and_both", "test", LENGTHS, tmp_path)
    finally:
        seqio.MixtureRegistry.remove("one_and_both")


def chunks_of_forty(dataset):
    del dataset
    rows = np.arange(2, 242, dtype=np.int32).reshape(6, 40)
    return tf.data.Dataset.from_tensor_slices({"targets": rows})


def test_the_cache_before_an_online_transform_holds_what_it_gets(add_task, tmp_path):
    add_task("noisy", TWO_ROWS, steps=[chunks_of_forty, SpanCorruption()])
    split = data.open_split("noisy", "train", {"inputs": 37, "targets": 9}, tmp_path)
    (folder,) = tmp_path.iterdir()
    assert json.loads(Path(folder, "meta.json").read_text())["columns"] == ["targets"]
    assert np.load(folder / "targets.npy").tolist() == list(range(2, 242))
    first = split.pairs(np.arange(6), np.zeros(6, int), seed=1)
    again = split.pairs(np.arange(6), np.zeros(6, int), seed=1)
    later = split.pairs(np.arange(6), np.ones(6, int), seed=1)
    texts = [[inputs.tolist() for inputs, _ in pairs] for pairs in (first, again, later)]
    assert texts[0] == texts[1] != texts[2]
    assert split.input_lengths.tolist() == [len(inputs) for inputs in texts[0]]
    with pytest.raises(PemtError, match="makes inputs of 37 tokens but .* allows 36"):
        data.open_split("noisy", "train", {"inputs": 36, "targets": 9}, tmp_path)
