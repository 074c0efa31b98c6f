"""Where a run's numbers go: `metrics.jsonl`, TensorBoard files, and other writers of clu's kind.

`metrics.jsonl` has one JSON object per line:

    {"step": n, "kind": "train" | "validation" | ..., "time": unix seconds, name: value, ...}

A run that resumes at step n drops the lines after n when it writes its own first line: those steps
are made again by then, and a resumption that fails earlier changes nothing. An incomplete line left
by a crash is dropped with them. In a bucket, where nothing can be appended, the file is kept on
this machine and uploaded complete: before each checkpoint (`flush`), so that no line that a resumed
run keeps is lost with the machine, and every half minute.

Every number goes to each writer of one `clu.metric_writers.MultiWriter` as the scalar `kind/name`.
A writer for another service (Weights & Biases, say) is a `clu.metric_writers.MetricWriter` in
`writers`.
"""

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError
from pemt_jax.common.mirror import Mirror
from pemt_jax.common.storage import replacing
from pemt_jax.common.user_input.files import parse_json

if TYPE_CHECKING:
    from clu.metric_writers import MetricWriter


UPLOAD_SECONDS = 30


class MetricsLog:
    """Writes the metrics of a run into a folder; only the first process of a run writes.

    Args:
        folder: of metrics.jsonl and the TensorBoard files.
        tensorboard: whether to write TensorBoard files, where TensorBoard is installed.
        writers: further writers; flushed and closed with the log once it has written.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        tensorboard: bool = True,
        writers: Sequence["MetricWriter"] = (),
    ):
        self.path = storage.path(folder) / "metrics.jsonl"
        self.tensorboard = tensorboard
        self.writers = tuple(writers)
        self._step, self._evaluated = 0, None
        self._writer, self._mirror = None, None

    def resume(self, step: int, evaluated: int | None = None) -> None:
        """Continue after `step`: later steps, and evaluations after `evaluated`, are repeated."""
        self._step, self._evaluated = step, evaluated

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl and write the same numbers with the other writers.

        Raises:
            PemtError: metrics.jsonl was removed or cannot be written.
        """
        if jax.process_index() != 0 or not values:
            return
        if self._writer is None:
            self._writer = self._open()
        scalars = {f"{kind}/{name}": float(value) for name, value in values.items()}
        try:
            self._writer.write_scalars(int(step), scalars)
            self._upload(UPLOAD_SECONDS)
        except PemtError:
            self._writer = None  # closing it would try to write again
            raise

    def flush(self) -> None:
        """Bring every line to where it survives this machine, before a checkpoint counts on it.

        Raises:
            PemtError: that fails.
        """
        if self._writer is not None and self._mirror is not None and self._mirror.is_copy:
            self._writer.flush()
            self._upload()

    def close(self) -> None:
        """Flush and close the writers."""
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.flush()
                writer.close()
                self._upload()
        finally:
            if self._mirror is not None:
                self._mirror.close()
                self._mirror = None

    def _upload(self, after: float = 0) -> None:
        if self._mirror is not None:
            with _write_errors(self.path):
                self._mirror.upload(after)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _open(self):
        kept = [row for row in read_metrics(self.path) if self._is_kept(row)]
        self._mirror = Mirror(self.path.parent)
        writers: list[Any] = [JsonLinesWriter(self._mirror.local / self.path.name, kept)]
        if self.tensorboard:
            writers += _tensorboard_writers(self._mirror.local)
        writers += self.writers
        if len(writers) == 1:
            return writers[0]
        from clu.metric_writers import MultiWriter  # imports TensorFlow

        return MultiWriter(writers)

    def _is_kept(self, row: dict) -> bool:
        """Whether the resumed run does not repeat the step or evaluation of this row."""
        evaluation = row.get("kind") == "validation"
        return row["step"] <= ((self._evaluated or 0) if evaluation else self._step)


class JsonLinesWriter:
    """Appends scalars to a metrics.jsonl; every line is flushed.

    It has those methods of clu's MetricWriter that scalars need. It is no subclass because
    `clu.metric_writers` imports TensorFlow, which a log of JSON lines alone does not need.
    """

    def __init__(self, path: Path, kept: Iterable[dict]):
        """Open `path` for appending, with the rows `kept` as its only content."""
        self._path = path
        with _write_errors(path):
            with replacing(path) as partial:
                lines = "".join(json.dumps(row) + "\n" for row in kept)
                partial.write_text(lines, encoding="utf-8")
            self._file = path.open("a", encoding="utf-8")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append one line; the names are `kind/name` and share one kind."""
        kind = next(iter(scalars)).partition("/")[0]
        row: dict[str, Any] = {"step": step, "kind": kind, "time": round(time.time(), 3)}
        for name, value in scalars.items():
            # JSON has no NaN or infinity.
            row[name.partition("/")[2]] = value if math.isfinite(value) else None
        try:
            with _write_errors(self._path):
                os.stat(self._path)  # writing to a file that was removed would raise no error
                self._file.write(json.dumps(row) + "\n")
                self._file.flush()
        except PemtError:
            with contextlib.suppress(OSError):
                self._file.close()
            raise

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _tensorboard_writers(folder: Path) -> list:
    """Return clu's TensorBoard writer, or nothing where it cannot be imported."""
    try:
        from clu.metric_writers import SummaryWriter
    except ImportError as error:
        logging.getLogger(__name__).info("No TensorBoard files are written: %s.", error)
        return []
    return [SummaryWriter(str(folder))]


@contextlib.contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PemtError(f"Cannot write {path}: {storage.reason(error)}.") from error


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """Return the rows of a `metrics.jsonl`, without incomplete lines left by a crash.

    A row of another program's, whose step is no number, is left out too.
    """
    rows = []
    path = storage.path(path)
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                row = parse_json(line)
                if isinstance(row, dict) and type(row.get("step")) is int:
                    rows.append(row)
    return rows
