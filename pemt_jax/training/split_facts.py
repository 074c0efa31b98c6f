"""What the metrics of a split are compared with: how many examples, and what a constant scores."""

from collections import Counter
from collections.abc import Sequence

import seqio

from pemt_jax.training.evaluator import score, target_text, with_average


def split_facts(splits: Sequence) -> dict[str, dict]:
    """Return {"examples", "share", "majority"} of TokenizedSplits, one per task.

    `examples` and `share` are by task, the number of examples and the share of those with the most
    frequent target; `majority` has the metrics of always predicting that target, named as
    `Validation` names them. Tasks without metrics have examples only.
    """
    shares, scores = {}, {}
    for split in splits:
        task, rows = seqio.TaskRegistry.get(split.task_name), range(len(split))
        if task.predict_metric_fns:
            counts = Counter(target_text(task, split, row) for row in rows)
            (target, count), *_ = counts.most_common(1)
            shares[task.name] = count / len(split)
            scores[task.name] = score(task, split, dict.fromkeys(rows, target))
    return {
        "examples": {split.task_name: len(split) for split in splits},
        "share": shares,
        "majority": with_average(scores) if scores else {},
    }
