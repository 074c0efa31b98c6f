"""Train: pretraining, stage 1, stage 2 and baselines, as the gin configuration says.

    python -m pemt_jax.train --gin_file=runs/stage1.gin \\
        --gin.MIXTURE_OR_TASK_NAME=vader_movies --gin.MODEL_DIR=runs/movies

The same command resumes a run that was stopped.  MODEL_DIR then holds checkpoints/, metrics.jsonl
and TensorBoard files, config.gin, and, when the run has ended, what it made: artefact/ (an expert
or a target) or, after method full, base/ (a Hugging Face folder).

SIGTERM and Ctrl-C save at the end of the step. Exit codes: 0 the run has ended, 1 a failure,
2 wrong use, 143 stopped by SIGTERM, 130 by Ctrl-C; after the last two the same command goes on.
"""

from pemt_jax import cli  # isort: skip  (silences TensorFlow before it is imported)

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import gin
import optax
import seqio

from pemt_jax import assembly, data, optimizers, partitioning, processes, runs, tasks, trainer
from pemt_jax.artefact import versions
from pemt_jax.batching import DEFAULT_BUCKETS, BatchSource, train_iterator
from pemt_jax.buckets import buckets_for
from pemt_jax.checkpoints import Checkpoints
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.errors import UsageError, nearest
from pemt_jax.evaluator import Evaluator
from pemt_jax.methods import split
from pemt_jax.metrics_log import MetricsLog
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY, prefer
from pemt_jax.validation import Validation

PRNGS = ("threefry2x32", "rbg")

def train(
    model_dir: str,
    mixture_or_task_name: str,
    task_feature_lengths: Mapping[str, int],
    train_steps: int,
    batch_size: int,
    optimizer: optax.GradientTransformation,
    method: str = "pemt_target",
    initial_checkpoint_path: str | None = assembly.MINI_T5,
    t5: T5Config | None = None,
    options: PemtConfig | None = None,
    prompt_text: str | None = None,
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
) -> dict[str, float]:
    """Train one model, keep the best checkpoint and publish it; return the validation metrics.

    Args:
      model_dir: where the run lives.
      mixture_or_task_name: a SeqIO task or mixture; a mixture trains as one task with one prompt.
      task_feature_lengths: longest inputs and targets, in tokens.
      train_steps, batch_size: updates and rows an update.
      optimizer: an optax optimizer, see optimizers.make_optimizer.
      method: a row of methods.METHODS.
      initial_checkpoint_path: the base, a Hugging Face T5 folder or a T5X checkpoint; None
        to start from `t5`.
      t5, options: shape of a new backbone; choices of PEMT.
      prompt_text: the prompt's text; None for the task's own description.
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
    """
    folder = Path(model_dir)
    library = library or str(assembly.expert_library.default_library())
    if method == "pemt_source":
        expert_name = expert_name or mixture_or_task_name
    lengths = dict(task_feature_lengths)
    mesh = partitioning.make_mesh(model=model_parallel, expert=expert_parallel)
    for rows in (batch_size, eval_batch_size):
        partitioning.check_batch_size(rows)
    if seed < 0:
        raise UsageError(f"Found SEED {seed}, expected 0 or more.")
    if prng not in PRNGS:
        raise UsageError(f"There are no random numbers {prng!r}, expected one of "
                         f"{', '.join(PRNGS)}{nearest(prng, PRNGS)}.")  # fmt: skip
    runs.check_publishable(
        folder, method, initial_checkpoint_path, library, expert_name, (base_dtype, frozen_dtype)
    )
    if prompt_text is None and method != "full":
        prompt_text = tasks.description(mixture_or_task_name)
    prefer(initial_checkpoint_path and Path(initial_checkpoint_path) / "spiece.model")
    made = assembly.assemble(
        method, DEFAULT_VOCABULARY, base=initial_checkpoint_path, t5=t5, options=options,
        prompt_text=prompt_text, library=library, experts=experts, initial_expert=initial_expert,
        dropout_rate=dropout_rate, broadcast_dropout=broadcast_dropout, dtype=dtype,
        remat_policy=remat_policy, embedding_rows=embedding_rows,
        max_decode_length=max_decode_length, seed=seed,
    )  # fmt: skip
    with processes.first_alone():  # it tokenises what is not cached yet
        parts = data.open_mixture(mixture_or_task_name, "train", lengths)
        # A mixture may have parts without validation; it is judged on those that have one.
        held_out = [
            data.open_split(part.task_name, "validation", lengths)
            for _, part in parts
            if "validation" in seqio.TaskRegistry.get(part.task_name).splits
        ]
    buckets = buckets_for(buckets, [part for _, part in parts])
    identity = made.identity | {
        "task": mixture_or_task_name,
        "data": {part.task_name: [rate, part.sha256] for rate, part in parts},
        "task_feature_lengths": lengths,
        "batch_size": batch_size,
        "buckets": list(buckets),
        "prng": prng,
        "optimizer": optimizers.same_run(cli.bindings_of(optimizers)),
    }
    processes.agree(base=identity["base"], experts=identity["experts"], data=identity["data"],
                    configuration=gin.config_str(), run=identity)  # fmt: skip
    local_rows = partitioning.local_rows(batch_size, mesh)
    source = BatchSource(parts, batch_size, seed, buckets=buckets, local_rows=local_rows)
    evaluator = Evaluator(
        made.model.predict_batch, made.model.eval_fn, DEFAULT_VOCABULARY, mesh, made.params_axes
    )
    validation = Validation(evaluator, held_out, eval_batch_size, buckets)
    best_metric, higher_is_better = validation.best_metric if held_out else (None, True)
    with Checkpoints(folder / "checkpoints", identity, best_metric, higher_is_better) as kept:
        newest = kept.latest_step() or 0
        position = kept.manifest(newest)["data_step"] if newest else 0
        processes.agree(step=newest, data_position=position)
        if newest > train_steps:  # known before the files of the run that is there change
            raise UsageError(f"{folder} is at step {newest}, expected TRAIN_STEPS of at least "
                             f"that but found {train_steps}.")  # fmt: skip
        trainable, frozen = split(made.nested(), made.method)
        run = trainer.Trainer(
            made.model.loss_fn, trainable, assembly.cast(frozen, frozen_dtype), optimizer, seed,
            mesh, made.params_axes, prng, fully_sharded,
        )  # fmt: skip

        def batches(start: int):
            cli.write_config(folder)  # not before the run that is there has been restored
            return train_iterator(source, start, train_steps - start)

        with MetricsLog(folder) as log:
            result = trainer.train(
                run,
                batches,
                train_steps,
                checkpoints=kept,
                evaluate=validation if held_out else None,
                log=log,
                log_every=log_every,
                eval_every=eval_every if held_out else None,
                save_every=save_every,
                patience=patience,
                best_metric=best_metric,
                higher_is_better=higher_is_better,
                versions=versions(),
            )
        best = kept.best_step()
        step = result.step if best is None else best
        values = processes.to_host(kept.restore_trainable(step, run.state.trainable))
        metrics = kept.manifest(step)["metrics"] or {}
    if processes.is_first():
        made_at = runs.publish(
            folder, values, made, mixture_or_task_name, lengths, metrics, library=library,
            base=initial_checkpoint_path, expert_name=expert_name, base_dtype=base_dtype,
        )  # fmt: skip
        print(f"{made_at}: {method} on {mixture_or_task_name}, step {step}, {metrics}")
    processes.barrier()  # what was published is there for whatever comes next
    return metrics


if __name__ == "__main__":
    sys.exit(cli.run(train))
