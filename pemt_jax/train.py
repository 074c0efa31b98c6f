"""Train: pretraining, stage 1, stage 2 and baselines, as the gin configuration says.

    python -m pemt_jax.train --gin_file=runs/stage1.gin \\
        --gin.MIXTURE_OR_TASK_NAME=vader_movies --gin.MODEL_DIR=runs/movies

The same command resumes a run that was stopped.  MODEL_DIR then holds checkpoints/, metrics.jsonl
and TensorBoard files, config.gin, and, when the run has ended, what it made: artefact/ (an expert
or a target) or, after method full, base/ (a Hugging Face folder).

SIGTERM and Ctrl-C save at the end of the step. Exit codes: 0 the run has ended, 1 a failure,
2 wrong use, 143 stopped by SIGTERM, 130 by Ctrl-C; after the last two the same command goes on.
"""

from pemt_jax.cli import command as cli  # isort: skip  (silences TensorFlow before it is imported)

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import optax

from pemt_jax.common.errors import UsageError, nearest
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.data.batching import DEFAULT_BUCKETS, train_iterator
from pemt_jax.library.artefact import versions
from pemt_jax.library.expert import default_library
from pemt_jax.parallel import partitioning
from pemt_jax.runs.build_model import MINI_T5
from pemt_jax.runs.task_run import TaskRun
from pemt_jax.tasks.vocabulary import prefer
from pemt_jax.training import loop as trainer
from pemt_jax.training.metrics_log import MetricsLog
from pemt_jax.training.multitask import job as many_job

PRNGS = ("threefry2x32", "rbg")


def train(
    model_dir: str,
    mixture_or_task_name: str | Sequence[str],
    task_feature_lengths: Mapping[str, int],
    train_steps: int | Sequence[int],
    batch_size: int,
    optimizer: optax.GradientTransformation,
    method: str = "pemt_target",
    initial_checkpoint_path: str | None = MINI_T5,
    t5: T5Config | None = None,
    options: PemtConfig | None = None,
    prompt_text: str | Sequence[str] | None = None,
    library: str | None = None,
    experts: Sequence[str] = (),
    initial_expert: str | None = None,
    expert_name: str | None = None,
    dropout_rate: float | None = None,
    broadcast_dropout: bool | None = None,
    dtype: str | None = None,
    remat_policy: str | None = None,
    embedding_rows: int | None = None,
    frozen_dtype: str = "float32",
    base_dtype: str = "float32",
    max_decode_length: int | None = None,
    buckets: Sequence[int] | int = DEFAULT_BUCKETS,
    model_parallel: int = 1,
    expert_parallel: int = 1,
    fully_sharded: bool = False,
    prng: str = "threefry2x32",
    seed: int = 0,
    eval_every: int | None = None,
    eval_batch_size: int = 128,
    save_every: int | None = None,
    log_every: int = 20,
    patience: int | None = None,
    task_loop: str = "map",
) -> dict[str, float]:
    """Train one model, keep the best checkpoint and publish it; return the validation metrics.

    Args:
      model_dir: where the run lives.
      mixture_or_task_name: a SeqIO task or mixture; a mixture trains as one task with one prompt.
        Several names train each of them in one job, in MODEL_DIR/NAME (many_train.py).
      task_feature_lengths: longest inputs and targets, in tokens.
      train_steps, batch_size: updates and rows an update; of several tasks, steps for all or each.
      optimizer: an optax optimizer, see optimizers.make_optimizer.
      method: a row of methods.METHODS.
      initial_checkpoint_path: the base, a Hugging Face T5 folder or a T5X checkpoint; None
        to start from `t5`.
      t5, options: shape of a new backbone; choices of PEMT.
      prompt_text: the prompt's text; None for the task's own description; or one a task.
      library, experts: the expert library and the names of the experts to mix.
      initial_expert: an expert of the library to train on from.
      expert_name: name under which an expert enters the library; None for the task's in stage 1,
        and for a `lora` to stay out of it.
      dropout_rate, dtype: override the base's; dtype "bfloat16" computes in it.
      remat_policy: "minimal" or "full" takes less memory and more time, see config.T5Config.
      broadcast_dropout: one mask for all positions of a row, see config.T5Config.
      embedding_rows: keep only so many rows of the base's embedding.
      frozen_dtype: "bfloat16" halves the memory of the frozen parameters.
      base_dtype: in which method full stores its base, "float32" or "bfloat16".
      max_decode_length: most tokens to generate; None for the longest target of the split.
      buckets: input lengths to pad to, or how many to choose from the data; a step is compiled for
        each, fewer waste more padding.
      model_parallel: devices over which the parameters are split; the rest split the batch.
      expert_parallel: devices over which the experts are split; see partitioning.py.
      fully_sharded: split the backbone's matrices over the data devices as well.
      prng: "threefry2x32", the same bits everywhere; "rbg", quicker dropout on accelerators.
      seed: of initial values, dropout and data order.
      eval_every, save_every, log_every: steps between evaluations, savings, log lines.
      patience: evaluations without a better one after which the run ends early.
      task_loop: how several tasks on one device are updated, one after the other, "map", or all at
        once, "vmap".
    """
    folder = Path(model_dir)
    library = library or str(default_library())
    mesh = partitioning.make_mesh(model=model_parallel, expert=expert_parallel)
    for rows in (batch_size, eval_batch_size):
        partitioning.check_batch_size(rows)
    if seed < 0:
        raise UsageError(f"Found SEED {seed}, expected 0 or more.")
    if prng not in PRNGS:
        raise UsageError(
            f"There are no random numbers {prng!r}, expected one of "
            f"{', '.join(PRNGS)}{nearest(prng, PRNGS)}."
        )
    prefer(initial_checkpoint_path and Path(initial_checkpoint_path) / "spiece.model")
    open_run = functools.partial(
        TaskRun,
        task_feature_lengths=task_feature_lengths,
        batch_size=batch_size,
        method=method,
        base=initial_checkpoint_path,
        t5=t5,
        options=options,
        library=library,
        experts=experts,
        initial_expert=initial_expert,
        dropout_rate=dropout_rate,
        broadcast_dropout=broadcast_dropout,
        dtype=dtype,
        remat_policy=remat_policy,
        embedding_rows=embedding_rows,
        base_dtype=base_dtype,
        frozen_dtype=frozen_dtype,
        max_decode_length=max_decode_length,
        buckets=buckets,
        prng=prng,
        seed=seed,
        eval_batch_size=eval_batch_size,
        mesh=mesh,
        expert_name=expert_name,
    )
    every = dict(
        log_every=log_every,
        eval_every=eval_every,
        save_every=save_every,
        patience=patience,
        versions=versions(),
    )
    if not isinstance(mixture_or_task_name, str):
        return many_job.train_tasks(
            open_run,
            folder,
            mixture_or_task_name,
            train_steps,
            prompt_text,
            optimizer,
            fully_sharded=fully_sharded,
            task_loop=task_loop,
            **every,
        )
    if not isinstance(train_steps, int):
        raise UsageError(f"Found TRAIN_STEPS {train_steps} for one task, expected one number.")
    one = open_run(folder, mixture_or_task_name, train_steps, prompt_text=prompt_text)
    with one.checkpoints() as kept:
        run = trainer.Trainer(
            one.made.model.loss_fn,
            one.trainable,
            one.frozen,
            optimizer,
            seed,
            mesh,
            one.made.params_axes,
            prng,
            fully_sharded,
        )
        one.frozen = None

        def batches(start: int):
            cli.write_config(folder)  # not before the run that is there has been restored
            return train_iterator(one.source, start, train_steps - start)

        with MetricsLog(folder) as log:
            result = trainer.train(
                run,
                batches,
                train_steps,
                checkpoints=kept,
                evaluate=one.validation,
                log=log,
                best_metric=one.best_metric,
                higher_is_better=one.higher_is_better,
                **every | {"eval_every": eval_every if one.validation else None},
            )
        return one.publish(kept, result, run.state.trainable)


if __name__ == "__main__":
    sys.exit(cli.run(train))
