"""results.jsonl, a line per run of a sweep, and costs.jsonl, a line per job; see README.md.

results.jsonl is a function of what was trained and evaluated: a sweep that was killed and started
again writes the same bytes. What a clock or a scheduler has a part in is in costs.jsonl.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.storage import replacing
from pemt_jax.common.user_input.files import parse_json, read_text
from pemt_jax.reporting.figures import metric_of, thinned
from pemt_jax.reporting.records import FINISHED, RunRecord
from pemt_jax.sweeping.choosing import metrics_on_test
from pemt_jax.sweeping.plan import Job, Run

KEYS = (
    "base candidate chosen experts facts job method parameters reason run seed set shots state "
    "steps task test trained_task validation"
).split()
POINTS = 30  # of a curve
RESULTS, COSTS, TABLE = "results.jsonl", "costs.jsonl", "sweep.json"


def row_of(
    folder: Path,
    job: Job,
    run: Run,
    record: RunRecord,
    chosen: bool | None,
    state: str,
    reason: str,
) -> dict[str, object]:
    """The line of a run; `chosen` is None before its cell's choice."""
    test = metrics_on_test(folder, run, record) if chosen else {}
    own = ("test", run.task)
    tests = [one for one in record.evaluations if (one.split, one.task) == own] if test else []
    curve = record.curve("validation", metric_of(record.rows, "validation"))
    return {
        "run": job.folder_of(run).relative_to(folder).as_posix(),
        "job": job.folder.name,
        "method": run.cell.method.name,
        "task": run.cell.task,
        "shots": run.cell.shots,
        "set": run.cell.set.name,
        "seed": run.seed,
        "candidate": dict(run.candidate),
        "chosen": chosen,
        "state": state,
        "reason": reason,
        "trained_task": run.task,
        "steps": run.steps,
        "validation": dict(record.metrics),
        "test": test,
        "facts": dict(tests[0].facts) if tests else {},
        "gates": dict(tests[0].gates) if tests else {},
        "curve": thinned(curve, POINTS) if record.state == FINISHED else [],
        "general_loss": None,
        "forgetting": None,
        "parameters": record.parameters if run.cell.method.trained else 0,
        "base": record.card.base_fingerprint if record.card else "",
        "experts": [list(pair) for pair in record.card.experts] if record.card else [],
    }


def write_lines(path: Path, rows: Iterable[Mapping]) -> None:
    """Write one JSON object per line, the file as a whole."""
    with replacing(path) as partial:
        text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
        partial.write_text(text, encoding="utf-8")


def read_results(folder: Path) -> list[dict]:
    """The lines of a sweep's results.

    Raises:
      UsageError: there are none. PemtError: a line is no run.
    """
    rows = read_lines(folder / RESULTS)
    for number, row in enumerate(rows, 1):
        if absent := [key for key in KEYS if key not in row]:
            raise PemtError(
                f"{folder / RESULTS} line {number} has no {absent[0]!r}, expected the results of "
                "a sweep."
            )
    return rows


def read_lines(path: Path) -> list[dict]:
    """The objects of a file, one per line.

    Raises:
      UsageError: there is no such file. PemtError: a line is no object.
    """
    if not path.is_file():
        raise UsageError(
            f"There is no {path}, expected a sweep: python -m pemt_jax.sweep writes it."
        )
    found = []
    for number, line in enumerate(read_text(path, "results").splitlines(), 1):
        try:
            row = parse_json(line)
        except ValueError as error:
            raise PemtError(f"{path} line {number} is no JSON ({error}).") from error
        if not isinstance(row, dict):
            raise PemtError(f"{path} line {number} is no object, expected a run.")
        found.append(row)
    return found
