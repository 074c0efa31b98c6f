"""What a run's folder says about it, read without JAX's devices or any weights.

A run is a folder with `metrics.jsonl`, `checkpoints`, `artefact` or `base`; an artefact or expert
alone is one too. Nothing here fails for one run's sake: what cannot be read is its state.
"""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.safetensors_file import open_weights
from pemt_jax.common.user_input.files import read_object
from pemt_jax.library.artefact import CARD, Card, read_card
from pemt_jax.runs.publish import ARTEFACT, BASE, RUN_FACTS
from pemt_jax.training.metrics_log import read_metrics

# Folders of a run, none of which holds runs.
PARTS = {"checkpoints", ARTEFACT, BASE, "evaluation", "profile", "compiled", "library"}
FINISHED, UNFINISHED, UNREADABLE = "finished", "not finished", "unreadable"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Metrics of a task on a split.

    Attributes:
      facts: what `split_facts` knows of that split, if written.
      gates: {sublayer: {expert: mean gate}}, likewise.
    """

    task: str
    split: str
    metrics: Mapping[str, float]
    facts: Mapping = dataclasses.field(default_factory=dict)
    gates: Mapping = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run as the report has it.

    Attributes:
      folder, name: the name is the folder's, relative to the one that was searched.
      state, reason: FINISHED, or otherwise with a sentence.
      settings: of config.gin, {"batch_size": "8", ...}, macros replaced by their values.
      card: of the artefact; None without one.
      task: the task or mixture that was trained on; "" where it is unknown.
      metrics: of the best checkpoint, on validation.
      evaluations: of `python -m pemt_jax.evaluate`.
      rows: of metrics.jsonl.
      parameters, stored: how many were trained, and the bytes of what was published.
    """

    folder: Path
    name: str
    state: str
    reason: str
    settings: Mapping[str, str]
    card: Card | None
    task: str
    metrics: Mapping[str, float]
    evaluations: Sequence[Evaluation]
    rows: Sequence[Mapping]
    parameters: int | None = None
    stored: int | None = None

    @property
    def method(self) -> str:
        return self.card.method if self.card else self.settings.get("method", "").strip("'\"")

    @property
    def seed(self) -> str:
        return self.settings.get("seed") or str(
            self.card.config.get("seed", "") if self.card else ""
        )

    @property
    def experts(self) -> list[str]:
        """Those that are mixed."""
        if self.card is None or self.card.kind != "target":
            return []
        return [name for name, _ in self.card.experts]

    @property
    def steps(self) -> int:
        """The last step that was logged."""
        return max((int(row["step"]) for row in self.rows), default=0)

    @property
    def seconds(self) -> float | None:
        """From the first line of the log to the last, pauses between resumptions included."""
        times = [row["time"] for row in self.rows if is_number(row.get("time"))]
        return max(times) - min(times) if len(times) > 1 else None

    def curve(self, kind: str, metric: str) -> list[tuple[int, float]]:
        """(step, value) of the log's lines of a kind."""
        found = ((row["step"], row.get(metric)) for row in self.rows if row.get("kind") == kind)
        return [(step, value) for step, value in found if is_number(value)]


def find_runs(places: Iterable[str]) -> list[RunRecord]:
    """The runs at or below each of `places`, in the order of their names, each once.

    Raises:
      UsageError: a place does not exist or holds no run.
    """
    found: dict[str, RunRecord] = {}
    for place in places:
        root = storage.path(place)
        folders = [root] if _is_run(root) or (root / CARD).is_file() else list(_search(root))
        if not folders:
            state = "is a file" if root.exists() else "does not exist"
            state = "holds no run" if root.is_dir() else state
            raise UsageError(
                f"{place} {state}, expected the MODEL_DIR of a run or a folder of runs."
            )
        for folder in folders:
            name = folder.relative_to(root).as_posix() if folder != root else folder.resolve().name
            found.setdefault(str(folder.resolve()), read_run(folder, name))
    return list(found.values())


def read_run(folder: Path, name: str) -> RunRecord:
    """Read one run; what is damaged becomes its state."""
    settings = read_settings(folder / "config.gin")
    rows = read_metrics(folder / "metrics.jsonl")
    card, facts, state, reason = None, {}, UNFINISHED, ""
    artefact, base = storage.current(folder / ARTEFACT), storage.current(folder / BASE)
    published = folder if (folder / CARD).is_file() else artefact if artefact.is_dir() else base
    try:
        if (published / CARD).is_file():
            card, state = read_card(published), FINISHED
        elif (published / RUN_FACTS).is_file():
            facts = read_object(published / RUN_FACTS, "the facts of the run")
            state = FINISHED
    except PemtError as error:
        state, reason = UNREADABLE, str(error).replace(str(folder), name)
    if state == UNFINISHED:
        last = max((row["step"] for row in rows), default=0)
        of = f" of {settings['train_steps']}" if "train_steps" in settings else ""
        reason = f"Stopped, failed or still running: the last logged step is {last}{of}."
    task = card.task if card else facts.get("task") or settings.get("mixture_or_task_name", "")
    parameters, stored = _size(published) if state == FINISHED else (None, None)
    return RunRecord(
        folder=folder,
        name=name,
        state=state,
        reason=reason,
        settings=settings,
        card=card,
        task=str(task).strip("'\""),
        metrics=_numbers(card.metrics if card else facts.get("metrics")),
        evaluations=_evaluations(folder / "evaluation"),
        rows=rows,
        parameters=parameters,
        stored=stored,
    )


def read_settings(path: Path) -> dict[str, str]:
    """{name: value as written} of a run's config.gin, `train.train.` and macros taken out."""
    text = ""
    with contextlib.suppress(OSError):
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = re.sub(r"\\?\n[ \t]+", " ", text).splitlines()  # a value may go on in the next line
    pairs = (line.partition(" = ") for line in lines if not line.startswith("#"))
    found = {name.strip(): value.strip() for name, equals, value in pairs if equals}
    found = {name: found.get(value.removeprefix("%"), value) for name, value in found.items()}
    return {  # make_schedule.learning_rate, without the modules before it
        ".".join(name.removeprefix("train.train.").split(".")[-2:]): value
        for name, value in found.items()
        if "." in name
    }


def _is_run(folder: Path) -> bool:
    if (folder / "metrics.jsonl").is_file():
        return True
    return any((folder / name).is_dir() for name in ("checkpoints", ARTEFACT, BASE))


def _search(folder: Path) -> Iterable[Path]:
    if not folder.is_dir():
        return
    for name in storage.folder_names(folder):
        if name not in PARTS and not name.startswith("."):
            if _is_run(folder / name):
                yield folder / name
            yield from _search(folder / name)


def _evaluations(folder: Path) -> list[Evaluation]:
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        task, _, split = path.stem.rpartition("-")
        facts, gates = (_json(folder / kind / path.name) for kind in ("splits", "gates"))
        found.append(Evaluation(task, split, _numbers(_json(path)), facts, gates))
    return found


def _json(path: Path) -> dict:
    with contextlib.suppress(PemtError):
        return read_object(path, "an object")
    return {}


def _numbers(metrics: object) -> dict[str, float]:
    found = metrics.items() if isinstance(metrics, Mapping) else ()
    return {str(name): float(value) for name, value in found if is_number(value)}


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value of JSON is a number that a float can hold."""
    return isinstance(value, int | float) and abs(value) < sys.float_info.max


def _size(folder: Path) -> tuple[int | None, int | None]:
    """Parameters in the safetensors files of a folder, and bytes of all its files."""
    try:
        files = [folder / name for name in storage.files_in(folder)]
        weights = [file for file in files if file.suffix == ".safetensors"]
        parameters = sum(array.size for file in weights for array in open_weights(file).values())
        return parameters, sum(file.stat().st_size for file in files)
    except (OSError, PemtError):
        return None, None
