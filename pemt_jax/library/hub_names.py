"""A base or an adapter by its name on the Hugging Face hub, as a folder on this machine.

    google/flan-t5-base             the branch main
    google/flan-t5-base@REVISION    a branch, a tag or a commit

A local folder of that name takes precedence. Otherwise the name is resolved to a commit, once in
a process, and cards record that commit: `HubModel.name` is again such a name, and a run that is
resumed or evaluated anywhere gets the same files.

The files are in huggingface_hub's cache, of which this is relied upon: a file appears there
complete and under its commit; it is downloaded once, by the one of several processes that has the
file's lock, while the others wait; and without a network (or with HF_HUB_OFFLINE=1) a branch means
the commit that it was when the cache saw it last.

Only files that are read here are downloaded. Their names are fixed, up to the numbers of shards:
none can lead out of the cache, whatever a repository lists.
"""

import contextlib
import dataclasses
import importlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, nearest
from pemt_jax.common.hashing import SUMS
from pemt_jax.parallel import processes

NAME = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)
COMMIT = re.compile("[0-9a-f]{40}")
TOKENIZER = (
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_N = 5 * "[0-9]"  # shards are numbered so

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Kind:
    """Which files of a repository are downloaded.

    Attributes:
      title: of the kind, for people.
      key: the file without which a repository is of another kind.
      others: files that may be beside it.
      weights: names of weight files; those of the first tuple of which there is one.
    """

    title: str
    key: str
    others: tuple[str, ...]
    weights: tuple[tuple[str, ...], ...]


BASE = Kind(
    "a Hugging Face T5",
    "config.json",
    (*TOKENIZER, SUMS),
    (
        ("model.safetensors", "model.safetensors.index.json", f"model-{_N}-of-{_N}.safetensors"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json", f"pytorch_model-{_N}-of-{_N}.bin"),
    ),
)
ADAPTER = Kind(
    "a PEFT adapter",
    "adapter_config.json",
    ("pemt_prompt.safetensors", "pemt_card.json", SUMS),
    (("adapter_model.safetensors",), ("adapter_model.bin",)),
)


@dataclasses.dataclass(frozen=True)
class HubModel:
    """A repository of the hub at one commit, and the folder that has its files."""

    repo: str
    commit: str
    folder: Path

    @property
    def name(self) -> str:
        """What finds it again: OWNER/NAME@COMMIT."""
        return f"{self.repo}@{self.commit}"


_found: dict[tuple[str, Kind], HubModel] = {}


def find(name: str | os.PathLike, kind: Kind = BASE) -> HubModel | None:
    """Download what `name` means on the hub, unless the cache has it; None for any other path.

    Raises:
      PemtError: there is neither a local folder nor such a repository, it has no such revision or
        is of another kind or without weights, the hub cannot be reached, or huggingface_hub is not
        installed.
    """
    name = os.fspath(name)
    match = NAME.fullmatch(name)
    if match is None or storage.current(Path(name)).exists():
        return None
    if (name, kind) not in _found:
        found = _download(name, match["repo"], match["revision"], kind)
        log.info("%s of the Hugging Face hub is %s, in %s.", name, found.name, found.folder)
        _found[name, kind] = _found[found.name, kind] = found
    return _found[name, kind]


def local_folder(path: str | os.PathLike, kind: Kind = BASE) -> str | os.PathLike:
    """Where the files of a path are: `path` itself, or the folder of a name on the hub.

    Raises:
      PemtError: as `find`.
    """
    found = find(path, kind)
    return found.folder if found else path


def lasting_name(path: str | os.PathLike) -> str:
    """A base as a card records it, to find it from anywhere: OWNER/NAME@COMMIT or a full path."""
    found = find(path)
    return found.name if found else storage.absolute(path)


def same_everywhere(path: str, recorded: str | None = None) -> str:
    """The base that all processes of a run use: OWNER/NAME@COMMIT, or `path` where it is no name.

    The first process resolves the name and downloads; the others then read the cache, or fill that
    of their own machine.

    Args:
      path: of the base, as the user gives it.
      recorded: the one with which the run began. Where `path` names its repository and no
        revision, it is used again, wherever the branch is now.

    Raises:
      PemtError: as `find`.
    """
    if not NAME.fullmatch(path):
        return path
    with processes.first_alone():
        found = find(_resumed(path, recorded)) if processes.is_first() else None
    name = processes.from_first(found.name if found else None)
    if name is None:
        return path
    find(name)
    return name


def _resumed(path: str, recorded: str | None) -> str:
    if not recorded or recorded.partition("@")[0] != path or storage.current(Path(path)).exists():
        return path
    log.info("The run continues with %s, its base from the start.", recorded)
    return recorded


def _download(name: str, repo: str, revision: str | None, kind: Kind) -> HubModel:
    with client(name) as hub:
        folder = Path(
            hub.snapshot_download(repo, revision=revision, allow_patterns=[kind.key, *kind.others])
        )
        if not COMMIT.fullmatch(commit := folder.name):
            raise PemtError(f"The hub says {commit!r} for {name}, expected the hash of a commit.")
        if not (folder / kind.key).is_file():
            raise PemtError(
                f"{repo} on the Hugging Face hub has no {kind.key} at commit {commit}, expected "
                f"{kind.title}."
            )
        for patterns in kind.weights:
            hub.snapshot_download(repo, revision=commit, allow_patterns=list(patterns))
            if any(found for pattern in patterns for found in folder.glob(pattern)):
                return HubModel(repo, commit, folder)
        names = " or ".join(patterns[0] for patterns in kind.weights)
        raise PemtError(
            f"There are no weights of {repo}@{commit} on the Hugging Face hub, or in {folder} if "
            f"it cannot be reached, expected {names}."
        )


@contextlib.contextmanager
def client(name: str) -> Iterator[Any]:
    """The client of the hub, to ask for `name`; whatever it raises becomes one sentence."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise PemtError(
            f"There is no local folder {name}, and the Hugging Face hub needs huggingface_hub, "
            f'which is not installed, expected after pip install "pemt_jax[hub]"{_similar(name)}.'
        ) from error
    try:
        yield hub.HfApi()
    except PemtError:
        raise
    except Exception as error:  # of whatever transport its version has
        raise PemtError(_sentence(error, name)) from error


def _sentence(error: Exception, name: str) -> str:
    """What an error of huggingface_hub means; its classes are known by name in every version."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    try:
        settings = importlib.import_module("huggingface_hub.constants")
        hub, cache = settings.ENDPOINT, settings.HF_HUB_CACHE
        offline = settings.HF_HUB_OFFLINE
    except (ImportError, AttributeError):
        hub, cache, offline = "the hub", "the hub's cache", False
    repo, _, revision = name.partition("@")
    if "GatedRepoError" in kinds:
        return (
            f"{repo} is gated on the Hugging Face hub, expected `hf auth login` of a user who has "
            f"access, see {hub}/{repo}."
        )
    if kinds & {"RepositoryNotFoundError", "HFValidationError"}:
        return (
            f"There is neither a local folder {name} nor a repository {repo} at {hub}, expected "
            f"one of them; a private repository needs `hf auth login`{_similar(name)}."
        )
    if "RevisionNotFoundError" in kinds:
        return (
            f"{repo} at {hub} has no revision {revision!r}, expected a branch, a tag or the hash "
            "of a commit."
        )
    if "LocalEntryNotFoundError" in kinds:
        state = "HF_HUB_OFFLINE forbids to ask" if offline else "there is no connection to"
        return (
            f"There is neither a local folder {name} nor a complete snapshot of it in {cache}, and "
            f"{state} {hub}, expected one of them{_similar(name)}."
        )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return f"The Hugging Face hub did not serve {name}: {reason}."


def _similar(name: str) -> str:
    """The nearest name among the local folders, for the end of a sentence."""
    place = Path(name)
    siblings = [path.name for path in place.parent.iterdir()] if place.parent.is_dir() else []
    return nearest(place.name, siblings)
