"""MODEL_DIR belongs to one run: nobody else's files are in the way, and no other command trains.

What a resumed run keeps of its base is found there too.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pemt_jax.checkpoints.identity import BASE_REVISION
from pemt_jax.checkpoints.newest import stored_identity
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.writing import lease
from pemt_jax.common.writing.contents import check_outside
from pemt_jax.library.hub_names import NAME, same_everywhere
from pemt_jax.parallel import processes
from pemt_jax.run_config import TrainConfig
from pemt_jax.runs.config_file import CONFIG, FIRST_LINE

Config = TypeVar("Config", bound=TrainConfig)

LOCK, METRICS = "run.lock", "metrics.jsonl"
T5X_RUN = "t5x_run.json"  # what a run under T5X is, see t5x/run_folder.py


def check_model_dir(folder: Path) -> None:
    """Raise UsageError for a folder, or files in it, that a run would spoil.

    Files that only look like a run's are its own where it has checkpoints.
    """
    check_outside("MODEL_DIR", folder)
    if is_of_t5x(folder):
        raise UsageError(
            f"{folder} holds a run of python -m t5x.train, which that command resumes, expected "
            "another MODEL_DIR."
        )
    for name, is_own in ((CONFIG, is_config_of_run), (METRICS, _is_log)):
        file = folder / name
        if not (file.exists() or file.is_symlink()):
            continue
        if file.is_symlink() or not file.is_file():
            raise UsageError(f"{file} is no plain file, expected another MODEL_DIR.")
        if not (folder / "checkpoints").is_dir() and not is_own(file):
            raise UsageError(
                f"{file} was not written by a run and would be replaced, expected another "
                "MODEL_DIR."
            )


def is_of_t5x(folder: Path) -> bool:
    """Whether a run under T5X has begun in the folder, or left its artefacts there."""
    return (folder / T5X_RUN).exists() or has_t5x_checkpoints(folder)


def has_t5x_checkpoints(folder: Path) -> bool:
    """Whether T5X would restore something from the folder."""
    found = folder.iterdir() if folder.is_dir() else ()
    return any(re.fullmatch(r"checkpoint_\d+", path.name) for path in found)


def is_config_of_run(file: Path) -> bool:
    """Whether a config.gin was written by this package, not by T5X or a user."""
    return file.read_bytes()[:200].startswith(FIRST_LINE.encode())


def _is_log(file: Path) -> bool:
    """Whether every line is one of ours, except the last, which a crash may have cut."""
    for line in file.read_bytes().split(b"\n")[:-1]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return False
        if not isinstance(row, dict) or not {"step", "kind"} <= row.keys():
            return False
    return True


def with_one_base(config: Config, identity: Mapping | None = None) -> Config:
    """The configuration, its base at one commit where that is a name on the hub.

    A run that is resumed keeps the commit that it began with, which its `identity` has; None for
    that of the checkpoints, in a job of several tasks of those of the first.

    Raises:
      PemtError: see library.hub_names.
    """
    path = config.model.initial_checkpoint_path
    if path is None or not NAME.fullmatch(path):
        return config
    if identity is None:
        first = config.of_tasks()[0] if config.is_job else config
        identity = stored_identity(first.folder / "checkpoints")
    recorded = identity.get(BASE_REVISION)
    return config.replace(initial_checkpoint_path=same_everywhere(path, recorded))


@contextlib.contextmanager
def alone(folders: Sequence[Path]) -> Iterator[None]:
    """Context in which no other command trains in these folders: a lease, held by process 0.

    Raises:
        UsageError: in every process, when one does; the sentence says which.
        PemtError: in every process, when a folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        refusal = None
        with processes.first_alone():
            try:
                for folder in folders if processes.is_first() else ():
                    stack.enter_context(lease.held(folder / LOCK, f"The MODEL_DIR {folder}"))
            except PemtError as error:
                refusal = [error.exit_code, str(error)]
        if found := processes.from_first(refusal):
            code, sentence = found
            raise (UsageError if code == UsageError.exit_code else PemtError)(sentence)
        yield
