"""Train: pretraining, stage 1, stage 2 and baselines, as the gin configuration says.

    python -m pemt_jax.train --gin_file=runs/stage1.gin \\
        --gin.MIXTURE_OR_TASK_NAME=vader_movies --gin.MODEL_DIR=runs/movies

The same command resumes a run that was stopped. MODEL_DIR then holds checkpoints/, metrics.jsonl
and TensorBoard files, config.gin, and, when the run has ended, its result: artefact/ (an expert
or a target) or, after methods full and decoder, base/ (a Hugging Face folder).

SIGTERM and Ctrl-C save at the end of the step. Exit codes: 0 the run has ended, 1 a failure,
2 wrong use, 143 stopped by SIGTERM, 130 by Ctrl-C; after the last two the same command resumes.
"""

import sys
from collections.abc import Callable

from pemt_jax.cli import command
from pemt_jax.common.configured import configured
from pemt_jax.run_config import TrainConfig


@configured(TrainConfig)
def train(config: TrainConfig, config_text: Callable[[], str] | None = None) -> dict[str, float]:
    """Train one model, keep the best checkpoint and publish it; return the validation metrics."""
    from pemt_jax import api  # brings TensorFlow, which a command silences first

    return api.train_run(config, config_text)


if __name__ == "__main__":
    sys.exit(command.run(train, first_line="importing TensorFlow and the tasks"))
