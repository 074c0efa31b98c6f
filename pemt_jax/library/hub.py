"""Experts shared through the Hugging Face hub: a repository there is a library, a folder an expert.

`repo` is OWNER/NAME, to pull from also OWNER/NAME@REVISION, or the path of a folder, which then
stands for a repository (a shared disk or a place in a bucket).
What is pulled is looked at before it is downloaded (two plain files an expert), and verified (both
hashes, the card, every shape) before any of it enters the library. huggingface_hub is an extra of
this package; it finds the user's token where `hf auth login` has put it.
"""

import dataclasses
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.library.artefact import CARD, check_name, read_card
from pemt_jax.library.expert import Expert, expert_folder, expert_names, read_expert
from pemt_jax.library.hub_names import client
from pemt_jax.library.transfer import FILES, add_expert, check_expert_folder, copy_expert

log = logging.getLogger(__name__)


def push_expert(library: str | os.PathLike, name: str, repo: str, dtype: str | None = None) -> str:
    """Upload the expert `name` to `repo` and return where it is; `repo` is made if there is none.

    Args:
      dtype: "float32" or "bfloat16", in which `repo` has the weights; None for the library's.

    Raises:
      UsageError: there is no such expert, or `repo` has one of that name, or no such dtype.
      PemtError: it is damaged, or the hub refuses.
    """
    folder = expert_folder(library, name)
    check_expert_folder(folder)
    read_expert(folder, name)
    if _is_folder(repo):
        copy_expert(folder, storage.path(repo) / name, name, portable=True, dtype=dtype)
        return f"{repo}/{name}"
    with client(repo) as hub:
        hub.create_repo(repo, private=True, exist_ok=True)  # its owner may open it to others
        files = hub.list_repo_files(repo)
    if any(file.startswith(f"{name}/") for file in files):
        raise UsageError(f"{repo} holds an expert {name!r} already, expected another name.")
    with tempfile.TemporaryDirectory(prefix="pemt_jax.") as place:
        copy_expert(folder, copy := Path(place) / name, name, portable=True, dtype=dtype)
        with client(repo) as hub:
            hub.upload_folder(
                repo_id=repo,
                folder_path=str(copy),
                path_in_repo=name,
                commit_message=f"Expert {name}",
            )
    return f"{repo}/{name}"


@dataclasses.dataclass(frozen=True)
class Pulled:
    """What became of the experts that were asked for.

    Attributes:
      added: those that are new in the library.
      present: names of those that it had already, with the same weights.
      taken: names under which it has something else, which stays.
    """

    added: list[Expert]
    present: list[str]
    taken: list[str]


def pull_experts(library: str | os.PathLike, repo: str, name: str | None = None) -> Pulled:
    """Copy the expert `name` of `repo`, or all of them, into the library.

    Raises:
      UsageError: there is none. PemtError: a new one is damaged or brings anything but its two
        files, or the hub refuses; nothing enters the library then.
    """
    if _is_folder(repo):
        return _add_all(library, storage.path(repo), _chosen(expert_names(repo), repo, name))
    source, _, revision = repo.partition("@")
    with client(repo) as hub:
        found = hub.model_info(source, revision=revision or None)
    files = [file.rfilename for file in found.siblings or ()]
    names = _chosen(
        [
            file.partition("/")[0]
            for file in files
            if file.count("/") == 1 and file.endswith("/card.json")
        ],
        repo,
        name,
    )
    new = [name for name in names if not _is_there(library, name)]
    wanted = [f"{name}/{file}" for name in new for file in FILES]
    for file in files:
        if file.startswith(tuple(f"{name}/" for name in new)) and file not in wanted:
            raise PemtError(
                f"{repo} brings {file!r}, expected {' and '.join(FILES)} and nothing "
                "else in an expert's folder."
            )
    with tempfile.TemporaryDirectory(prefix="pemt_jax.") as folder:
        with client(repo) as hub:
            cards = [f"{name}/{CARD}" for name in names if name not in new]
            # Of the commit that was looked at, wherever the branch is now.
            hub.snapshot_download(
                source, revision=found.sha, allow_patterns=wanted + cards, local_dir=folder
            )
        log.info("%s of the Hugging Face hub is %s@%s.", repo, source, found.sha)
        return _add_all(library, Path(folder), names)


def _add_all(library: str | os.PathLike, folder: Path, names: Iterable[str]) -> Pulled:
    pulled = Pulled([], [], [])
    new = []
    for name in names:
        if not _is_there(library, name):
            new.append(name)
        elif _weights(storage.path(library) / name) == _weights(folder / name) != "":
            pulled.present.append(name)
        else:
            pulled.taken.append(name)
    for name in new:  # all are good before the first one enters
        check_expert_folder(folder / name)
        read_expert(folder / name, name)
    pulled.added.extend(add_expert(library, folder / name, name) for name in new)
    return pulled


def _is_there(library: str | os.PathLike, name: str) -> bool:
    return storage.current(storage.path(library) / name).exists()


def _weights(folder: Path) -> str:
    """The sha256 of an expert's weights and base, by its card; "" where there is no good one."""
    try:
        card = read_card(folder)
    except PemtError:
        return ""
    return f"{card.sha256} {card.base_fingerprint}"


def _is_folder(repo: str) -> bool:
    """Whether it stands for a repository itself: a folder, or any place in a bucket."""
    return storage.is_remote(repo) or Path(repo).is_dir()


def _chosen(names: Iterable[str], repo: str, name: str | None) -> list[str]:
    names = sorted(set(names))
    if name is not None and name not in names:
        raise UsageError(
            f"There is no expert {name!r} in {repo}, which holds "
            f"{', '.join(names) or 'none'}{nearest(name, names)}."
        )
    chosen = names if name is None else [name]
    if not chosen:
        raise UsageError(f"There are no experts in {repo}, expected folders with a card.json.")
    for each in chosen:
        check_name(each)
    return chosen
