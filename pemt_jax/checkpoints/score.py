"""What ranks a checkpoint: the value of the run's best metric, as it is stored in the manifest."""

import math
from collections.abc import Mapping

from pemt_jax.common.errors import UsageError, nearest


def score_of(
    step: int, metrics: Mapping[str, float] | None, best_metric: str | None, higher_is_better: bool
) -> dict:
    """Return {value, step}, the value such that higher is better; {} where nothing ranks it.

    Raises:
        UsageError: `metrics` has no `best_metric`.
    """
    if not metrics or best_metric is None:
        return {}
    if best_metric not in metrics:
        raise UsageError(
            f"The evaluation has no metric {best_metric!r}, expected one of "
            f"{', '.join(sorted(metrics))}{nearest(best_metric, metrics)}."
        )
    value = float(metrics[best_metric])
    if math.isnan(value):
        return {}
    return {"value": value if higher_is_better else -value, "step": int(step)}


def rank(score: Mapping | None) -> tuple[float, int]:
    """Order of checkpoints, best last: by value, of equal values the earlier step last."""
    if not score:
        return (-math.inf, 0)
    return (score["value"], -score["step"])
