"""The command `cache`: what is in the cache folder, and removing what has long been unused.

    tokens        tokenised splits, one folder each                         pruned
    compiled      compiled training and decoding steps of JAX               pruned
    seqio         texts of tasks, which `prepare` writes                    kept
    rows          examples given to `from_rows`, as JSON lines              kept
    vocabularies  sentencepiece models made from a tokenizer.json           kept
    downloads     the files in the folder itself, such as the demo's data   kept

Whatever a killed process left half-written is pruned too. Last use is the time of the newest access
or change of a file; opening a tokenised split touches it. Where a file system records no accesses,
a compiled step counts as unused since it was compiled, and pruning costs a compilation.

Links below the cache folder are neither followed nor removed, and nothing is removed whose name is
not one that its writer gives.
"""

import contextlib
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.storage import cache_folder

FOLDERS = ("tokens", "compiled", "seqio", "rows", "vocabularies", "copies")
DAY = 24 * 60 * 60  # seconds
PRUNE_DAYS = 30.0
WRITER_DAYS = 1.0  # what is unfinished but younger may have a writer at work
SPLIT_NAME = re.compile(r".+-[0-9a-f]{20}")
# TemporaryDirectory of the token cache and of downloads; common.storage.replacing of the others.
UNFINISHED = (
    ".unfinished-*",
    "tokens/.unfinished-*",
    "seqio/*/.*.partial",
    "rows/.*.partial",
    "vocabularies/.*.partial",
    "copies/*/.*.partial",
)


def print_or_prune(names: Sequence[str], prune: bool, older_than: float | None) -> None:
    """Print what the cache holds or, with `prune`, remove what was unused for that many days.

    Raises:
      UsageError: arguments that do not fit together. PemtError: a file cannot be removed.
    """
    if names:
        raise UsageError(f"Found {names[0]!r} after cache, expected no name.")
    if older_than is not None and not prune:
        raise UsageError("Found --older_than without --prune, expected both.")
    if older_than is not None and not older_than >= 0:
        raise UsageError(f"--older_than is {older_than:g}, expected a number of days, 0 or more.")
    root = cache_folder()
    if prune:
        print(pruned(root, PRUNE_DAYS if older_than is None else older_than))
    else:
        print(table(root))


def table(root: Path) -> str:
    """One line per folder of the cache: how many entries, their size, when one was last used."""
    lines = [("FOLDER", "ENTRIES", "SIZE", "LAST USE")]
    for name in FOLDERS:
        folder = root / name
        if folder.is_symlink():
            lines.append((name, "-", "-", "(a link, left alone)"))
        elif folder.is_dir():
            lines.append(_line(name, list(folder.iterdir())))
    if root.is_dir():
        lines.append(_line("downloads", [path for path in root.iterdir() if not path.is_dir()]))
    name, entries, size, _ = (max(map(len, column)) for column in zip(*lines, strict=True))
    rows = [
        f"{line[0].ljust(name)}  {line[1].rjust(entries)}  {line[2].rjust(size)}  {line[3]}"
        for line in lines
    ]
    return "\n".join([str(root), *rows])


def _line(name: str, paths: Sequence[Path]) -> tuple[str, str, str, str]:
    day = time.strftime("%Y-%m-%d", time.localtime(last_use(*paths))) if paths else "-"
    return name, str(len(paths)), _mebibytes(size(*paths)), day


def pruned(root: Path, days: float) -> str:
    """Remove what has not been used for `days` days; return what was freed, one line per kind."""
    lines, total = [], 0
    for kind, entries, limit in (
        ("tokenised splits", token_splits(root), days),
        ("compiled steps", compiled_steps(root), days),
        ("copies of objects", copies(root), days),
        ("unfinished writes", unfinished(root), max(days, WRITER_DAYS)),
    ):
        old = [entry for entry in entries if last_use(*entry) <= time.time() - limit * DAY]
        freed = sum(size(*entry) for entry in old)
        for path in (path for entry in old for path in entry):
            _remove(path)
        if old:
            lines.append(f"{kind}: {len(old)}, {_mebibytes(freed)}")
            total += freed
    if not lines:
        return f"Nothing to prune in {root}: everything was used in the last {days:g} days."
    return "\n".join([*lines, f"Freed {_mebibytes(total)} in {root}, unused for {days:g} days."])


def token_splits(root: Path) -> list[tuple[Path]]:
    """The folders of tokenised splits: named after their key, with nothing but their own files."""
    return [
        (path,)
        for path in _found(root, "tokens/*")
        if path.is_dir()
        and SPLIT_NAME.fullmatch(path.name)
        and all(
            (file.name == "meta.json" or file.suffix == ".npy")
            and stat.S_ISREG(file.lstat().st_mode)
            for file in path.iterdir()
        )
    ]


def compiled_steps(root: Path) -> list[tuple[Path, ...]]:
    """The files of JAX's compilation cache: each step, with the file of its last use if any."""
    steps = [path for path in _found(root, "compiled/*-cache") if path.is_file()]
    used = {path.name: path for path in _found(root, "compiled/*-atime") if path.is_file()}
    names = [f"{path.name.removesuffix('-cache')}-atime" for path in steps]
    return [
        (path, used[name]) if name in used else (path,)
        for path, name in zip(steps, names, strict=True)
    ]


def copies(root: Path) -> list[tuple[Path]]:
    """The folders with a copy of a file that is in a bucket, see common.storage.local_copy."""
    return [
        (path,)
        for path in _found(root, "copies/*")
        if path.is_dir() and re.fullmatch("[0-9a-f]{20}", path.name)
    ]


def unfinished(root: Path) -> list[tuple[Path]]:
    """What processes have left half-written, or are writing now."""
    return [(path,) for pattern in UNFINISHED for path in _found(root, pattern)]


def _found(root: Path, pattern: str) -> list[Path]:
    """Paths below `root` that match, sorted, without links and what is behind links."""
    depth = len(Path(pattern).parts)
    return [
        path
        for path in sorted(root.glob(pattern))
        if not any(part.is_symlink() for part in (path, *path.parents[: depth - 1]))
    ]


def size(*paths: Path) -> int:
    """Bytes of files and of all files below folders."""
    return sum(status.st_size for path in paths for status in _files(path))


def last_use(*paths: Path) -> float:
    """Time of the newest access or change of a file, in seconds since 1970.

    Files are the given ones and all below given folders. Without any it is the time of the folders'
    own last change, or infinity where those have gone meanwhile.
    """
    times = [max(status.st_atime, status.st_mtime) for path in paths for status in _files(path)]
    if not times:
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                times.append(path.lstat().st_mtime)
    return max(times, default=math.inf)


def _files(path: Path) -> Iterator[os.stat_result]:
    """The status of a file, or of all files below a folder; links are left out."""
    below = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    for file in [path] if path.is_symlink() or not path.is_dir() else below:
        with contextlib.suppress(FileNotFoundError):  # other processes remove files too
            status = file.lstat()
            if stat.S_ISREG(status.st_mode):
                yield status


def _remove(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise PemtError(f"Cannot remove {error.filename or path}: {error.strerror}.") from error


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
