"""A run whose test split is not read before what it is a candidate for has been chosen.

A sweep trains a run per learning rate and chooses one on validation. It marks each run's folder
beforehand, and `evaluate` refuses any split but those of training and validation until the choice
that the mark names has been written and is this run's.
"""

import json
from pathlib import Path

from pemt_jax.common import storage
from pemt_jax.common.errors import UsageError
from pemt_jax.common.storage import replacing
from pemt_jax.common.user_input.files import read_object

MARK = "validation_only.json"
OPEN = ("train", "validation")


def hold_back(folder: Path, choice: str, candidate: str) -> None:
    """Mark a run's folder.

    Args:
      choice: the file of the choice, relative to `folder`.
      candidate: what the run is there.
    """
    with replacing(folder / MARK) as partial:
        content = {"choice": choice, "candidate": candidate}
        partial.write_text(json.dumps(content) + "\n", encoding="utf-8")


def check_split(folder: Path, split: str) -> None:
    """Raise UsageError for a split that is held back of the run, or artefact, in `folder`."""
    for place in (folder, folder.resolve().parent):
        if split in OPEN or not (place / MARK).is_file():
            continue
        mark = read_object(place / MARK, "what a run is a candidate for")
        file = storage.path(place / str(mark.get("choice")))
        chosen = read_object(file, "a choice").get("chosen") if file.is_file() else None
        if chosen != mark.get("candidate"):
            state = (
                "has not been chosen yet" if chosen is None else f"was not chosen ({chosen} was)"
            )
            raise UsageError(
                f"{folder} is a run of a sweep that {state} on validation, expected no reading of "
                f"its split {split!r}: python -m pemt_jax.sweep chooses and reads it."
            )
