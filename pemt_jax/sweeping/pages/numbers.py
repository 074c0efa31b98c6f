"""From the lines of a sweep's results to the numbers of its tables.

With S expert sets of D seeds each, the standard error of a method's mean has three parts: B, the
standard deviation of the sets' means, W, that of seeds within a set (root of the mean variance),
and the binomial variance of N test examples, which all runs share:

    error^2 = B^2 / S + W^2 / D + p (1 - p) / N

W is in B as well, so the error is rather too large than too small. Methods are compared as if they
were independent; the difference from the baseline, seed by seed, is not.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from pemt_jax.reporting.records import FINISHED
from pemt_jax.reporting.scores import SHARES, Group, Score, mark_best, marks_of, metric_names
from pemt_jax.sweeping.methods import METHODS
from pemt_jax.sweeping.plan import ANY


@dataclasses.dataclass
class Entry(Score):
    """A method on a task with so many shots.

    Attributes:
      method: its name in METHODS, or one that another version had.
      shots: as in the table's columns.
      sets: {expert set: {seed: value}} of the chosen runs that were tested.
      runs, failed: how many runs its cells have, and how many of them failed.
      chosen: the candidates that validation chose, one per expert set.
      difference: mean and standard deviation of the difference from the baseline, seed by seed.
      published: a published value of the same method on the task.
    """

    method: str = ""
    shots: str = ""
    sets: Mapping[str, Mapping[int, float]] = dataclasses.field(default_factory=dict)
    runs: int = 0
    failed: int = 0
    chosen: Sequence[str] = ()
    difference: tuple[float | None, float | None] = (None, None)
    published: float | None = None

    @property
    def within(self) -> float | None:
        """Standard deviation over seeds within expert sets; None where no set has two."""
        groups = [list(values.values()) for values in self.sets.values()]
        variances = [statistics.variance(values) for values in groups if len(values) > 1]
        return math.sqrt(statistics.fmean(variances)) if variances else None

    @property
    def between(self) -> float | None:
        """Standard deviation of the means of expert sets; None for one."""
        means = [statistics.fmean(values.values()) for values in self.sets.values()]
        return statistics.stdev(means) if len(means) > 1 else None

    @property
    def seeds(self) -> int:
        """The fewest seeds of an expert set."""
        return min((len(values) for values in self.sets.values()), default=0)

    @property
    def error(self) -> float | None:
        """Standard error of the mean, see above; None where nothing is known of it."""
        if self.mean is None:
            return None
        parts = []
        if self.between is not None:
            parts.append(self.between**2 / len(self.sets))
        if self.within is not None:
            parts.append(self.within**2 / self.seeds)
        if self.metric in SHARES:
            p = self.mean / self.scale
            if not self.examples or not 0 <= p <= 1:
                return None
            parts.append(self.scale**2 * p * (1 - p) / self.examples)
        return math.sqrt(sum(parts)) if parts else None

    @property
    def label(self) -> str:
        """The mean in a cell; why there is none."""
        if self.mean is not None:
            return shown(self.mean)
        return "failed" if self.failed else "–"


Column = tuple[str, str]  # task and shots


def shown(value: float | None) -> str:
    """A metric in a table: percents with one decimal, shares of one with three; a dash for none."""
    return "–" if value is None else f"{value:.1f}" if abs(value) >= 2 else f"{value:.3f}"


def columns(rows: Iterable[Mapping]) -> list[Column]:
    """The (task, shots) of a sweep, in its order; (task, any) only where there is no other."""
    found = dict.fromkeys((str(row["task"]), str(row["shots"])) for row in rows)
    numbered = {task for task, shots in found if shots != ANY}
    kept = [(task, shots) for task, shots in found if shots != ANY or task not in numbered]
    tasks = list(dict.fromkeys(task for task, _ in found))
    return sorted(kept, key=lambda column: tasks.index(column[0]))


def entries(
    rows: Sequence[Mapping], baseline: str, published: Mapping[str, Mapping[str, float]]
) -> dict[tuple[str, Column], Entry]:
    """{(method, column): entry} of a sweep, marked and compared with the baseline."""
    cells: dict[tuple, list[Mapping]] = {}
    for row in rows:
        cells.setdefault((row["method"], row["task"], row["shots"]), []).append(row)
    methods = dict.fromkeys(str(row["method"]) for row in rows)
    found: dict[tuple[str, Column], Entry] = {}
    for column in columns(rows):
        task, shots = column
        of_column = []
        for name in methods:
            members = cells.get((name, task, shots)) or cells.get((name, task, ANY))
            if members:
                found[name, column] = _entry(name, column, members, published)
                of_column.append(found[name, column])
        mark_best(of_column)
        for entry in of_column:
            if entry.method != baseline and (baseline, column) in found:
                entry.difference = _difference(entry, found[baseline, column])
    return found


def _entry(name: str, column: Column, rows: Sequence[Mapping], published: Mapping) -> Entry:
    tested = [row for row in rows if row["test"]]
    metric = main_metric(tested[0]["test"]) if tested else "–"
    sets: dict[str, dict[int, float]] = {}
    for row in tested:
        if metric in row["test"]:
            sets.setdefault(str(row["set"]), {})[int(row["seed"])] = float(row["test"][metric])
    values = [value for group in sets.values() for value in group.values()]
    method = METHODS.get(name)
    entry = Entry(
        Group(()),
        column[0],
        "test",
        metric,
        values,
        method=name,
        shots=column[1],
        sets=sets,
        runs=len(rows),
        failed=sum(row["state"] not in (FINISHED, "waiting") for row in rows),
        chosen=list(dict.fromkeys(candidate(row) for row in rows if row["chosen"])),
        published=published.get(method.published if method else "", {}).get(column[0]),
    )
    facts = next((row["facts"] for row in tested if row["facts"]), {})
    examples, shares = facts.get("examples", {}), facts.get("share", {})
    entry.examples = sum(examples.values()) or None
    entry.majority = facts.get("majority", {}).get(metric)
    if entry.majority and shares:
        entry.scale = 100 if entry.majority / next(iter(shares.values())) > 10 else 1
    entry.marks = marks_of(entry)
    return entry


def main_metric(metrics: Mapping[str, float]) -> str:
    """The metric that a task is chosen by: its average, under its own name where that is one."""
    names = metric_names(dict(metrics))
    return "average" if "average" in names else names[0] if names else "–"


def candidate(row: Mapping) -> str:
    """What was chosen on validation, in words."""
    return ", ".join(f"{name} {value}" for name, value in row["candidate"].items())


def _difference(entry: Entry, base: Entry) -> tuple[float | None, float | None]:
    method = METHODS.get(entry.method)
    found = []
    for name, values in entry.sets.items():
        others = base.sets.get(name, base.sets.get("", {}))
        if method and not method.has_draws and len(values) == 1:  # the same for every seed
            values = dict.fromkeys(others, next(iter(values.values())))
        found += [value - others[seed] for seed, value in values.items() if seed in others]
    if not found:
        return None, None
    return statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None


def costs(rows: Sequence[Mapping], lines: Sequence[Mapping]) -> list[dict[str, object]]:
    """What a run of each method costs: means over runs, of memory the largest.

    The seconds of a job of several tasks are divided equally among them. Forgetting is the mean
    over the runs that were chosen, of which alone it is known.
    """
    by_run = {line["run"]: line for line in lines}
    found = []
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name and row["state"] == FINISHED]
        known = [by_run.get(row["run"], {}) for row in own]
        timed = [one for one in known if one.get("seconds") is not None]
        memory = [one["peak_memory"] for one in timed]
        found.append(
            {
                "method": name,
                "runs": len(own),
                "parameters": _mean([row["parameters"] for row in own]),
                "stored": _mean([one.get("stored") for one in known]),
                "seconds": _mean([one["seconds"] / one["runs"] for one in timed]),
                "memory": max(memory) if memory else None,
                "forgetting": _mean([row.get("forgetting") for row in own]),
            }
        )
    return found


def base_loss(rows: Sequence[Mapping]) -> float | None:
    """The loss of the base on general text; None where forgetting was not measured."""
    known = [row for row in rows if row.get("forgetting") is not None]
    return known[0]["general_loss"] - known[0]["forgetting"] if known else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Which source helps which target: validation with each single expert.

    Attributes:
      scores: {source: {task: value}}, the best rate's, mean over seeds and expert sets.
    """

    method: str
    shots: str
    tasks: Sequence[str]
    scores: Mapping[str, Mapping[str, float]]

    def apart(self, source: str, task: str) -> float | None:
        """How far a score is above the mean of all sources on the task."""
        value = self.scores[source].get(task)
        column = [values[task] for values in self.scores.values() if task in values]
        return None if value is None else value - statistics.fmean(column)

    @property
    def largest(self) -> float:
        parts = [self.apart(source, task) for source in self.scores for task in self.tasks]
        return max((abs(part) for part in parts if part is not None), default=0.0)


def transfers(rows: Sequence[Mapping]) -> list[Transfer]:
    """The transfer matrices of a sweep, by method that chooses an expert and number of shots."""
    tables: dict[tuple, dict[tuple, list[float]]] = {}
    for row in rows:
        if "expert" in row["candidate"] and row["state"] == FINISHED and row["validation"]:
            value = row["validation"].get("average")
            source = (row["candidate"]["expert"], row["task"], row["candidate"].get("rate"))
            if value is not None:
                table = tables.setdefault((row["method"], row["shots"]), {})
                table.setdefault(source, []).append(value)
    found = []
    for (method, shots), table in tables.items():
        scores: dict[str, dict[str, float]] = {}
        for (source, task, _), values in table.items():
            mean, own = statistics.fmean(values), scores.setdefault(source, {})
            own[task] = max(mean, own.get(task, -math.inf))
        tasks = list(dict.fromkeys(task for _, task, _ in table))
        found.append(Transfer(method, shots, tasks, scores))
    return found


def gates(rows: Sequence[Mapping]) -> list[tuple[str, Mapping[str, float]]]:
    """(method on task, {expert: mean gate on the test split}) of the chosen runs that mix some."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for name, value in row["test"].items() if row["chosen"] else ():
            if name.startswith("gate/"):
                key = f"{row['method']}, {row['task']}, {row['shots']}"
                own = found.setdefault(key, {})
                own.setdefault(name.removeprefix("gate/"), []).append(value)
    return [(key, {k: statistics.fmean(v) for k, v in own.items()}) for key, own in found.items()]
