"""MODEL_DIR under T5X: whose it is, said before T5X restores anything from it.

T5X goes on from whatever checkpoint is in MODEL_DIR. What the run there is stands beside the
checkpoints, in t5x_run.json, and is written before the first of them: the same values as the
identity of this package's checkpoints. It stands in ARTEFACT_DIR too, where that is another folder.
"""

import atexit
import contextlib
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from pemt_jax.checkpoints.identity import difference
from pemt_jax.common.errors import UsageError
from pemt_jax.common.storage import replacing
from pemt_jax.common.user_input.files import read_object
from pemt_jax.common.writing.contents import check_outside
from pemt_jax.library.artefact import CARD, read_card
from pemt_jax.parallel import processes
from pemt_jax.runs.config_file import CONFIG
from pemt_jax.runs.model_dir import T5X_RUN, alone, has_t5x_checkpoints, is_config_of_run, is_of_t5x
from pemt_jax.runs.publish import ARTEFACT, BASE

leases = contextlib.ExitStack()  # of this process


def check_folder(setting: str, folder: Path) -> None:
    """Raise UsageError for a folder that a run under T5X would spoil."""
    check_outside(setting, folder)
    config = folder / CONFIG
    if (folder / "checkpoints").is_dir() or (config.is_file() and is_config_of_run(config)):
        raise UsageError(
            f"{folder} holds a run of python -m pemt_jax.train, which that command resumes, "
            f"expected another {setting}."
        )
    if (config.exists() or config.is_symlink()) and not is_of_t5x(folder):
        raise UsageError(
            f"{config} was not written by a run and would be replaced, expected another {setting}."
        )


def stored_identity(folder: Path) -> dict:
    """What the run in a folder is; {} where none has begun, of earlier versions what is published.

    Raises:
      PemtError: it cannot be read.
    """
    if (file := folder / T5X_RUN).exists():
        return read_object(file, "a run's facts")
    if not (folder / ARTEFACT / CARD).is_file():
        return {}
    card = read_card(folder / ARTEFACT)
    mixed = [{"name": name, "sha256": sha256} for name, sha256 in card.experts]
    return {
        "method": card.method,
        "task": card.task,
        "base": card.base_fingerprint,
        "prompt_text": card.description or None,
        "experts": card.config.get("started_from", mixed),
    }


def take_up(folders: Iterable[Path], identity: Mapping) -> None:
    """Begin or resume the run of this identity in MODEL_DIR, and in ARTEFACT_DIR.

    Raises:
      UsageError: one holds another run, or checkpoints of which nothing says what run they are.
      PemtError: it cannot be read or written.
    """
    folders, identity = list(folders), json.loads(json.dumps(dict(identity)))
    for folder in folders:
        stored, has_checkpoints = stored_identity(folder), has_t5x_checkpoints(folder)
        if has_checkpoints and not stored:
            raise UsageError(
                f"{folder} holds checkpoints of T5X but no {T5X_RUN} that says of which run, "
                "expected another MODEL_DIR."
            )
        expected = {name: identity[name] for name in stored if name in identity}
        begun = has_checkpoints or any((folder / name).exists() for name in (ARTEFACT, BASE))
        if begun and (other := difference(stored, expected)):
            raise UsageError(f"{folder} holds another run, whose {other} or another MODEL_DIR.")
    with processes.first_alone():
        for folder in folders if processes.is_first() else ():
            with replacing(folder / T5X_RUN) as partial:
                partial.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")


@functools.cache  # they are held once
def hold(folders: tuple[Path, ...]) -> None:
    """Let no other command train in these folders until this process ends, or `leases` is closed.

    Raises:
      UsageError: one does; the sentence says which.
    """
    leases.enter_context(alone(folders))
    atexit.register(leases.close)
