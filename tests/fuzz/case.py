"""A bad input as data: files, a command, and what must come of it.

In arguments and texts $HERE is the case's own folder (the working directory too), $BASE, $LIBRARY,
$SOURCE, $TARGET and $GIN are the tiny system's (tests/tiny_system.py), $T5X and $PEFT its base as
a T5X checkpoint and an adapter of it, $DATA is tests/data, and $CANARY is a file that appears when
something is executed. The values of `files` are texts, bytes, or writers made by
the functions below; a path that ends with "/" is an empty folder.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import string
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Writer = Callable[[Path, Mapping[str, str]], None]
WEIGHTS = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Case:
    """One command and what is promised of it."""

    name: str
    argv: tuple[str, ...]  # as of pemt-jax; or make_vocabulary's; ("-c", CODE) is Python
    code: int | tuple[int, ...] = 2  # or either of several
    says: tuple[str, ...] = ()  # what was found, by words of the sentence; "a|b" is either
    never: tuple[str, ...] = ()  # words that would be untrue
    files: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    may: tuple[str, ...] = ()  # patterns of the paths that it may create or change
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stdin: bytes = b""
    stdout: str = ""  # "closed": a pipe that nobody reads
    prints: bool = False  # whether stdout may say something beside the sentence
    fresh: bool = False  # a new interpreter, for what is read when modules are imported
    largest_file: int | None = None  # bytes that a file may grow to, as on a full disk
    interrupt_after: float | None = None  # seconds until it gets Ctrl-C
    seconds: float = 20
    gib: float = 2  # of memory that is its own
    quick: bool = False  # one of the sample that every test run tries
    category: str = ""


def case(name: str, command: str | tuple, *says: str, code: int = 2, **more) -> Case:
    """A case; a command in one text is split at its spaces."""
    argv = tuple(command.split()) if isinstance(command, str) else tuple(command)
    return Case(name, argv, code, says, **more)


def train(name: str, *says: str, code: int = 2, macros: Mapping | None = None, **more) -> Case:
    """A training command of the tiny system with these macros; None leaves one out."""
    values = {
        "MODEL_DIR": "run",
        "MIXTURE_OR_TASK_NAME": "tiny_mood",
        "INITIAL_CHECKPOINT_PATH": "$BASE",
        "LIBRARY": "library",
        **(macros or {}),
    }
    flags = (f"--gin.{name}={value}" for name, value in values.items() if value is not None)
    return Case(name, ("train", "--gin_file=$GIN", *flags), code, says, **more)


def filled(text: str, places: Mapping[str, str]) -> str:
    return string.Template(text).safe_substitute(places)


def write(folder: Path, files: Mapping[str, Any], places: Mapping[str, str]) -> None:
    """Put the files of a case into its folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path, places)
        elif name.endswith("/"):
            path.mkdir(exist_ok=True)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(filled(content, places), encoding="utf-8", errors="surrogatepass")


def fifo(path: Path, places: Mapping[str, str]) -> None:
    os.mkfifo(path)


def piped(script: str) -> Writer:
    """A pipe with a program at its other end, which a shell starts: "cat $PIPE"."""

    def put(path: Path, places: Mapping[str, str]) -> None:
        os.mkfifo(path)
        # In the folder above, for what the program writes is no file of the case.
        command = ["timeout", "60", "sh", "-c", script]
        subprocess.Popen(command, cwd=path.parent.parent, env={**os.environ, "PIPE": str(path)})

    return put


def link(to: str) -> Writer:
    return lambda path, places: path.symlink_to(filled(to, places))


def mode(bits: int, content: Any = "") -> Writer:
    """A file or, for a mapping, a folder of files, with these permissions."""

    def put(path: Path, places: Mapping[str, str]) -> None:
        if isinstance(content, Mapping):
            path.mkdir(exist_ok=True)
            write(path, content, places)
        else:
            write(path.parent, {path.name: content}, places)
        path.chmod(bits)

    return put


def copy(part: str, changes: Mapping[str, Any] | None = None, without: tuple = ()) -> Writer:
    """A copy of a part of the tiny system, in which some files are others, or left out.

    A change is what `files` has, or `edit(...)` and its like, which find what was there.
    """

    def put(path: Path, places: Mapping[str, str]) -> None:
        source = Path(filled(part, places))
        if source.is_dir():
            shutil.copytree(source, path, ignore=shutil.ignore_patterns(*without), symlinks=True)
        else:
            shutil.copy(source, path)
        for name, change in (changes or {}).items():
            if not hasattr(change, "edits"):
                _remove(path / name)
            write(path, {name: change}, places)

    return put


def untar(archive: str) -> Writer:
    """The content of an archive."""

    def put(path: Path, places: Mapping[str, str]) -> None:
        with tarfile.open(filled(archive, places)) as file:
            file.extractall(path, filter="data")

    return put


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def edit(function: Callable[[bytes], bytes]) -> Writer:
    """Change the bytes of a file that is there."""

    def put(path: Path, places: Mapping[str, str]) -> None:
        path.write_bytes(function(path.read_bytes()))

    put.edits = True  # type: ignore[attr-defined]
    return put


def fields(removed: tuple[str, ...] = (), **values: Any) -> Writer:
    """Change fields of a JSON object that is there; "a/b" is a field of a field."""

    def change(content: bytes) -> bytes:
        whole = json.loads(content)
        for name, value in values.items():
            *outer, last = name.split("/")
            inner = whole
            for part in outer:
                inner = inner[part]
            inner[last] = value
        for name in removed:
            *outer, last = name.split("/")
            inner = whole
            for part in outer:
                inner = inner[part]
            del inner[last]
        return json.dumps(whole).encode()

    return edit(change)


def sealed(seal: str, removed: tuple[str, ...] = (), **values: Any) -> Writer:
    """As `fields`, with the sha256 that the object has of itself made right again."""
    change = fields(removed, **values)

    def put(path: Path, places: Mapping[str, str]) -> None:
        change(path, places)
        whole = json.loads(path.read_text())
        whole.pop(seal, None)
        compact = {"separators": (",", ":")} if seal == "card_sha256" else {}
        text = json.dumps(whole, sort_keys=True, **compact)
        path.write_text(json.dumps(whole | {seal: hashlib.sha256(text.encode()).hexdigest()}))

    put.edits = True  # type: ignore[attr-defined]
    return put


def cut(share: float) -> Writer:
    """Keep the first part of a file."""
    return edit(lambda content: content[: int(len(content) * share)])


def flip(share: float = 0.5) -> Writer:
    """Change one bit of a file."""

    def change(content: bytes) -> bytes:
        at = int(len(content) * share)
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    return edit(change)
