"""What was trained, as a folder: `weights.safetensors` and `card.json`, for experts and targets.

The card says what the weights are and what they depend on: method, task, prompt text, the
fingerprint of the base, the experts used with their sha256, metrics, versions. It also holds the
sha256 of the weights and of itself, so that a flipped byte anywhere in the folder is found before
a number is used. A folder is written beside its place and takes it whole (common/storage.py); one
that is no artefact of the same kind is never touched.
"""

import dataclasses
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError, nearest, shortened, warn
from pemt_jax.common.hashing import sha256_file
from pemt_jax.common.storage import current, replacing, replacing_folder
from pemt_jax.common.user_input.files import read_object
from pemt_jax.common.versions import versions
from pemt_jax.common.weights import load_weights, save_weights

WEIGHTS = "weights.safetensors"
CARD = "card.json"
KINDS = ("expert", "target")
EXPECTED = {  # of the fields that are no texts
    "kind": "'expert' or 'target'",
    "experts": "a list of names with their sha256",
    "rank": "a whole number, 0 or more",
    "config": "an object",
    "metrics": "an object of finite numbers",
    "versions": "an object of texts",
}


@dataclasses.dataclass(frozen=True)
class Card:
    """What `card.json` says. The last two fields are filled in by `write_artefact`."""

    kind: str  # "expert" or "target"
    method: str
    task: str
    base_fingerprint: str  # weights.fingerprint of the base's parameters
    base_name: str = ""
    description: str = ""  # the text of the task prompt
    experts: tuple[tuple[str, str], ...] = ()  # (name, sha256 of its weights) in gate order
    rank: int = 0
    config: Mapping[str, object] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sha256: str = ""  # of weights.safetensors


def write_artefact(folder: str | os.PathLike, arrays: Mapping[str, np.ndarray], card: Card) -> Card:
    """Write `arrays` and `card` to `folder`, whole or not at all, and return the card as written.

    An artefact of the same kind that stands there is replaced. PemtError when something else
    does, when a metric is not finite, or when the folder cannot be written.
    """
    folder = storage.path(folder).resolve()
    if card.kind not in KINDS:
        raise UsageError(f"{card.kind!r} is no kind of artefact, expected one of {KINDS}.")
    check_replaceable(folder, card.kind)
    try:
        with replacing_folder(folder) as partial:
            save_weights(partial / WEIGHTS, arrays)
            card = dataclasses.replace(
                card, versions=versions(), sha256=sha256_file(partial / WEIGHTS)
            )
            write_card(partial / CARD, card)
    except OSError as error:
        raise PemtError(f"Cannot write {folder}: {storage.reason(error)}.") from error
    return card


def read_artefact(
    folder: str | os.PathLike, base_fingerprint: str | None = None
) -> tuple[dict[str, np.ndarray], Card]:
    """Return the arrays and the card of `folder` after verifying both.

    PemtError when it is missing, damaged, or depends on another base than `base_fingerprint`.
    """
    try:
        return _read(storage.path(folder), base_fingerprint)
    except PemtError:
        if not storage.is_remote(folder):
            raise
        # In a bucket it may have been replaced meanwhile; what is damaged is found damaged again.
        return _read(storage.path(folder), base_fingerprint)


def _read(folder: Path, base_fingerprint: str | None) -> tuple[dict[str, np.ndarray], Card]:
    folder = current(folder)
    card = read_card(folder)
    if base_fingerprint is not None and card.base_fingerprint != base_fingerprint:
        raise PemtError(
            f"{folder} was trained on the base {card.base_name!r} with fingerprint "
            f"{card.base_fingerprint[:12]}, expected the base of this run, "
            f"{base_fingerprint[:12]}."
        )
    path = folder / WEIGHTS
    if not path.is_file():
        raise PemtError(f"{folder} has no {WEIGHTS}, expected one beside its {CARD}.")
    try:
        with storage.fetched(path) as file:
            if (found := sha256_file(file)) != card.sha256:
                raise PemtError(
                    f"{path} is damaged or exchanged: {file.stat().st_size} bytes with sha256 "
                    f"{found[:12]}, expected {card.sha256[:12]} as in its {CARD}."
                )
            return load_weights(file), card
    except OSError as error:
        raise PemtError(f"Cannot read {path}: {storage.reason(error)}.") from error


def read_card(folder: str | os.PathLike) -> Card:
    """Return the verified card of `folder`, the weights unread. PemtError when it is no good."""
    folder = current(storage.path(folder))
    path = folder / CARD
    if not path.is_file():
        names = artefact_names(folder.parent)
        if _has_card(folder):
            raise PemtError(f"{path} is no plain file that can be read, expected a card.")
        state = "is no folder" if folder.exists() else "does not exist"
        state = f"has no {CARD}" if folder.is_dir() else state
        raise PemtError(f"{folder} {state}, expected an artefact{nearest(folder.name, names)}.")
    return read_card_file(path)


def artefact_names(folder: Path) -> list[str]:
    """Names of the artefacts in `folder`, sorted."""
    return [name for name in storage.folder_names(folder) if _has_card(current(folder / name))]


def _has_card(folder: Path) -> bool:
    """Whether there is a card, be it one that cannot be read."""
    card = folder / CARD
    if storage.is_remote(folder):
        return card.is_file()
    try:
        card.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # the folder may not be searched
        return True
    return True


def write_card(path: Path, card: Card) -> None:
    """Write a card with the sha256 of itself. PemtError when it cannot be written as JSON."""
    with replacing(path) as partial:
        partial.write_text(_to_json(card), encoding="utf-8")


def read_card_file(path: Path) -> Card:
    """Return the verified card in the file `path`. PemtError when it is no good."""
    fields = read_object(path, "a card")
    if fields.pop("card_sha256", None) != _digest(fields):
        raise PemtError(
            f"{path} is damaged or edited by hand: its content does not have the "
            "sha256 that it names."
        )
    known = [field.name for field in dataclasses.fields(Card)]
    for name in known:
        if not _has_type(fields.get(name), name):
            found, wanted = shortened(fields.get(name)), EXPECTED.get(name, "a text")
            raise PemtError(f"{path} has {name} = {found}, expected {wanted}.")
    fields["experts"] = tuple((expert["name"], expert["sha256"]) for expert in fields["experts"])
    return Card(**{name: fields[name] for name in known})


def check_name(name: str) -> None:
    """UsageError unless `name` can name a folder inside another and nothing else."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", str(name)):
        raise UsageError(
            f"{name!r} is no name, expected letters, digits, '_', '-' and '.' and "
            "none of '-' and '.' in front."
        )


def _has_type(value: object, name: str) -> bool:
    if name == "experts":
        return isinstance(value, list) and all(
            isinstance(e, dict)
            and isinstance(e.get("name"), str)
            and isinstance(e.get("sha256"), str)
            for e in value
        )
    if name == "rank":
        return type(value) is int and value >= 0
    if name == "config":
        return isinstance(value, dict)
    if name == "metrics":
        return isinstance(value, dict) and all(map(is_finite, value.values()))
    if name == "versions":
        return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
    if name == "kind":
        return value in KINDS
    return isinstance(value, str)


def is_finite(value: Any) -> bool:
    """Whether a value of JSON is a number that a float can hold."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _to_json(card: Card) -> str:
    fields = dataclasses.asdict(card)
    fields["experts"] = [{"name": name, "sha256": sha256} for name, sha256 in card.experts]
    try:
        fields["metrics"] = {name: float(value) for name, value in card.metrics.items()}
        fields = json.loads(json.dumps(fields, allow_nan=False))  # as a reader will see it
    except (TypeError, ValueError) as error:
        raise PemtError(f"The card of {card.task!r} cannot be written as JSON: {error}.") from error
    return json.dumps(fields | {"card_sha256": _digest(fields)}, indent=2) + "\n"


def _digest(fields: Mapping[str, object]) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def finite_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that a card can hold, after a warning that names the others."""
    finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    if others := sorted(metrics.keys() - finite.keys()):
        warn(
            f"The metric {others[0]} is {metrics[others[0]]}, expected a finite number; the card "
            f"leaves out {', '.join(others)}."
        )
    return finite


def brief(metrics: Mapping[str, float]) -> dict[str, str]:
    """Metrics as a person reads them: {name: four significant digits} of metrics, each number once.

    Left out are the cross entropy where it is the loss, and the average where it is that of one
    metric.
    """
    shown = dict(metrics)
    if "loss" in shown and shown.get("cross_entropy") == shown["loss"]:
        del shown["cross_entropy"]
    others = {name: value for name, value in shown.items() if name != "average"}
    if shown.get("average") in others.values():
        shown = others
    return {name: f"{value:.4g}" for name, value in shown.items()}


def check_replaceable(folder: Path, kind: str) -> None:
    """Raise PemtError when `folder` holds anything but an artefact of this kind."""
    if not folder.exists():
        return
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else None
    if names == []:
        return
    if names != [CARD, WEIGHTS]:
        raise PemtError(
            f"{folder} exists and is no artefact, expected a new name or an artefact "
            "to replace; nothing was written."
        )
    if (found := read_card(folder).kind) != kind:
        raise PemtError(
            f"{folder} holds an artefact of kind {found!r}, expected {kind!r}; nothing was written."
        )
