"""A prompt as tokens of the vocabulary: <prompt_0>, <prompt_1>, ... in Hugging Face's files.

The tokens follow those that the tokenizer has. T5's embedding has more rows than that (32,128 for
32,100 tokens), and they take these rows first. spiece.model stays as it is: T5's sentinels follow
its pieces, and a piece more would move them. The tokens are added where transformers adds those of
a user: in tokenizer_config.json (spiece.model), tokenizer.json, and in added_tokens.json for
transformers before 4.34.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.user_input.files import read_object

CONFIG, ADDED, FAST = "tokenizer_config.json", "added_tokens.json", "tokenizer.json"


def prompt_token(i: int) -> str:
    return f"<prompt_{i}>"


def next_token(folder: Path, vocab_size: int) -> int:
    """The first id that no token has.

    Args:
      folder: of a base, with the files of its tokenizer.
      vocab_size: of its vocabulary, sentinels included.

    Raises:
      UsageError: there is a <prompt_0> already. PemtError: a file is damaged.
    """
    tokens = _added(_read(folder / CONFIG), _read(folder / ADDED), _read(folder / FAST))
    if prompt_token(0) in tokens:
        raise UsageError(
            f"The tokenizer in {folder} has a token {prompt_token(0)}, expected a base into which "
            "no expert was merged."
        )
    return max([vocab_size, *(number + 1 for number in tokens.values())])


def add_tokens(folder: Path, tokens: Mapping[str, int]) -> None:
    """Add tokens, by id, to the tokenizer files in `folder`."""
    config, added, fast = (_read(folder / name) for name in (CONFIG, ADDED, FAST))
    entries = {str(number): _entry(token) for token, number in tokens.items()}
    # A file that is there lists all of its tokens; where none is, transformers knows T5's own.
    config["added_tokens_decoder"] = config.get("added_tokens_decoder", {}) | entries
    _write(folder / CONFIG, config)
    _write(folder / ADDED, added | dict(tokens))
    if fast:
        known = fast.get("added_tokens") or []
        more = [{"id": number} | _entry(token) for token, number in tokens.items()]
        _write(folder / FAST, fast | {"added_tokens": [*known, *more]})


def copy_files(base: Path, folder: Path, names: tuple[str, ...]) -> None:
    """Copy those of a base's tokenizer files that there are."""
    for file in (base / name for name in names):
        if file.is_file():
            with storage.fetched(file) as copy:
                shutil.copyfile(copy, folder / file.name)


def _entry(token: str) -> dict[str, Any]:
    """A token that is matched as it stands, without regard to spaces."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": token, **flags, "special": True}


def _added(config: dict, added: dict, fast: dict) -> dict[str, int]:
    """The tokens that the files add to the vocabulary."""
    try:
        return {
            **{str(token): int(number) for token, number in added.items()},
            **{
                str(entry["content"]): int(number)
                for number, entry in config.get("added_tokens_decoder", {}).items()
            },
            **{str(entry["content"]): int(entry["id"]) for entry in fast.get("added_tokens") or []},
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PemtError(
            f"The tokenizer files of the base list added tokens in an unknown way ({error!r}), "
            "expected those of transformers."
        ) from error


def _read(path: Path) -> dict:
    """The object in a JSON file; empty where there is no file."""
    return read_object(path, "a file of the base's tokenizer") if path.is_file() else {}


def _write(path: Path, values: dict) -> None:
    with storage.replacing(path) as partial:
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        partial.write_text(text, encoding="utf-8")
