"""Where a run's numbers go: `metrics.jsonl` (one JSON object a line) and TensorBoard files.

A line is {"step": n, "kind": "train" | "validation" | ..., "time": unix seconds, name: value}.
A run that resumes at step n drops the lines after n when it writes its first: those steps are made
again by then, so that a resumption that fails changes nothing. What a crash has left of a line is
dropped with them.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

import jax

from pemt_jax.common.errors import PemtError
from pemt_jax.common.storage import replacing


class MetricsLog:
    """Writes the metrics of a run into a folder; only the first process of a pod writes."""

    def __init__(self, folder: str | os.PathLike, tensorboard: bool = True):
        self.path = Path(folder) / "metrics.jsonl"
        self.tensorboard = tensorboard
        self._step, self._evaluated = 0, None
        self._file = self._tensorboard = None

    def resume(self, step: int, evaluated: int | None = None) -> None:
        """Go on after `step`; what later steps or evaluations have logged is made again."""
        self._step, self._evaluated = step, evaluated

    def _made(self, row: dict) -> bool:
        """Whether the run that resumes has what this row tells behind it."""
        evaluation = row.get("kind") == "validation"
        return row["step"] <= ((self._evaluated or 0) if evaluation else self._step)

    def _open(self) -> None:
        kept = [row for row in read_metrics(self.path) if self._made(row)]
        with replacing(self.path) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        if self.tensorboard:
            # clu imports TensorFlow, seconds that a run without TensorBoard need not spend.
            from clu.metric_writers import SummaryWriter

            self._tensorboard = SummaryWriter(str(self.path.parent))

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Append one line, flushed, and the same scalars as `kind/name` to TensorBoard."""
        if jax.process_index() != 0:
            return
        if self._file is None:
            self._open()
        row = {"step": int(step), "kind": kind, "time": round(time.time(), 3)}
        # JSON has no NaN or infinity.
        row |= {name: float(v) if math.isfinite(v) else None for name, v in values.items()}
        try:
            os.stat(self.path)  # a file that was removed takes lines without a word
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            self._abandon()
            raise PemtError(f"Cannot write {self.path}: {error.strerror}.") from error
        if self._tensorboard is not None:
            scalars = {f"{kind}/{name}": float(value) for name, value in values.items()}
            self._tensorboard.write_scalars(int(step), scalars)

    def _abandon(self) -> None:
        """Forget the files without the lines that cannot be written; closing would try again."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._file = self._tensorboard = None

    def close(self) -> None:
        """Flush and close the files."""
        if self._file is not None:
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.flush()
            self._tensorboard.close()
        self._file = self._tensorboard = None

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """Return the rows of a `metrics.jsonl`; a line cut short by a crash is left out."""
    rows = []
    if Path(path).exists():
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and "step" in row:
                    rows.append(row)
    return rows
