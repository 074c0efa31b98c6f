"""Runs that differ only in their seed are one row: mean, spread and standard error of each metric.

The standard error of a mean over n seeds has two parts, the spread s of the seeds (standard
deviation) and the number N of examples, which all seeds share:

    error^2 = s^2 / n + p (1 - p) / N

The second part is the binomial variance, known for metrics that are shares of examples. Two results
on the same examples differ less by chance than this says, for it takes them as independent.
"""

import dataclasses
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence

from pemt_jax.reporting.records import FINISHED, Evaluation, RunRecord

# Of the model, not of a task: validation.MODEL_METRICS, whose module brings TensorFlow.
LOSSES = {"loss", "cross_entropy", "task_sparsity_loss"}
SHARES = {"accuracy", "em", "exact_match"}  # means over examples of right (1) and wrong (0)
OWN = {"model_dir", "expert_name", "seed"}  # settings that say which run it is, not of what kind
SEED = re.compile(r"_seed\d+")  # in the name of a few-shot task, which of its draws
NOISE = 2  # standard errors


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed."""

    runs: Sequence[RunRecord]

    @property
    def first(self) -> RunRecord:
        return self.runs[0]

    @property
    def name(self) -> str:
        if len(self.runs) == 1:
            return self.first.name
        names = {re.sub(r"seed_?\d+", "seed*", run.name) for run in self.runs}
        return (
            names.pop() if len(names) == 1 else f"{self.first.name} and {len(self.runs) - 1} more"
        )

    @property
    def seeds(self) -> str:
        return ", ".join(run.seed for run in self.runs if run.seed)

    @property
    def task(self) -> str:
        return SEED.sub("", self.first.task)


@dataclasses.dataclass
class Score:
    """A metric of a group on a split.

    Attributes:
      values: of the runs that have it.
      examples: of the split; None where it is unknown.
      majority: the metric of predicting the most frequent target, likewise.
      scale: 100 for a metric in percent, else 1.
      marks: what has to be known before the number is believed.
    """

    group: Group
    task: str
    split: str
    metric: str
    values: Sequence[float]
    examples: int | None = None
    majority: float | None = None
    scale: float = 1
    marks: list[str] = dataclasses.field(default_factory=list)

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def error(self) -> float | None:
        """Standard error; None for a share of examples whose number is unknown, and for any other
        metric of a single seed."""
        if self.mean is None:
            return None
        seeds = 0.0 if self.spread is None else self.spread**2 / len(self.values)
        if self.metric.rpartition("/")[2] not in SHARES:
            return None if self.spread is None else math.sqrt(seeds)
        p = self.mean / self.scale
        if not self.examples or not 0 <= p <= 1:
            return None
        return math.sqrt(seeds + self.scale**2 * p * (1 - p) / self.examples)


def group_runs(runs: Iterable[RunRecord]) -> list[Group]:
    """The runs that differ only in their seed together, in the order of their first."""
    found: dict[object, list[RunRecord]] = {}
    for run in runs:
        settings = {k: SEED.sub("", v) for k, v in run.settings.items() if k not in OWN}
        if not settings and run.card:
            facts = {k: str(v) for k, v in run.card.config.items() if k not in OWN}
            settings = facts | {"task": SEED.sub("", run.task), "method": run.method}
        key = tuple(sorted(settings.items())) or str(run.folder)
        again = 0  # a run that was repeated with its seed adds nothing to the spread of seeds
        while run.seed in [other.seed for other in found.get((key, again), ())]:
            again += 1
        found.setdefault((key, again), []).append(run)
    return [Group(members) for members in found.values()]


def scores_of(groups: Sequence[Group]) -> list[Score]:
    """Every metric of every group on every split, marked; a split without a metric has one too."""
    found = []
    for group in groups:
        own: dict[tuple[str, str], list[Evaluation]] = {}
        for run in group.runs:
            for evaluation in run.evaluations:
                own.setdefault((SEED.sub("", evaluation.task), evaluation.split), []).append(
                    evaluation
                )
            if run.metrics and (run.task, "validation") not in {
                (e.task, e.split) for e in run.evaluations
            }:
                own.setdefault((group.task, "validation"), []).append(
                    Evaluation(run.task, "validation", run.metrics, _of_card(run))
                )
        finished = any(run.state == FINISHED for run in group.runs)
        if not any(split == "validation" for _, split in own):
            own[group.task, "validation"] = []
        if finished and all(split == "validation" for _, split in own):
            own[group.task, "test"] = []
        for (task, split), evaluations in sorted(own.items()):  # test before validation
            found += _scores(group, task, split, evaluations)
    mark_best(found)
    return found


def _of_card(run: RunRecord) -> dict:
    """The facts of the validation split that a card has: the majority class's average."""
    known = run.card.config.get("majority_class") if run.card else None
    average = known.get("average") if isinstance(known, dict) else None
    if not isinstance(average, int | float):
        return {}
    same = {name for name, value in run.metrics.items() if value == run.metrics.get("average")}
    return {"majority": dict.fromkeys(same, average)}


def _scores(group: Group, task: str, split: str, evaluations: Sequence[Evaluation]) -> list[Score]:
    names = dict.fromkeys(name for one in evaluations for name in metric_names(one.metrics))
    if not names:
        return [Score(group, task, split, "–", ())]
    facts = next((one.facts for one in evaluations if one.facts), {})
    scores = []
    for name in names:
        part = name.rpartition("/")[0]
        values = [one.metrics[name] for one in evaluations if name in one.metrics]
        score = Score(group, task, split, name, values)
        examples, shares = facts.get("examples", {}), facts.get("share", {})
        if not part and len(examples) == 1:  # one task, whose metrics do not carry its name
            (part,) = examples
        score.examples, score.majority = examples.get(part), facts.get("majority", {}).get(name)
        if score.majority and shares.get(part):
            score.scale = 100 if score.majority / shares[part] > 10 else 1
        score.marks = marks_of(score)
        scores.append(score)
    return scores


def metric_names(metrics: Iterable[str]) -> list[str]:
    """The metrics of the task itself; the loss where there is none."""
    values = dict(metrics) if isinstance(metrics, dict) else dict.fromkeys(metrics)
    names = [n for n in values if n not in LOSSES and not n.startswith("gate/")]
    others = [name for name in names if name != "average"]
    if "average" in names and any(values[name] == values["average"] for name in others):
        names.remove("average")  # said already
    return names or [name for name in ("loss",) if name in values]


def marks_of(score: Score) -> list[str]:
    """How a score compares with the majority class's, where that is known."""
    if score.majority is None or not score.values:
        return []
    half = score.scale / score.examples / 2 if score.examples else 1e-6  # of an example
    if all(abs(value - score.majority) < half for value in score.values):
        return ["equals the majority class"]
    error, mean = score.error, score.mean
    noise = NOISE * error if error is not None else 0.0
    if mean is None or mean - score.majority > noise:
        return []
    below = mean < score.majority - noise
    return ["below the majority class" if below else "within the noise of the majority class"]


def mark_best(scores: Sequence[Score]) -> None:
    """Mark the best group of each metric on the same examples, and those not clearly below it."""
    tables: dict[tuple, list[Score]] = {}
    for score in scores:
        if score.mean is not None and score.metric != "loss":
            tables.setdefault((score.task, score.split, score.metric), []).append(score)
    mean: Callable[[Score], float] = lambda score: score.mean or 0.0  # noqa: E731
    for table in tables.values():
        best = max(table, key=mean)
        for score in table if len(table) > 1 else ():
            if score is best:
                score.marks.append("best")
            elif best.error is not None and score.error is not None:
                if mean(best) - mean(score) <= NOISE * math.hypot(best.error, score.error):
                    score.marks.append("within the noise of the best")
