"""From a table to the runs it asks for, the cells they are chosen in, and the jobs that train them.

A cell is one number of the table for one expert set: a method on a task with so many shots. It has
a run for each candidate (a rate, an expert, or both) and seed. A run's folder carries a hash of all
that its command says, gin files included, so that a run is found again exactly where it is the same
run. Paths are not part of it.
"""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pemt_jax.common.errors import UsageError
from pemt_jax.sweeping.gin_files import file_hash
from pemt_jax.sweeping.libraries import (
    POOLED,
    ExpertSet,
    card_of,
    expert_sets,
    experts_for,
    experts_of,
    missing,
)
from pemt_jax.sweeping.methods import METHODS, MIX, NONE, START, SweepMethod
from pemt_jax.sweeping.table import FULL, SweepConfig

ANY = "any"  # the shots of what is not trained on the target
PLAIN = re.compile(r"(?!(True|False|None)$)[A-Za-z_./][\w./-]*")  # no value but a text to gin
NO_SET = ExpertSet("", "", ())


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """A method on a task with so many shots over an expert set; NO_SET where it uses none."""

    method: SweepMethod
    task: str
    shots: str
    set: ExpertSet

    @property
    def key(self) -> str:
        parts = (self.method.name, self.task, self.shots, self.set.name)
        return "-".join(part for part in parts if part)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run of a cell.

    Attributes:
      candidate: what is chosen on validation, {"rate": 0.001, "expert": "films"}.
      task: as it is trained, a draw of the cell's.
      flags: of the training command, without paths, and without what several tasks may differ in.
      steps: updates.
    """

    cell: Cell
    candidate: tuple[tuple[str, object], ...]
    seed: int
    task: str
    flags: tuple[tuple[str, Any], ...]
    steps: int

    @property
    def choice(self) -> str:
        """The candidate in words; "" where nothing is chosen."""
        return ", ".join(f"{name} {value}" for name, value in self.candidate)

    @property
    def name(self) -> str:
        return f"{self.cell.key}-seed{self.seed}" + f" ({self.choice})" * bool(self.choice)


@dataclasses.dataclass(frozen=True)
class Job:
    """A command that trains runs, one or several tasks over one base.

    Attributes:
      folder: its MODEL_DIR.
      experts: what it uses of an expert set, or of what is made of it.
    """

    runs: tuple[Run, ...]
    folder: Path
    experts: ExpertSet

    def folder_of(self, run: Run) -> Path:
        return self.folder / run.task if len(self.runs) > 1 else self.folder

    @property
    def command(self) -> list[str]:
        """The arguments of `python -m pemt_jax.train`; the experts exist by now."""
        flags, first = dict(self.runs[0].flags), self.runs[0]
        names, steps = [run.task for run in self.runs], [run.steps for run in self.runs]
        one = len(self.runs) == 1
        flags |= {
            "MODEL_DIR": self.folder,
            "MIXTURE_OR_TASK_NAME": names[0] if one else tuple(names),
            "TRAIN_STEPS": steps[0] if len(set(steps)) == 1 else tuple(steps),
        }
        if library := self.experts.library:
            flags["LIBRARY"] = library
        if first.cell.method.experts == START:
            start = str(flags["INITIAL_EXPERT"])
            if missing(self.experts):
                flags["PROMPT_TEXT"] = f"THE PROMPT OF {start}"  # in a dry run, before there is one
            else:
                card = card_of(self.experts.library, start)
                flags["PROMPT_TEXT"] = card.description
                if first.cell.method.bindings.get("METHOD") == "lora":
                    flags["PemtConfig.expert_rank"] = card.rank
        return arguments(flags)


@dataclasses.dataclass(frozen=True)
class Source:
    """A run of stage 1: an expert of a set that the sweep trains, or the pooled low-rank pair."""

    set: ExpertSet
    name: str
    folder: Path
    flags: tuple[tuple[str, object], ...]

    @property
    def command(self) -> list[str]:
        paths = {"MODEL_DIR": self.folder, "LIBRARY": self.set.library}
        return arguments(dict(self.flags) | paths)


def arguments(flags: Mapping[str, Any]) -> list[str]:
    """Flags of a gin main; a text that gin would read as something else is quoted."""
    found = [f"--gin_file={file}" for file in flags["gin_file"]]
    for name, value in flags.items():
        if name != "gin_file":
            plain = not isinstance(value, str) or PLAIN.fullmatch(value)
            found.append(f"--gin.{name}={value if plain else repr(value)}")
    return found


def cells(config: SweepConfig) -> list[Cell]:
    """The cells of a table, in its order.

    Raises:
      UsageError: a method needs what the table has not: experts, a mixture of the sources, a base.
    """
    table, sets, found = config.table, expert_sets(config), []
    for name in table.methods:
        method = METHODS[name]
        if method.experts != NONE and not sets:
            raise UsageError(f"{name!r} needs experts, expected LIBRARIES or SOURCES.")
        if method.library == POOLED and not config.experts.pooled:
            raise UsageError(f"{name!r} needs a mixture of the sources, expected POOLED.")
        if method.searched and table.draw is not None:
            raise UsageError(
                f"{name!r} searches on the examples of a task, expected DRAW None, and FEW_SHOT "
                "with {seed}, which makes every draw a task of its own."
            )
        if method.searched and table.base is None:
            raise UsageError(f"{name!r} evaluates the base, expected BASE in the table.")
        shots = [str(one) for one in table.shots] if method.has_draws else [ANY]
        for task in table.tasks:
            own = [experts_for(config, one, task) for one in sets]
            if method.library == POOLED and any(one.without for one in own):
                raise UsageError(
                    f"{name!r} was trained on all sources, but LEAVE_OUT has some for {task!r}; "
                    "expected a table without one of the two."
                )
            own = own if method.experts != NONE else [NO_SET]
            found += [Cell(method, task, *rest) for rest in itertools.product(shots, own)]
    return found


def runs_of(config: SweepConfig, cell: Cell) -> list[Run]:
    """The runs of a cell, candidate by candidate."""
    table, method = config.table, cell.method
    options: dict[str, list] = {"expert": list(cell.set.experts)}
    if "rate" in method.choose:
        rates = table.rates_of(method.name)
        options["rate"] = [float(f"{rate * method.rate_factor:.6g}") for rate in rates]
    candidates = itertools.product(
        *([(name, one) for one in options[name]] for name in method.choose)
    )
    shots = cell.shots if method.has_draws else str(table.shots[0])
    found = []
    for candidate in candidates:
        for seed in table.seeds if method.has_draws else table.seeds[:1]:
            few = table.few_shot_of(cell.task).format(task=cell.task, shots=shots, seed=seed)
            task = cell.task if shots == FULL else few
            chosen, experts = dict(candidate), made_for(config, cell, task)
            files = method.files or (table.file,)
            flags = {"gin_file": files, **method.bindings, **table.bindings}
            names = (chosen["expert"],) if "expert" in chosen else experts.experts
            flags["EXPERTS"] = names if method.experts == MIX else ()
            if method.experts == START:
                flags["INITIAL_EXPERT"] = names[0]
            if table.base is not None:
                flags["INITIAL_CHECKPOINT_PATH"] = table.base
            flags["SEED"] = seed
            flags["LEARNING_RATE"] = chosen["rate"] if "rate" in chosen else 0.0
            if table.draw and shots != FULL:
                flags[table.draw] = seed
            steps = table.steps_of(cell.task, cell.shots) if method.trained else 1
            found.append(Run(cell, candidate, seed, task, tuple(flags.items()), steps))
    return found


def made_for(config: SweepConfig, cell: Cell, task: str) -> ExpertSet:
    """What a run of a cell on a task uses of an expert set; NO_SET where it uses none."""
    return experts_of(config, cell.set, cell.method.library, task) if cell.set.name else NO_SET


def jobs_of(config: SweepConfig, runs: Iterable[Run]) -> list[Job]:
    """The runs as jobs: those that differ only in their task together, `pack` at most."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        key = (run.cell.method.name, run.cell.set.name, run.cell.set.without, repr(run.flags))
        groups.setdefault(key, []).append(run)
    found, size = [], config.table.pack
    for group in groups.values():
        for start in range(0, len(group), size):
            pack = tuple(group[start : start + size])
            cell, flags = pack[0].cell, dict(pack[0].flags)
            made = made_for(config, cell, pack[0].task)
            facts = [flags, cell.set.name, cell.method.library]
            facts += [[run.task, run.steps] for run in pack] + list(cell.set.without)
            label = f"{cell.key}-seed{pack[0].seed}"
            if len(pack) > 1:
                label = f"{cell.method.name}-{len(pack)}tasks-seed{pack[0].seed}"
            name = f"{label}-{file_hash(flags['gin_file'], facts)}"
            found.append(Job(pack, config.path / "runs" / name, made))
    return found


def sources_of(config: SweepConfig) -> list[Source]:
    """The runs of stage 1: experts of the sets that the sweep trains, and pooled pairs."""
    stage1, found = config.experts, []
    pooling = any(METHODS[name].library == POOLED for name in config.table.methods)
    for one in expert_sets(config):
        common = {"gin_file": (stage1.source_file,), "SEED": one.seed}
        if config.table.base is not None:
            common["INITIAL_CHECKPOINT_PATH"] = config.table.base
        for name in one.experts if one.trained else ():
            steps = (
                {"TRAIN_STEPS": stage1.source_steps[name]} if name in stage1.source_steps else {}
            )
            flags = common | {"MIXTURE_OR_TASK_NAME": name} | steps
            found.append(_source(config, one, name, flags))
        if pooling and stage1.pooled:
            flags = common | {
                "MIXTURE_OR_TASK_NAME": stage1.pooled,
                "METHOD": "lora",
                "EXPERT_NAME": POOLED,
                "PROMPT_TEXT": stage1.pooled_prompt,
                "TRAIN_STEPS": stage1.pooled_steps,
            }
            flags = {name: value for name, value in flags.items() if value is not None}
            found.append(_source(config, experts_of(config, one, POOLED), POOLED, flags))
    return found


def _source(config: SweepConfig, chosen: ExpertSet, name: str, flags: Mapping) -> Source:
    folder = f"{chosen.name}-{name}-{file_hash(flags['gin_file'], [dict(flags)])}"
    return Source(chosen, name, config.path / "stage1" / folder, tuple(flags.items()))


def share(config: SweepConfig, key: str) -> bool:
    """Whether this shard does what has this key."""
    index, count = config.share
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % count == index
