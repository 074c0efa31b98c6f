"""Evaluate a finished run on a split of its task, or of another task or mixture.

    python -m pemt_jax.evaluate --gin.MODEL_DIR=runs/amazon --gin.SPLIT=test

Prints one JSON object and writes it to MODEL_DIR/evaluation/TASK-SPLIT.json. MODEL_DIR may also be
an artefact, an expert of a library or a base, which are left as they are. Modules that
MODEL_DIR/config.gin imports, such as those that register the tasks, are imported. The runs of
MORE_MODEL_DIRS are evaluated after it, a line each, without another start of the program.
"""

import json
import sys

from pemt_jax.cli import command
from pemt_jax.cli.gin_config import import_modules_of
from pemt_jax.common.configured import configured
from pemt_jax.finished_config import EvaluateConfig


@configured(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """Print the metrics of finished runs, one line each; return those of the last."""
    from pemt_jax import api  # brings TensorFlow, which a command silences first
    from pemt_jax.parallel import processes

    metrics = {}
    for one in config.each:
        import_modules_of(one.run.model_dir)
        metrics = api.evaluate_run(one)
        if processes.is_first():
            print(json.dumps(metrics), flush=True)
    processes.barrier()
    return metrics


if __name__ == "__main__":
    sys.exit(command.run(evaluate))
