"""Experts that enter and leave a library as folders: verified, whole, never over another.

An expert's folder holds card.json and weights.safetensors, two plain files, and nothing else. A
folder from elsewhere is taken only when that is so and when both hashes are right, and what enters
the library is a copy that was verified once more. A copy for others may have its numbers rounded.
"""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError
from pemt_jax.common.flat_config import choose
from pemt_jax.common.hashing import sha256_file
from pemt_jax.common.storage import new_folder, replacing
from pemt_jax.common.weights import load_weights, save_weights
from pemt_jax.config import DTYPES, MINI_T5
from pemt_jax.library.artefact import CARD, WEIGHTS, Card, check_name, read_card, write_card
from pemt_jax.library.expert import Expert, expert_folder, read_expert

FILES = (CARD, WEIGHTS)


def add_expert(
    library: str | os.PathLike, folder: str | os.PathLike, name: str | None = None
) -> Expert:
    """Copy the expert in `folder` into the library as `name`, by default the folder's own.

    Raises:
      UsageError: the library has something of that name, or the name cannot be one.
      PemtError: the folder holds anything but a whole expert, or cannot be copied.
    """
    folder = storage.path(folder).resolve()
    name = folder.name if name is None else name
    check_name(name)
    target = storage.path(library) / name
    copy_expert(folder, target, name)
    return read_expert(target, name)


def copy_expert(
    folder: Path, target: Path, name: str, portable: bool = False, dtype: str | None = None
) -> None:
    """Copy an expert's folder to the new folder `target`, verified before and after.

    Args:
      portable: leave this machine's paths out of the card.
      dtype: "float32" or "bfloat16", to which the weights are converted; None keeps them as they
        are. The metrics of the card stay those of the weights before.

    Raises:
      UsageError: another dtype, or something is at `target`. PemtError: no whole expert.
    """
    if dtype is not None:
        choose("--dtype", dtype, sorted(DTYPES))
    check_expert_folder(folder)
    read_expert(folder, name)
    folder = storage.current(folder)
    with new_folder(target) as partial:
        for file in FILES:
            with storage.fetched(folder / file) as source, replacing(partial / file) as path:
                shutil.copyfile(source, path, follow_symlinks=False)
        card = found = read_card(partial)
        if dtype is not None:
            arrays = load_weights(file := partial / WEIGHTS)
            save_weights(file, {path: a.astype(np.dtype(dtype)) for path, a in arrays.items()})
            card = dataclasses.replace(card, sha256=sha256_file(file))
        if portable:
            card = without_paths(card)
        if card != found:
            write_card(partial / CARD, card)
        check_expert_folder(partial)
        read_expert(partial, name)


def without_paths(card: Card) -> Card:
    """The card without paths of the machine that made it; the packaged base is named."""
    places = ("model_dir", "base", "library")
    config = {key: value for key, value in card.config.items() if key not in places}
    base = card.config.get("base")
    if base == storage.absolute(MINI_T5):
        config["base"] = Path(MINI_T5).name
    elif isinstance(base, str) and not os.path.isabs(base):
        config["base"] = base  # a name, the same everywhere
    return dataclasses.replace(card, config=config)


def remove_expert(library: str | os.PathLike, name: str) -> None:
    """Remove the expert `name` from the library.

    Raises:
      UsageError: there is none. PemtError: its folder holds anything but an expert, which is left
        as it is, or cannot be removed.
    """
    folder = expert_folder(library, name)
    check_expert_folder(folder)
    try:
        # Out of the library in one step: a listing never meets half an expert.
        storage.recover(place := storage.path(library) / name)
        storage.remove_folder(place)
    except OSError as error:
        raise PemtError(f"Cannot remove {folder}: {storage.reason(error)}.") from error


def check_expert_folder(folder: Path) -> Card:
    """Return the card of an expert's folder; PemtError when there is anything unexpected in it."""
    folder = storage.current(folder)
    if folder.is_symlink():
        raise PemtError(f"{folder} is a link, expected the folder of an expert itself.")
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in FILES or path.is_symlink() or not path.is_file():
            kind = "link" if path.is_symlink() else "file" if path.is_file() else "folder"
            raise PemtError(
                f"{folder} holds the {kind} {path.name!r}, expected the plain files "
                f"{' and '.join(FILES)} and nothing else."
            )
    card = read_card(folder)
    if card.kind != "expert":
        raise PemtError(f"{folder} is a {card.kind} artefact, expected an expert.")
    return card
