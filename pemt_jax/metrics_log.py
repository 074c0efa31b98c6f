"""Where a run's numbers go: `metrics.jsonl` (one JSON object a line) and TensorBoard files.

A line is {"step": n, "kind": "train" | "validation" | ..., "time": unix seconds, name: value}.
A run that resumes at step n drops the lines after n when it writes its first: those steps are made
again by then, so that a resumption that fails (a damaged checkpoint) changes nothing.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

import jax


class MetricsLog:
    """Writes the metrics of a run into a folder; only the first process of a pod writes."""

    def __init__(self, folder: str | os.PathLike, start_step: int = 0, tensorboard: bool = True):
        self.path = Path(folder) / "metrics.jsonl"
        self.start_step = start_step
        self.tensorboard = tensorboard
        self._file = self._tensorboard = None

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(self.path) if row["step"] <= self.start_step]
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(scratch, self.path)
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
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            scalars = {f"{kind}/{name}": float(value) for name, value in values.items()}
            self._tensorboard.write_scalars(int(step), scalars)

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
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows
