"""Span corruption over plain text: the SeqIO task `span_corruption`.

Raffel et al. 2020, section 3.1.4: 15 % of the tokens in spans of 3 on average. Paragraphs (the
lines of `*.txt` and `*.txt.xz` files of one folder) are tokenised, joined and cut into chunks of
the length that fills the inputs after corruption. The noise comes last, as an online transform:
pemt_jax.data caches the chunks and draws it anew each epoch; under T5X SeqIO seeds it.

Every 200th paragraph, by hash of its text, is the validation split.
"""

import hashlib
import lzma
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import gin
import seqio
import tensorflow as tf

from pemt_jax.common.errors import PemtError, UsageError
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
            "no text folder is set for span_corruption; set corpus.path in gin or "
            "the environment variable PEMT_JAX_CORPUS"
        )
    return path


def text_files(folder: str) -> list[Path]:
    """The `*.txt` and `*.txt.xz` files of a folder, by name."""
    found = sorted([*Path(folder).glob("*.txt"), *Path(folder).glob("*.txt.xz")])
    if not found:
        raise PemtError(f"{folder} holds no *.txt or *.txt.xz file to pretrain on")
    return found


def paragraphs(path: Path) -> Iterator[str]:
    """The non-empty lines of one text file."""
    opened = lzma.open if path.suffix == ".xz" else open
    with opened(path, "rt", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line := line.strip():
                yield line


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

    def batches() -> Iterator[list[str]]:
        batch = []
        for path in files:
            for paragraph in paragraphs(path):
                if is_held_out(paragraph) == (split == "validation"):
                    batch.append(paragraph)
                if len(batch) == PARAGRAPHS_AT_A_TIME:
                    yield batch
                    batch = []
        if batch:
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
    """Join the paragraphs' tokens and cut them into chunks, all full but the last."""
    vocabulary = output_features["targets"].vocabulary
    length = chunk_length(sequence_length["inputs"])
    # Tokenising many paragraphs in one call is ten times quicker than one by one.
    return (
        dataset.batch(PARAGRAPHS_AT_A_TIME)
        .map(
            lambda row: vocabulary.encode_tf(row["text"]).values,
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .rebatch(length)
        .map(lambda tokens: {"targets": tokens})
    )


seqio.TaskRegistry.add(
    SPAN_CORRUPTION,
    source=TrackedSource(  # pyright: ignore[reportArgumentType]  # SeqIO's own may know no size
        paragraph_dataset, corpus_fingerprint, splits=("train", "validation")
    ),
    preprocessors=[tokenize_join_and_cut, SpanCorruption()],
    output_features=FEATURES,
    metric_fns=[],
)
