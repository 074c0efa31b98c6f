"""How a run is evaluated: a task's metrics if it has any, and the model's mean loss and gates."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence

import seqio

from pemt_jax.data.batching import DEFAULT_BUCKETS, eval_batches
from pemt_jax.model.pemt_model import LAYER_GATE
from pemt_jax.parallel import partitioning, processes
from pemt_jax.training.evaluator import (
    Evaluator,
    metric_functions,
    score,
    target_text,
    with_average,
)

MOST_CLASSES = 20
MODEL_METRICS = ("loss", "cross_entropy", "task_sparsity_loss")


@dataclasses.dataclass(frozen=True)
class Validation:
    """Judges parameters on tokenised splits.

    Attributes:
      evaluator: compiled prediction and evaluation steps.
      splits: one `TokenizedSplit` per task.
      batch_size: rows of a batch.
      buckets: input lengths to pad to.
    """

    evaluator: Evaluator
    splits: Sequence
    batch_size: int
    buckets: Sequence[int] = DEFAULT_BUCKETS

    @functools.cached_property
    def scored(self) -> list:
        """The splits whose tasks have metrics."""
        tasks = [seqio.TaskRegistry.get(split.task_name) for split in self.splits]
        return [split for split, t in zip(self.splits, tasks, strict=True) if metric_functions(t)]

    @property
    def best_metric(self) -> tuple[str, bool]:
        """The metric that chooses the best checkpoint, and whether higher is better."""
        return ("average", True) if self.scored else ("loss", False)

    def __call__(self, params) -> dict[str, float]:
        """Return {metric: value}: the model's losses and gates, the tasks' metrics, `average`."""
        return self.with_layers(params)[0]

    def with_layers(self, params) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Return the metrics, and {sublayer: {expert: mean gate}}.

        The latter is empty unless the evaluator has `PemtModel.eval_fn_by_layer`.
        """
        tasks = [seqio.TaskRegistry.get(split.task_name) for split in self.splits]
        scored = [bool(metric_functions(task)) for task in tasks]
        asked = zip(map(self.batches, self.splits), scored, strict=True)
        means, predictions = self.evaluator.judge(params, asked)
        metrics = {k: v for k, v in means.items() if k in MODEL_METRICS or k.startswith("gate/")}
        if any(scored):
            found = zip(scored, tasks, self.splits, predictions, strict=True)
            metrics |= with_average(
                {task.name: score(task, split, texts) for has, task, split, texts in found if has}
            )
        layers: dict[str, dict[str, float]] = {}
        for key, value in means.items():
            if key.startswith(LAYER_GATE):
                layer, _, expert = key.removeprefix(LAYER_GATE).rpartition("/")
                layers.setdefault(layer, {})[expert] = value
        return processes.from_first(metrics), layers  # so that all decide alike

    @functools.cached_property
    def majority(self) -> float | None:
        """The `average` of giving every example its split's most frequent target.

        None unless all tasks with metrics are classifications, by the targets of their splits.
        """
        per_task = {}
        for split in self.scored:
            if (answer := majority_class(split)) is None:
                return None
            constant = dict.fromkeys(range(len(split)), answer)
            task = seqio.TaskRegistry.get(split.task_name)
            per_task[split.task_name] = score(task, split, constant)
        return with_average(per_task)["average"] if per_task else None

    def batches(self, split):
        local_rows = partitioning.local_rows(self.batch_size, self.evaluator.mesh)
        return eval_batches(split, self.batch_size, self.buckets, local_rows=local_rows)


def majority_class(split) -> str | None:
    """The most frequent target text of a split; None where it is no classification.

    It is one where there are at most MOST_CLASSES targets, on average of two examples or more.
    """
    task = seqio.TaskRegistry.get(split.task_name)
    counts = Counter(target_text(task, split, row) for row in range(len(split)))
    if len(counts) > min(MOST_CLASSES, len(split) // 2):
        return None
    return counts.most_common(1)[0][0]
