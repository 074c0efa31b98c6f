"""Real data sets, if PEMT_JAX_RAW_DATA names a folder of them: formats and splits row by row.

The texts are made here in plain Python, from rows that TFDS's generators read from the same files;
the formats are those of the authors' code.
"""

import numpy as np
import pytest
import seqio
import tensorflow_datasets as tfds

from pemt_jax.tasks.sources.permutation import torch_randperm
from pemt_jax.tasks.sources.raw import folder
from pemt_jax.tasks.splits import Halves, HeldOut

PAIR = "sentence1: {sentence1} sentence2: {sentence2}"
FORMATS = {
    "pemt_cola": ("glue/cola", "sentence: {sentence}"),
    "pemt_sst2": ("glue/sst2", "sentence: {sentence}"),
    "pemt_qqp": ("glue/qqp", "question1: {question1} question2: {question2}"),
    "pemt_stsb": ("glue/stsb", PAIR),
    "pemt_mnli": ("glue/mnli", "premise: {premise} hypothesis: {hypothesis}"),
    "pemt_qnli": ("glue/qnli", "question: {question} sentence: {sentence}"),
    "pemt_rte": ("glue/rte", PAIR),
    "pemt_wnli": ("glue/wnli", PAIR),
    "pemt_cb": ("super_glue/cb", "premise: {premise} hypothesis: {hypothesis}"),
    "pemt_boolq": ("super_glue/boolq", "question: {question} passage: {passage}"),
    "pemt_wic": ("super_glue/wic", "sentence1: {sentence1} sentence2: {sentence2} word: {word}"),
    "pemt_copa": ("super_glue/copa", "premise: {premise} choice1: {choice1} choice2: {choice2}"),
}


def target(label, names):
    if names is None:
        return str(np.round(float(np.float32(label)), 1))
    return names[label] if isinstance(label, int) else label


def expected_rows(policy, split, sizes):
    """The rows of a split in the authors' order."""
    size = sizes[policy.parts[split]]
    if isinstance(policy, Halves) and split != "train":
        half = size // 2
        order = torch_randperm(size)
        return order[:half] if split == "validation" else order[half:]
    if isinstance(policy, HeldOut) and split != "test":
        order = torch_randperm(size)
        return order[:1000] if split == "validation" else order[1000:]
    return np.arange(size)


@pytest.mark.parametrize("name", FORMATS)
def test_texts_and_splits_are_the_authors(real_data, name):
    data, template = FORMATS[name]
    task, here = seqio.TaskRegistry.get(name), folder.found(data)
    if here is None:
        pytest.skip(f"{data} is not in {real_data}")
    layout, place = here
    builder = tfds.builder(data)
    names = getattr(builder.info.features["label"], "names", None)
    texts = {}
    for part in set(task.source.policy.parts.values()):
        if (file := folder.file(place / layout.files[part])).is_file():
            kind = "test" if part.startswith("test") else "train"
            texts[part] = [
                (template.format(**row), target(row["label"], names))
                for _, row in builder._generate_examples(str(file), kind)
            ]
    sizes = {part: len(rows) for part, rows in texts.items()}
    for split in task.splits:
        part = task.source.policy.parts[split]
        if part not in texts:
            continue
        rows = expected_rows(task.source.policy, split, sizes).tolist()
        assert task.source.rows(split).tolist() == rows
        dataset = task.preprocess_precache(task.source.get_dataset(split, shuffle=False))
        found = {
            int(row["row"]): (row["inputs"].decode(), row["targets"].decode())
            for row in dataset.as_numpy_iterator()
        }
        assert found == {row: texts[part][row] for row in rows}
