"""Text and JSON in files that people write or download: whatever is wrong is one sentence.

Such a file may be missing, a folder or a pipe, unreadable, enormous, in another encoding than UTF-8
(a byte-order mark is accepted), no JSON, or JSON nested so deep that Python's parser gives up.
"""

import json
from pathlib import Path
from typing import Any

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, nearest

LARGEST = 2**30  # bytes of a file that is read at once


class NotText(ValueError):
    """Bytes that are no UTF-8 text; the message says where."""


def read_text(path: Path, expected: str, largest: int = LARGEST) -> str:
    """The text of a file.

    Args:
      path: the file, which may be in a bucket.
      expected: what should be there, for the sentence: "a card".
      largest: in bytes.

    Raises:
      PemtError: it cannot be read, or is no text.
    """
    try:
        if storage.check_plain(path).is_dir():
            raise PemtError(f"{path} is a folder, expected {expected}.")
        if (size := path.stat().st_size) > largest:
            raise PemtError(
                f"{path} has {size} bytes, expected {expected} of at most {largest} bytes."
            )
        return decoded(path.read_bytes())
    except FileNotFoundError as error:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = nearest(path.name, (name for name in siblings if name != path.name))
        state = f"{path} is a link to nothing" if path.is_symlink() else f"There is no file {path}"
        raise PemtError(f"{state}, expected {expected}{near}.") from error
    except OSError as error:
        reason = storage.reason(error)
        raise PemtError(f"{path} cannot be read ({reason}), expected {expected}.") from error
    except NotText as error:
        raise PemtError(f"{path} is no UTF-8 text ({error}), expected {expected}.") from error


def decoded(content: bytes) -> str:
    """UTF-8 text, its byte-order mark left out; NotText where it is in another encoding."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise NotText("it looks like UTF-16") from error
        line = content.count(b"\n", 0, error.start) + 1
        raise NotText(f"byte 0x{content[error.start]:02x} in line {line}") from error


def read_json(path: Path, expected: str) -> Any:
    """The value in a JSON file; `read_text` for the arguments.

    Raises:
      PemtError: the file cannot be read, or is no JSON.
    """
    try:
        return parse_json(read_text(path, expected))
    except ValueError as error:
        raise PemtError(f"{path} is no JSON ({error}), expected {expected}.") from error


def read_object(path: Path, expected: str) -> dict[str, Any]:
    """As `read_json`, where anything but an object is refused too."""
    value = read_json(path, expected)
    if not isinstance(value, dict):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise PemtError(f"{path} holds {kind}, expected {expected}, which is a JSON object.")
    return value


def parse_json(text: str) -> Any:
    """The value of a JSON text; ValueError with a short reason.

    Half a surrogate pair is refused, for no UTF-8 can hold it.
    """
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except json.JSONDecodeError as error:
        at = f" in line {error.lineno}, column {error.colno}" if error.lineno > 1 else ""
        at = at or f" in column {error.colno}"
        raise ValueError(f"{error.msg[:1].lower()}{error.msg[1:]}{at}") from error
    except UnicodeEncodeError as error:
        raise ValueError("it has half of a surrogate pair, \\ud...") from error
    except ValueError as error:  # Python converts no longer ones
        raise ValueError("it has a number of thousands of digits") from error
    return value
