"""The metrics of a finished run on a split of its task, or of another task or mixture."""

import json

from pemt_jax.common import storage
from pemt_jax.common.errors import UsageError
from pemt_jax.common.storage import replacing
from pemt_jax.data.buckets import eval_buckets, longest_row
from pemt_jax.data.token_cache import open_mixture
from pemt_jax.finished_config import EvaluateConfig
from pemt_jax.parallel import partitioning, processes
from pemt_jax.parallel.capacity import check_batch
from pemt_jax.runs.finished import FinishedRun, open_run
from pemt_jax.runs.publish import ARTEFACT
from pemt_jax.tasks.pretraining import general_text
from pemt_jax.tasks.pretraining.general_text import register_general_text
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY
from pemt_jax.training.evaluator import Evaluator
from pemt_jax.training.held_back import check_split
from pemt_jax.training.split_facts import split_facts
from pemt_jax.training.validation import Validation


def evaluate(config: EvaluateConfig, run: FinishedRun | None = None) -> dict[str, float]:
    """Return the metrics: the task's, losses, mean gate weight per expert.

    The first process writes them to MODEL_DIR/evaluation/TASK-SPLIT.json, where MODEL_DIR is a
    run's; an artefact, an expert or a base is left as it is. What the report compares them with,
    `split_facts`, is written to MODEL_DIR/evaluation/splits/TASK-SPLIT.json, and the mean gates of
    each layer of a run that has some, {sublayer: {expert: gate}}, to MODEL_DIR/evaluation/gates/.

    Args:
      run: where it is open already.

    Raises:
      UsageError, PemtError: no finished run, no such task or split, or one that is held back.
    """
    if config.more_model_dirs:
        raise UsageError("MORE_MODEL_DIRS is for the command; expected one run here, see `each`.")
    folder, split = storage.path(config.run.model_dir), config.split
    if general := config.general_text and register_general_text(config.general_text):
        split = general_text.SPLIT
    check_split(folder, split)
    run = run or open_run(config.run, DEFAULT_VOCABULARY)
    built = run.built
    name = general or config.mixture_or_task_name or run.task
    lengths = general_text.LENGTHS if general else config.task_feature_lengths or run.lengths
    if not name or not lengths:
        raise UsageError(
            f"{folder} does not name its task, expected MIXTURE_OR_TASK_NAME and "
            "TASK_FEATURE_LENGTHS."
        )
    with processes.first_alone():  # it tokenises what is not cached yet
        splits = [part for _, part in open_mixture(name, split, lengths)]
    size, tokens = config.batch_size, max(longest_row(part, ()) for part in splits)
    check_batch(f"BATCH_SIZE {size} of {tokens} tokens", size, tokens, built.model.t5.emb_dim)
    processes.agree(
        base=built.identity["base"],
        experts=built.identity["experts"],
        data=[part.sha256 for part in splits],
        batch_size=config.batch_size,
    )
    mesh = partitioning.make_mesh(
        model=config.mesh.model_parallel, expert=config.mesh.expert_parallel
    )
    evaluator = Evaluator(
        built.model.predict_batch,
        built.model.eval_fn_by_layer,
        DEFAULT_VOCABULARY,
        mesh,
        built.params_axes,
    )
    params = built.placed(mesh, config.mesh.fully_sharded)
    buckets = eval_buckets(config.buckets, splits)
    metrics, gates = Validation(evaluator, splits, config.batch_size, buckets).with_layers(params)
    if processes.is_first() and any((folder / kept).is_dir() for kept in ("checkpoints", ARTEFACT)):
        place, file = folder / "evaluation", f"{name}-{split}.json"
        for path, content in (
            (place / "splits" / file, split_facts(splits)),
            (place / "gates" / file, gates),
            (place / file, metrics),
        ):
            if content:
                with replacing(path) as partial:
                    partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return metrics
