"""Evaluate a finished run on a split of its task, or of another task or mixture.

    python -m pemt_jax.evaluate --gin.MODEL_DIR=runs/amazon --gin.SPLIT=test

Prints one JSON object and writes it to MODEL_DIR/evaluation/TASK-SPLIT.json. MODEL_DIR may also be
an artefact, an expert of a library or a base, which are left as they are. Modules that
MODEL_DIR/config.gin imports, such as those that register the tasks, are imported.
"""

import json
import sys

from pemt_jax.cli import command
from pemt_jax.cli.gin_config import import_modules_of
from pemt_jax.common.configured import configured
from pemt_jax.finished_config import EvaluateConfig


@configured(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """Return and print the metrics of a finished run."""
    from pemt_jax import api  # brings TensorFlow, which a command silences first
    from pemt_jax.parallel import processes

    import_modules_of(config.run.model_dir)
    metrics = api.evaluate_run(config)
    if processes.is_first():
        print(json.dumps(metrics))
    processes.barrier()
    return metrics


if __name__ == "__main__":
    sys.exit(command.run(evaluate))
