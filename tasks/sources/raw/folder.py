"""The folder of raw data, and where in it a data set is."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import gin

from pemt_jax.common import storage
from pemt_jax.common.errors import UsageError
from pemt_jax.tasks.sources.raw.layouts import Layout, layouts


@gin.configurable("raw_data")  # pyright: ignore[reportCallIssue]  gin has no types
def folder_of_raw_data(folder: str | None = None) -> str | None:
    """The folder of raw data: gin's `raw_data.folder`, else $PEMT_JAX_RAW_DATA."""
    return folder or os.environ.get("PEMT_JAX_RAW_DATA")


def found(name: str) -> tuple[Layout, Path] | None:
    """The layout in which a data set of TFDS is in the folder of raw data, and the folder of its
    files; None where no file of it is there.

    Raises:
      UsageError: there is no such folder.
    """
    root = folder_of_raw_data()
    if not root or not layouts(name):
        return None
    if not storage.path(root).is_dir():
        raise UsageError(
            f"The folder of raw data {root} does not exist, expected one with data sets as their "
            "authors distribute them (raw_data.folder or PEMT_JAX_RAW_DATA)."
        )
    for layout in layouts(name):
        for folder in layout.folders:
            place = _inside(storage.path(root), folder.split("/"))
            if place and any(file(place / part).is_file() for part in layout.files.values()):
                return layout, place
    return None


def expected(name: str) -> str:
    """For a sentence about missing data: which files would be read instead, if a folder is set."""
    root = folder_of_raw_data()
    if not root or not layouts(name):
        return ""
    layout = layouts(name)[0]
    first = next(iter(layout.files.values()))
    return f", or {layout.suite}'s {layout.folders[0]}/{first} and its other files in {root}"


def file(path: Path) -> Path:
    """The path of a file, compressed or not: as it is there, else as it is distributed."""
    other = path.with_name(
        path.name.removesuffix(".gz") if path.suffix == ".gz" else f"{path.name}.gz"
    )
    return other if other.is_file() and not path.is_file() else path


def _inside(folder: Path, parts: Sequence[str]) -> Path | None:
    """A folder below another, by names that may differ in case, hyphens and underscores."""
    for part in parts:
        if (folder / part).is_dir():
            folder = folder / part
            continue
        alike = [child for child in sorted(folder.glob("*")) if _plain(child.name) == _plain(part)]
        alike = [child for child in alike if child.is_dir()]
        if not alike:
            return None
        folder = alike[0]
    return folder


def _plain(name: str) -> str:
    return re.sub("[-_]", "", name.casefold())
