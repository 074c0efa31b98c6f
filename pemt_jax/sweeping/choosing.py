"""The choice of a cell's candidate on validation, which opens the test split of its runs.

choices/CELL.json is written before any test split is read. Another choice for the same cell is
refused, also when runs were added to the table meanwhile: the test split has been read then.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.storage import replacing
from pemt_jax.common.user_input.files import read_object
from pemt_jax.reporting.records import FINISHED, RunRecord
from pemt_jax.sweeping.plan import Cell, Run

CHOICES = "choices"


def choice_file(folder: Path, cell: Cell) -> Path:
    return folder / CHOICES / f"{cell.key}.json"


def validation_score(record: RunRecord) -> float | None:
    """The number that a run is chosen by: its metrics' average, or the loss, negative."""
    if "average" in record.metrics:
        return record.metrics["average"]
    return -record.metrics["loss"] if "loss" in record.metrics else None


def choose(folder: Path, cell: Cell, runs: Sequence[tuple[Run, RunRecord]]) -> str | None:
    """Choose the candidate with the best mean over seeds on validation, and write it down.

    Args:
      folder: the sweep's.
      runs: all of the cell, with their records; a candidate with an unfinished run is left out.

    Returns:
      the candidate in words, None when no candidate has all its runs.

    Raises:
      UsageError: the cell has another choice already. PemtError: the test split of a run that is
        not chosen has been read.
    """
    scores: dict[str, list[float | None]] = {}
    for run, record in runs:
        score = validation_score(record) if record.state == FINISHED else None
        scores.setdefault(run.choice, []).append(score)
    known = {
        choice: [value for value in values if value is not None]
        for choice, values in scores.items()
        if None not in values
    }
    if not known:
        return None
    means = {choice: statistics.fmean(values) for choice, values in known.items()}
    best = max(means, key=means.__getitem__)
    file = choice_file(folder, cell)
    before = read_object(file, "a choice").get("chosen") if file.is_file() else None
    if before not in (None, best):
        raise UsageError(
            f"{file} has chosen {before!r} and its test split may have been read, found {best!r} "
            "now and expected the same choice; a changed table needs a new FOLDER."
        )
    for run, record in runs:
        read = [one.split for one in record.evaluations if one.split not in ("train", "validation")]
        if run.choice != best and read:
            raise PemtError(
                f"The split {read[0]!r} of {record.folder} was read although {best!r} is chosen, "
                "expected that only chosen runs are tested."
            )
    content = {"cell": cell.key, "chosen": best, "validation": means}
    if before is None or read_object(file, "a choice") != content:
        with replacing(file) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return best


def chosen(folder: Path, cell: Cell) -> str | None:
    """The candidate that was chosen for a cell; None before."""
    file = choice_file(folder, cell)
    return read_object(file, "a choice").get("chosen") if file.is_file() else None


def metrics_on_test(folder: Path, run: Run, record: RunRecord) -> dict[str, float]:
    """The metrics of a run on the test split; none before it has been evaluated.

    Raises:
      UsageError: it is not chosen, or not yet.
    """
    if (found := chosen(folder, run.cell)) != run.choice:
        state = "no candidate has been chosen" if found is None else f"{found!r} was chosen"
        raise UsageError(
            f"The test metrics of {run.name} cannot be read: {state} on validation for the cell "
            f"{run.cell.key}, expected {run.choice!r}."
        )
    tests = (one for one in record.evaluations if one.split == "test" and one.task == run.task)
    return dict(next((one.metrics for one in tests), {}))
