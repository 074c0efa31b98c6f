"""What a sweep is asked: the table that a gin file in configs/tables/ fills."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pemt_jax.common import storage
from pemt_jax.common.errors import UsageError, no_such
from pemt_jax.common.flat_config import Flat, Part, at_least, not_blank, number
from pemt_jax.sweeping.methods import METHODS

FULL = "full"  # all training examples of a task, in place of a number of shots
REST = "*"  # in a mapping: what is not named there
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclasses.dataclass(frozen=True)
class Table(Part):
    """What is compared, on what.

    Attributes:
      methods: rows of sweeping.methods.METHODS.
      tasks: target tasks; one that ends in _seed and a number is a draw of another, see `few_shot`.
      file: gin file of the target runs, for methods that bring none.
      steps: updates of a target run: a number, or one per task or number of shots, the task first.
      shots: training examples per label; "full" for all.
      seeds: of each run, and which few-shot examples it draws.
      rates: learning rates to choose from, on validation; those of all methods, or {method: rates}
        with "*" for the methods that are not named.
      base: the pretrained T5; None for that of the files.
      few_shot: the task of a number of shots, of {task}, {shots} and {seed}; one for all tasks, or
        {task: few_shot} with "*" for the tasks that are not named.
      draw: the gin binding that a run's seed draws examples by; None where the name does.
      bindings: more flags of every target run, {"BATCH_SIZE": 8}.
      pack: at most so many runs that differ only in their task are one job of several tasks.
      forgetting_text: held-out general text, a file or a folder of files, on which forgetting is
        measured; None for not.
      baseline: a method that the others are compared with, draw by draw.
      published: a table of sweeping/pages/published.json to be shown beside ours.
      title: of the report.
    """

    methods: Sequence[str]
    tasks: Sequence[str]
    file: str
    steps: int | Mapping[str, int]
    shots: Sequence[int | str] = (FULL,)
    seeds: Sequence[int] = (0, 1, 2)
    rates: Sequence[float] | Mapping[str, Sequence[float]] = (3e-4,)
    base: str | None = None
    few_shot: str | Mapping[str, str] = "{task}_{shots}"
    draw: str | None = "FewShot.seed"
    bindings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    pack: int = 1
    forgetting_text: str | None = None
    baseline: str = "adapter"
    published: str | None = None
    title: str = "Sweep"

    def __post_init__(self):
        rates = {
            "RATES" if name == REST else f"RATES of {name!r}": values
            for name, values in _entries(self.rates).items()
        }
        for name in (*self.methods, self.baseline, *(_entries(self.rates).keys() - {REST})):
            if name not in METHODS:
                raise no_such("method of a sweep", name, METHODS)
        for name in _entries(self.few_shot).keys() - {REST}:
            if name not in self.tasks:
                raise no_such("task of FEW_SHOT", name, self.tasks)
        names = ("methods", "tasks", "shots", "seeds")
        lists = {name.upper(): getattr(self, name) for name in names} | rates
        for field, values in lists.items():
            if not values or len(set(map(str, values))) < len(values):
                raise UsageError(f"Found {field} {list(values)}, expected some, each once.")
        for shots in self.shots:
            if shots != FULL:
                count: Any = shots
                at_least(1, **{"a number of SHOTS": count})
        at_least(0, **{f"SEEDS {seed}": seed for seed in self.seeds})
        at_least(1, PACK=self.pack)
        for values in rates.values():
            for rate in values:
                number("a rate of RATES", rate, positive=True)
        for method in self.methods:
            self.rates_of(method)
        for task in self.tasks:
            self.few_shot_of(task)
        not_blank(FILE=self.file, FORGETTING_TEXT=self.forgetting_text)

    def rates_of(self, method: str) -> Sequence[float]:
        """The learning rates of a method; UsageError where the table has none."""
        return _entry("RATES", self.rates, method)

    def few_shot_of(self, task: str) -> str:
        """The pattern of a task's few-shot tasks; UsageError where the table has none."""
        return _entry("FEW_SHOT", self.few_shot, task)

    def steps_of(self, task: str, shots: int | str) -> int:
        """Updates of a target run; UsageError where the table has no number."""
        if not isinstance(self.steps, Mapping):
            return self.steps
        for key in (task, str(shots)):
            if key in self.steps:
                return self.steps[key]
        raise UsageError(f"STEPS has no number for {task!r} or {shots} shots, expected one.")


@dataclasses.dataclass(frozen=True)
class Sources(Part):
    """The experts that are mixed: of libraries that exist, or trained by the sweep.

    Attributes:
      libraries: expert sets that exist, {name: (library, names of experts)}.
      sources: source tasks of which the sweep trains experts.
      leave_out: experts that a target task does not use, {task: experts}: its own, or one of a
        source that shares its examples.
      source_seeds: an expert set of all sources is trained with each, named seed0, ...
      source_file: gin file of stage 1.
      source_steps: updates per source; those not named have the file's.
      pooled: a mixture of the sources, for the method that trains one low-rank pair on it.
      pooled_prompt: its prompt's text.
      pooled_steps: its updates; None for the file's.
    """

    libraries: Mapping[str, Sequence] = dataclasses.field(default_factory=dict)
    sources: Sequence[str] = ()
    leave_out: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    source_seeds: Sequence[int] = (0,)
    source_file: str = "runs/stage1.gin"
    source_steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    pooled: str | None = None
    pooled_prompt: str | None = None
    pooled_steps: int | None = None

    def __post_init__(self):
        for name, entry in self.libraries.items():
            if len(entry) != 2 or isinstance(entry[1], str) or not entry[1]:
                raise UsageError(
                    f"LIBRARIES has {name!r}: {entry}, expected a folder and names of experts."
                )
        for name in self.libraries:
            if not NAME.fullmatch(str(name)):
                raise UsageError(f"LIBRARIES has a set {name!r}, expected a name of a folder.")


def _entries(value: Any) -> dict[str, Any]:
    """A value for all, or a mapping, as a mapping."""
    return dict(value) if isinstance(value, Mapping) else {REST: value}


def _entry(field: str, value: object, name: str) -> Any:
    entries = _entries(value)
    if name not in entries and REST not in entries:
        raise UsageError(f"{field} has nothing for {name!r}, expected it or {REST!r} for the rest.")
    return entries.get(name, entries.get(REST))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig(Flat):
    """A sweep; see the parts for their fields.

    Attributes:
      folder: where runs, choices and results are kept.
      jobs: processes at a time on this machine.
      shard: "I/N": only the I-th (from 0) of N shares of the runs, for array jobs.
      dry_run: print the commands instead of running them.
    """

    folder: str
    table: Table
    experts: Sources = Sources()
    jobs: int = 1
    shard: str = "0/1"
    dry_run: bool = False

    def __post_init__(self):
        not_blank(FOLDER=self.folder)
        if storage.is_remote(self.folder):
            raise UsageError(
                f"FOLDER is {self.folder}, expected a folder on a disk, where a sweep can lock and "
                "append; the report reads a copy of it in a bucket too."
            )
        every = {
            *self.experts.sources,
            *(n for _, ns in self.experts.libraries.values() for n in ns),
        }
        for task, left_out in self.experts.leave_out.items():
            if task not in self.table.tasks:
                raise no_such("task of LEAVE_OUT", task, self.table.tasks)
            for name in left_out:
                if name not in every:
                    raise no_such("expert of LEAVE_OUT", name, sorted(every))
        at_least(1, JOBS=self.jobs)
        _ = self.share

    @property
    def path(self) -> Path:
        return storage.path(self.folder)

    @property
    def share(self) -> tuple[int, int]:
        """(I, N) of the shard."""
        found = re.fullmatch(r"(\d+)/(\d+)", str(self.shard))
        index, count = map(int, found.groups()) if found else (0, 0)
        if not index < count:
            raise UsageError(f"Found SHARD {self.shard!r}, expected I/N with I from 0 to N - 1.")
        return index, count
