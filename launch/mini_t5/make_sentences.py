"""Writes the sentences that the mini T5 is distilled on, and the pieces of its vocabulary.

Three files of FOLDER, one text per line, which embed.py reads:

    train.txt     sentences of the corpus's paragraphs, as span corruption reads them, and all
                  training sentences of the demo's sources; shuffled, so that any first part of the
                  file is a sample of it
    held_out.txt  sentences of the paragraphs that span corruption holds out
    pieces.txt    what each piece of the vocabulary stands for

The corpus is $PEMT_JAX_CORPUS. The target's sentences are not read.
"""

import random
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from pemt_jax.cli.exit_codes import exit_code_of
from pemt_jax.cli.parser import Parser
from pemt_jax.common.errors import UsageError
from pemt_jax.common.storage import new_folder

BOUNDARY = re.compile(r"(?<=[.!?;])[\"')]*\s+(?=[\"'(]?[A-Za-z])")
WORDS, CHARACTERS = range(4, 41), 240  # of a sentence that is taken


def sentences(paragraphs: Iterable[str]) -> Iterator[str]:
    """The sentences of paragraphs that are neither fragments nor lists."""
    for paragraph in paragraphs:
        for sentence in BOUNDARY.split(paragraph):
            sentence = " ".join(sentence.split())
            if len(sentence.split()) in WORDS and len(sentence) <= CHARACTERS:
                yield sentence


def piece_texts(pieces: Iterable[str]) -> list[str]:
    """What pieces stand for, "." for those without a character of their own."""
    return [" ".join(piece.replace("▁", " ").split()) or "." for piece in pieces]


def corpus_sentences(limits: dict[str, int], default: int) -> tuple[list[str], list[str]]:
    """(training, held-out) sentences of the corpus, each once, at most so many from a file.

    Args:
      limits: of files whose names begin so.
      default: of the others.
    """
    from pemt_jax.common.user_input.paragraphs import paragraphs, text_files
    from pemt_jax.tasks.pretraining.corpus import corpus, is_held_out

    seen, found = set[str](), ([], [])
    for file in text_files(corpus()):
        here = ([], [])
        for paragraph in paragraphs(file):
            fresh = set(sentences([paragraph])) - seen
            seen |= fresh
            here[is_held_out(paragraph)].extend(sorted(fresh))
        limit = next((n for name, n in limits.items() if file.name.startswith(name)), default)
        for kept, texts in zip(found, here, strict=True):
            random.Random(0).shuffle(texts)
            kept += texts[:limit]
        print(f"{file.name}: {min(limit, len(here[0]))} of {len(here[0])} sentences", flush=True)
    return found


def make(folder: Path, limits: dict[str, int], default: int, held_out: int) -> None:
    """Write the three files into a new folder."""
    import sentencepiece

    from pemt_jax.tasks.demo.sentiment import source_texts
    from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY

    train, held = corpus_sentences(limits, default)
    train += [" ".join(text.split()) for text in source_texts()]
    for texts in (train, held):
        random.Random(1).shuffle(texts)
    spm = sentencepiece.SentencePieceProcessor(DEFAULT_VOCABULARY.sentencepiece_model_file)
    pieces = piece_texts(spm.id_to_piece(i) for i in range(spm.get_piece_size()))
    with new_folder(folder) as partial:
        for name, texts in (("train", train), ("held_out", held[:held_out]), ("pieces", pieces)):
            text = "".join(f"{text}\n" for text in texts)
            (partial / f"{name}.txt").write_text(text, encoding="utf-8")
            print(f"{folder / name}.txt: {len(texts)} texts")


def main() -> None:
    parser = Parser(prog="make_sentences.py", description=__doc__)
    add = parser.add_argument
    add("folder", type=Path, help="a new folder")
    add("--most", type=int, default=60_000, help="sentences from a file of the corpus")
    add("--most_of", action="append", default=[], metavar="NAME=N", help="... whose name begins so")
    add("--held_out", type=int, default=2000, help="held-out sentences")
    given = parser.parse_args()
    limits = {}
    for text in given.most_of:
        name, _, number = text.partition("=")
        if not number.isdecimal():
            raise UsageError(f"Found --most_of {text!r}, expected NAME=N.")
        limits[name] = int(number)
    make(given.folder, limits, given.most, given.held_out)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
