"""Span corruption over plain text: the SeqIO task `span_corruption`.

Raffel et al. 2020, section 3.1.4: 15 % of the tokens in spans of 3 on average. Paragraphs (the
lines of `*.txt` and `*.txt.xz` files of one folder) are tokenised, joined and cut into chunks of
the length that fills the inputs after corruption. The noise comes last, as an online transform:
pemt_jax.data caches the chunks and draws new noise each epoch; under T5X SeqIO seeds it.

One paragraph in 200, chosen by a hash of its text, is in the validation split.
"""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import gin
import seqio
import tensorflow as tf

from pemt_jax.common.errors import UsageError
from pemt_jax.common.user_input.paragraphs import paragraphs, text_files
from pemt_jax.tasks.pretraining.span_corruption import SpanCorruption, chunk_length
from pemt_jax.tasks.sources.tracked import TrackedSource
from pemt_jax.tasks.vocabulary import FEATURES

SPAN_CORRUPTION = "span_corruption"
HELD_OUT = 200
PARAGRAPHS_AT_A_TIME = 256


@gin.configurable
def corpus(path: str | None = None) -> str:
    """The folder of text files: gin's `corpus.path`, else $PEMT_JAX_CORPUS."""
    path = path or os.environ.get("PEMT_JAX_CORPUS")
    if not path:
        raise UsageError(
            "No text folder is set for span_corruption, expected corpus.path in gin or the "
            "environment variable PEMT_JAX_CORPUS."
        )
    return path


def is_held_out(paragraph: str) -> bool:
    """Whether a paragraph belongs to the validation split."""
    digest = hashlib.blake2b(paragraph.encode(), digest_size=4).digest()
    return int.from_bytes(digest) % HELD_OUT == 0


def corpus_fingerprint(split: str) -> list:
    """Names, sizes and times of the corpus files."""
    return [split] + [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in text_files(corpus())
    ]


def paragraph_dataset(split: str) -> tf.data.Dataset:
    """Paragraphs of a split of the corpus, in the order of its files, as `{"text": string}`."""
    files = text_files(corpus())

    def chosen() -> Iterator[str]:
        for path in files:
            for paragraph in paragraphs(path):
                if is_held_out(paragraph) == (split == "validation"):
                    yield paragraph

    return dataset_of(chosen)


def dataset_of(texts: Callable[[], Iterable[str]]) -> tf.data.Dataset:
    """Texts as `{"text": string}`; the function is called each time that the rows are read."""

    def batches() -> Iterator[list[str]]:
        rest = iter(texts())
        while batch := list(itertools.islice(rest, PARAGRAPHS_AT_A_TIME)):
            yield batch

    dataset = tf.data.Dataset.from_generator(
        batches, output_signature=tf.TensorSpec([None], tf.string)
    )
    return dataset.unbatch().map(lambda text: {"text": text})


def tokenize_join_and_cut(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int],
    output_features: Mapping[str, seqio.utils.Feature],
) -> tf.data.Dataset:
    """Join the paragraphs' tokens and cut them into chunks, all full except the last."""
    vocabulary = output_features["targets"].vocabulary
    length = chunk_length(sequence_length["inputs"])
    # Tokenising many paragraphs in one call is ten times faster than one by one.
    return (
        dataset.batch(PARAGRAPHS_AT_A_TIME)
        .map(
            lambda row: vocabulary.encode_tf(row["text"]).values,
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .rebatch(length)
        .map(lambda tokens: {"targets": tokens})
    )


def add_span_corruption(name: str, source: seqio.DataSource) -> None:
    """Register span corruption of a source of `{"text": string}` as a task."""
    # SeqIO's types want a number of examples where its own sources have None.
    untyped: Any = source
    seqio.TaskRegistry.add(
        name,
        source=untyped,
        preprocessors=[tokenize_join_and_cut, SpanCorruption()],
        output_features=FEATURES,
        metric_fns=[],
    )


add_span_corruption(
    SPAN_CORRUPTION,
    TrackedSource(paragraph_dataset, corpus_fingerprint, splits=("train", "validation")),
)
