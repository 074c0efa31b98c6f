"""Evaluation: predictions through a SeqIO task's own postprocessing and metrics, and mean losses.

A task's metric functions see what they would see in SeqIO's evaluator: targets from the text
before tokenisation, predictions decoded to text, both postprocessed with the example at hand.
For a mixture each task is evaluated by itself and reported as `task/metric`; `average` is the mean
over tasks of a task's own `average`, or of its metrics if it has none, and exists for a single
task too.
"""

import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
import seqio
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pemt_jax.common.errors import PemtError, UsageError, shortened
from pemt_jax.common.user_input.code import defined_at, user_code
from pemt_jax.parallel import partitioning
from pemt_jax.parallel.activation_constraints import constrained
from pemt_jax.tasks.metrics import text_of
from pemt_jax.training.step import compute_metrics, merge_metrics

EvalBatches = Iterable[tuple[np.ndarray, Mapping[str, np.ndarray]]]


class Evaluator:
    """Compiled prediction and evaluation steps of one model; one compilation a batch shape.

    Args:
        predict_fn: PemtModel.predict_batch: (params, batch) -> int32 tokens [B, T].
        eval_fn: PemtModel.eval_fn: (params, batch) -> (loss, {name: clu metric}).
        vocabulary: decodes tokens to text.
        mesh: where batches are placed; the parameters are expected there.
        params_axes: the model's logical axes, by which activations are split too.
    """

    def __init__(
        self,
        predict_fn: Callable,
        eval_fn: Callable,
        vocabulary,
        mesh: Mesh,
        params_axes: Mapping | None = None,
    ):
        predict_fn = constrained(predict_fn, mesh, params_axes)
        eval_fn = constrained(eval_fn, mesh, params_axes)
        self.vocabulary = vocabulary
        self.mesh = mesh
        # Replicated results: every host of a pod can read all rows.
        replicated = NamedSharding(mesh, PartitionSpec())
        self._predict = jax.jit(lambda p, b: predict_fn(p, b), out_shardings=replicated)
        self._eval = jax.jit(lambda p, b: eval_fn(p, b)[1], out_shardings=replicated)
        # In one program the two share what the encoder does, which XLA finds.
        self._both = jax.jit(
            lambda p, b: (eval_fn(p, b)[1], predict_fn(p, b)), out_shardings=replicated
        )

    def predict(self, params, batches: EvalBatches) -> dict[int, str]:
        """Return {row index: predicted text} of batches as data.eval_batches yields them.

        A batch may hold more rows than it has indices: the rest only fills it.
        """
        texts: dict[int, str] = {}
        for rows, batch in batches:
            tokens = self._predict(params, partitioning.place_batch(batch, self.mesh))
            texts |= self._texts(rows, tokens)
        return texts

    def mean_metrics(self, params, batches: EvalBatches) -> dict[str, float]:
        """Return the model's metrics over all batches, as `judge` does."""
        return self.judge(params, [(batches, False)])[0]

    def judge(
        self, params, splits: Iterable[tuple[EvalBatches, bool]]
    ) -> tuple[dict[str, float], list[dict[int, str]]]:
        """Return the model's metrics over all splits (loss, mean gates, ...), and the predictions.

        Every clu metric is merged by its own weights, so that the sizes of batches do not matter.

        Args:
          splits: of each its batches, and whether predictions are wanted; else they are empty.
        """
        total, predictions = None, []
        for batches, predicts in splits:
            texts: dict[int, str] = {}
            for rows, batch in batches:
                placed = partitioning.place_batch(batch, self.mesh)
                if predicts:
                    new, tokens = self._both(params, placed)
                    texts |= self._texts(rows, tokens)
                else:
                    new = self._eval(params, placed)
                total = new if total is None else merge_metrics(total, new)
            predictions.append(texts)
        if total is None:
            raise UsageError("There is no batch to evaluate, expected at least one example.")
        return compute_metrics(total), predictions

    def _texts(self, rows: np.ndarray, tokens: jax.Array) -> dict[int, str]:
        pairs = zip(rows, np.asarray(tokens), strict=False)
        return {int(row): decode(self.vocabulary, tokens_T) for row, tokens_T in pairs}


def decode(vocabulary, tokens: np.ndarray) -> str:
    """Return the text before the end of sequence (or the first padding) of int tokens [T]."""
    tokens = np.asarray(tokens)
    ends = np.flatnonzero((tokens == 0) | (tokens == (vocabulary.eos_id or 1)))
    return vocabulary.decode(tokens[: ends[0] if len(ends) else None].tolist())


def target_text(task: seqio.Task, split, row: int) -> str:
    """The target of a row of a TokenizedSplit, before tokenisation where that is known."""
    example = split.example(row)
    if "targets_pretokenized" in example:
        return text_of(example["targets_pretokenized"])
    return decode(task.output_features["targets"].vocabulary, split.targets(row))


def score(task: seqio.Task, split, predictions: Mapping[int, str]) -> dict[str, float]:
    """Apply the task's postprocessing and metric functions to {row: text} for every row.

    Raises:
        UsageError: the task has no metric function of (targets, predictions), or rows are missing.
    """
    if not (functions := metric_functions(task)):
        raise UsageError(
            f"Task {task.name!r} has no metric function of (targets, predictions), expected one."
        )
    if len(predictions) != len(split):
        raise UsageError(
            f"Task {task.name!r} has {len(predictions)} predictions, expected {len(split)}."
        )
    targets, predicted = [], []
    for row in range(len(split)):
        example, target = split.example(row), target_text(task, split, row)
        with user_code(f"The postprocessor of task {task.name!r}", task._postprocess_fn):
            targets.append(task.postprocess_fn(target, example=example, is_target=True))
            text = predictions[row]
            predicted.append(task.postprocess_fn(text, example=example, is_target=False))
    metrics: dict[str, float] = {}
    for function in functions:
        what = f"The metric {metric_name(function)} of task {task.name!r}"
        with user_code(what, function):
            found = function(targets, predicted)
            metrics |= numbers_of(found)
        if not isinstance(found, Mapping):
            where = defined_at(function)
            raise PemtError(
                f"{what}{where and f' ({where})'} returned {shortened(found)}, expected a "
                "dictionary of names and numbers."
            )
    if not metrics:
        raise PemtError(
            f"The metrics of task {task.name!r}, {', '.join(map(metric_name, functions))}, "
            "returned no number, expected at least one."
        )
    return metrics


def metric_functions(task: seqio.Task) -> Sequence[Callable]:
    """The task's functions of (targets, predictions); PemtError where one is none of SeqIO's."""
    given = next(iter(task._metric_fn_constructor_args), None)  # SeqIO looks at them at first use
    with user_code(f"The signature of a metric of task {task.name!r}", given):
        return task.predict_metric_fns


def metric_name(function: Callable) -> str:
    """What a metric function is called."""
    return getattr(getattr(function, "func", function), "__name__", "") or repr(function)


def numbers_of(found: object) -> dict[str, float]:
    """The scores among what a metric function returned: {name: number}.

    Texts, histograms and the like of seqio.metrics are none. TypeError for a name that is no text.
    """
    scores = {}
    for name, value in found.items() if isinstance(found, Mapping) else ():
        value = getattr(value, "value", value)
        if not isinstance(name, str):
            raise TypeError(f"it returned the name {name!r}, expected a text")
        if isinstance(value, numbers.Real | np.ndarray | jax.Array):
            array = np.asarray(value)
            if array.ndim == 0:
                scores[name] = float(array)
    return scores


def with_average(per_task: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return flat metrics with `average`, the mean over tasks of a task's average.

    That is its own metric `average`, or else the mean of its metrics.
    """
    averages = [
        metrics.get("average", float(np.mean(list(metrics.values()))))
        for metrics in per_task.values()
    ]
    average = float(np.mean(np.array(averages)))
    if len(per_task) == 1:
        (metrics,) = per_task.values()
        return {**metrics, "average": average}
    flat = {
        f"{task}/{name}": value
        for task, metrics in per_task.items()
        for name, value in metrics.items()
    }
    return {**flat, "average": average}
