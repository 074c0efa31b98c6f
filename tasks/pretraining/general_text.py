"""Held-out general text as a task: what an adapted model still knows of language.

Span corruption of a text, its paragraphs joined and cut into chunks, with the same noise for every
model, so that losses can be subtracted: forgetting is the cross entropy of an adapted model minus
that of its base.
"""

from collections.abc import Iterator

import seqio

from pemt_jax.common.user_input.paragraphs import TOKENS, files_of, general_text_task, paragraphs
from pemt_jax.tasks.pretraining.corpus import add_span_corruption, dataset_of
from pemt_jax.tasks.pretraining.span_corruption import chunk_length, corrupted_lengths
from pemt_jax.tasks.sources.tracked import TrackedSource

SPLIT = "validation"
LENGTHS = {"inputs": TOKENS, "targets": corrupted_lengths(chunk_length(TOKENS))[1]}


def register_general_text(place: str) -> str:
    """Register the task of a text file, or of a folder of such files; return its name.

    Its only split is SPLIT, its lengths are LENGTHS. The name says what the text is, so numbers of
    one text are not taken for those of another.

    Raises:
      UsageError: there is no such text.
    """
    files, name = files_of(place), general_text_task(place)

    def texts() -> Iterator[str]:
        for file in files:
            yield from paragraphs(file)

    source = TrackedSource(lambda _: dataset_of(texts), lambda _: name, splits=(SPLIT,))
    if name in seqio.TaskRegistry.names():  # of files that may have been moved since
        seqio.TaskRegistry.remove(name)
    add_span_corruption(name, source)
    return name
