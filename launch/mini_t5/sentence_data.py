"""Sentences and their teacher's embeddings as batches of the trainer.

A batch is PemtModel's, with empty targets, and `teacher` [B, 384]: unit vectors, in the direction
of a sentence's embedding less the mean embedding of the training sentences, which all of them share
and which says nothing about any of them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pemt_jax.common.errors import PemtError
from pemt_jax.data.batching import Batch, BatchSource, eval_batches
from pemt_jax.data.tokenized import Ragged, TokenizedSplit
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY

PREFIX = "sentence: "  # with which the demo's inputs begin
LENGTH = 64  # most tokens, as in the demo


def read_texts(file: Path) -> list[str]:
    """The lines of a text file of make_sentences.py."""
    try:
        return file.read_text(encoding="utf-8").split("\n")[:-1]
    except OSError as error:
        raise PemtError(
            f"Cannot read {file} ({error.strerror}), expected a file of make_sentences.py."
        ) from error


def read_embeddings(file: Path, parts: int | None = None) -> np.ndarray:
    """The embeddings of the first lines of a text file, float16 [n, 384], as embed.py wrote them.

    Args:
      file: the text file.
      parts: how many parts to read; None for all that have been made, without a gap.

    Raises:
      PemtError: there is none, or fewer than `parts`.
    """
    names = {int(f.stem): f for f in file.with_suffix("").glob("*.npy") if f.stem.isdigit()}
    found: list[np.ndarray] = []
    while (start := sum(map(len, found))) in names and len(found) != parts:
        found.append(np.load(names[start], allow_pickle=False))
    if not found or len(found) != (parts or len(found)):
        raise PemtError(
            f"{file} has {len(found)} parts of embed.py, expected {parts or 'at least one'}."
        )
    return np.concatenate(found)


def directions(embeddings: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Unit vectors from the mean [1, 384] to each embedding [n, 384], float16."""
    shifted = embeddings.astype(np.float32) - mean
    norms = np.linalg.norm(shifted, axis=1, keepdims=True)
    return (shifted / np.maximum(norms, 1e-6)).astype(np.float16)


def tokenized(texts: Sequence[str], prefix: str = PREFIX, length: int = LENGTH) -> TokenizedSplit:
    """Texts as inputs of at most `length` tokens, with targets that only end."""
    eos = DEFAULT_VOCABULARY.eos_id
    rows = [
        np.array([*DEFAULT_VOCABULARY.encode(prefix + text)[: length - 1], eos], np.int32)
        for text in texts
    ]
    inputs = Ragged.of(rows, np.int32)
    return TokenizedSplit(
        task_name="sentences",
        split="train",
        lengths={"inputs": length, "targets": 1},
        columns={"inputs": inputs, "targets": Ragged.of([np.array([eos])] * len(rows), np.int32)},
        other=Ragged.of([], np.uint8),
        dtypes={},
        online=None,
        sha256=hashlib.sha256(inputs.values.tobytes() + inputs.offsets.tobytes()).hexdigest(),
    )


class SentenceBatches(BatchSource):
    """Training batches by step number, in buckets by length.

    Args:
      split: sentences.
      vectors: of each sentence, [n, 384].
      batch_size, seed, buckets: as of BatchSource.
    """

    def __init__(
        self,
        split: TokenizedSplit,
        vectors: np.ndarray,
        batch_size: int,
        seed: int,
        buckets: Sequence[int],
    ):
        super().__init__([(1.0, split)], batch_size, seed, buckets=buckets)
        self.vectors = vectors

    def __getitem__(self, index: int) -> Batch:
        return with_teacher(super().__getitem__(index), self.vectors, self.plan(int(index))[:, 1])


def held_out_batches(
    split: TokenizedSplit, vectors: np.ndarray, batch_size: int, buckets: Sequence[int]
) -> Iterator[tuple[np.ndarray, Batch]]:
    """(example numbers, batch) over all sentences, as eval_batches."""
    for rows, batch in eval_batches(split, batch_size, buckets):
        yield rows, with_teacher(batch, vectors, rows)


def with_teacher(batch: Batch, vectors: np.ndarray, rows: np.ndarray) -> Batch:
    """The batch with the vectors of the examples that are its first rows."""
    teacher = np.zeros((len(batch["encoder_input_tokens"]), vectors.shape[1]), np.float32)
    teacher[: len(rows)] = vectors[rows]
    return batch | {"teacher": teacher}
