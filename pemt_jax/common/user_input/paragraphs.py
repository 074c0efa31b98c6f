"""Plain text that people have: the paragraphs of a file, or of the files of a folder.

A folder has `*.txt` and `*.txt.xz` files, whose lines are paragraphs. A file may also be JSON
lines, objects with a field `text`.
"""

import hashlib
import lzma
from collections.abc import Iterator
from pathlib import Path

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.hashing import sha256_file
from pemt_jax.common.user_input.files import parse_json

ENDINGS = (".txt", ".txt.xz", ".jsonl")
# Input length of span corruption of a general text, with the end token, without a prompt: that of
# the mini T5's pretraining. On 128 it has 7.4 nats per token and not 4.6.
TOKENS = 64


def text_files(folder: str) -> list[Path]:
    """The `*.txt` and `*.txt.xz` files of a folder, by name."""
    place = storage.path(folder)
    found = sorted([*place.glob("*.txt"), *place.glob("*.txt.xz")])
    if not found:
        raise PemtError(f"{folder} has no text files, expected *.txt or *.txt.xz.")
    return found


def files_of(place: str) -> list[Path]:
    """The one file, or the text files of a folder.

    Raises:
      UsageError: there is no such file or folder, or the file has another ending.
    """
    path = storage.path(place)
    if path.is_dir():
        return text_files(place)
    if not path.is_file():
        raise UsageError(f"There is no {place}, expected a file of text or a folder of such files.")
    if not path.name.endswith(ENDINGS):
        raise UsageError(f"{place} is no text file, expected one that ends in {_or(ENDINGS)}.")
    return [path]


def general_text_task(place: str) -> str:
    """What the task of span corruption on this text is called: by its length and content.

    Raises:
      UsageError: as `files_of`.
    """
    digests = "".join(sha256_file(file) for file in files_of(place))
    return f"general_text_{TOKENS}_{hashlib.sha256(digests.encode()).hexdigest()[:12]}"


def paragraphs(path: Path) -> Iterator[str]:
    """The paragraphs of one text file, without empty ones.

    Raises:
      PemtError: a line of a .jsonl file is no object with a text.
    """
    opened = lzma.open if path.suffix == ".xz" else open
    with (
        storage.fetched(path) as file,
        opened(file, "rt", encoding="utf-8", errors="replace") as lines,
    ):
        for number, line in enumerate(lines, 1):
            if path.suffix == ".jsonl" and line.strip():
                line = _text_of(line, f"{path} line {number}")
            if line := line.strip():
                yield line


def _text_of(line: str, where: str) -> str:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise PemtError(f"{where} is no JSON ({error}).") from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise PemtError(f"{where} has no text, expected an object with a field 'text'.")
    return " ".join(row["text"].split())


def _or(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
