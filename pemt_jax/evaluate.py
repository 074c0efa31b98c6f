"""Evaluate a finished run on a split of its task, or of another task or mixture.

    python -m pemt_jax.evaluate --gin.MODEL_DIR=runs/amazon --gin.SPLIT=test

Prints one JSON object and writes it to MODEL_DIR/evaluation/TASK-SPLIT.json. MODEL_DIR may also be
an artefact, an expert of a library or a base, which are left as they are.
"""

from pemt_jax.cli import command as cli  # isort: skip  (silences TensorFlow before it is imported)

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pemt_jax.common.errors import UsageError
from pemt_jax.common.storage import replacing
from pemt_jax.data.batching import DEFAULT_BUCKETS
from pemt_jax.data.token_cache import open_mixture
from pemt_jax.parallel import partitioning, processes
from pemt_jax.runs.finished import open_run
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY
from pemt_jax.training.evaluator import Evaluator
from pemt_jax.training.validation import Validation


def evaluate(
    model_dir: str,
    mixture_or_task_name: str | None = None,
    split: str = "test",
    task_feature_lengths: Mapping[str, int] | None = None,
    batch_size: int = 128,
    buckets: Sequence[int] = DEFAULT_BUCKETS,
    initial_checkpoint_path: str | None = None,
    library: str | None = None,
    vocabulary: str | None = None,
    model_parallel: int = 1,
    expert_parallel: int = 1,
    fully_sharded: bool = False,
) -> dict[str, float]:
    """Return the metrics of a finished run: the task's, losses, mean gate weight an expert.

    Args:
      model_dir: the run.
      mixture_or_task_name, task_feature_lengths: None for those it was trained on.
      split: of the task or of every task of the mixture.
      batch_size: rows of a batch.
      buckets: input lengths to pad to.
      initial_checkpoint_path, library: the base and the experts, if they were moved.
      vocabulary: a spiece.model; None for the one beside the base.
      model_parallel: devices over which the parameters are split; the rest split the batch.
      expert_parallel: devices over which the experts are split; see partitioning.py.
      fully_sharded: split the backbone's matrices over the data devices as well.
    """
    made, card = open_run(
        model_dir, DEFAULT_VOCABULARY, initial_checkpoint_path, library, vocabulary
    )
    name = mixture_or_task_name or (card and card.task)
    lengths = task_feature_lengths or (card and card.config["task_feature_lengths"])
    if not name or not lengths:
        raise UsageError(
            f"{model_dir} does not name its task, expected MIXTURE_OR_TASK_NAME and "
            "TASK_FEATURE_LENGTHS."
        )
    with processes.first_alone():  # it tokenises what is not cached yet
        splits = [part for _, part in open_mixture(name, split, lengths)]
    processes.agree(
        base=made.identity["base"],
        experts=made.identity["experts"],
        data=[part.sha256 for part in splits],
        batch_size=batch_size,
    )
    mesh = partitioning.make_mesh(model=model_parallel, expert=expert_parallel)
    partitioning.check_batch_size(batch_size)
    evaluator = Evaluator(
        made.model.predict_batch, made.model.eval_fn, DEFAULT_VOCABULARY, mesh, made.params_axes
    )
    params = made.placed(mesh, fully_sharded)
    metrics = Validation(evaluator, splits, batch_size, buckets)(params)
    text = json.dumps(metrics)
    if processes.is_first():
        if (Path(model_dir) / "checkpoints").is_dir():  # an artefact or a base is left as it is
            with replacing(Path(model_dir) / "evaluation" / f"{name}-{split}.json") as partial:
                partial.write_text(text + "\n", encoding="utf-8")
        print(text)
    processes.barrier()
    return metrics


if __name__ == "__main__":
    sys.exit(cli.run(evaluate))
