"""The gin files of a run as text: what identifies it, and the modules that they import."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

import pemt_jax.configs
from pemt_jax.common.errors import UsageError

IMPORT = re.compile(r"(?:import|from) ([\w.]+)")
OURS = {"__gin__", "pemt_jax"}


def gin_text(name: str) -> list[str]:
    """The texts of a gin file and of those it includes, without lines of comment.

    Raises:
      UsageError: there is no such file.
    """
    places = (Path(name), Path(pemt_jax.configs.__file__).parent / name)
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        raise UsageError(f"There is no gin file {name}, expected one here or in configs/.")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    included = [
        line.split(None, 1)[1].strip("'\"") for line in lines if line.startswith("include ")
    ]
    return ["\n".join(lines), *(text for other in included for text in gin_text(other))]


def file_hash(gin_files: Iterable[str], facts: object) -> str:
    """Hex digest of facts, and of gin files with what they include."""
    texts = [gin_text(file) for file in gin_files]
    text = json.dumps([facts, texts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def users_modules(gin_files: Iterable[str]) -> list[str]:
    """The modules that gin files import beside the package's: they register the user's tasks."""
    lines = [line for file in gin_files for text in gin_text(file) for line in text.splitlines()]
    names = [found[1] for line in lines if (found := IMPORT.match(line))]
    return list(dict.fromkeys(name for name in names if name.split(".")[0] not in OURS))
