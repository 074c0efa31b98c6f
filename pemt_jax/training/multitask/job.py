"""Many tasks in one job: stage 1 for several sources, or stage 2 for several targets.

    python -m pemt_jax.train --gin_file=runs/stage1.gin \\
        --gin.MIXTURE_OR_TASK_NAME="('pemt_mnli','pemt_qnli')" --gin.MODEL_DIR=runs/sources ...

Each task lives in MODEL_DIR/TASK as a run of its own would: checkpoints, log, artefact.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import optax

from pemt_jax.cli import command as cli
from pemt_jax.common.errors import UsageError
from pemt_jax.model.pemt_model import PemtModel
from pemt_jax.runs.task_run import TaskRun, per_task
from pemt_jax.training.metrics_log import MetricsLog
from pemt_jax.training.multitask.loop import train_many
from pemt_jax.training.multitask.trainer import ManyTrainer


def train_tasks(
    open_run: Callable[..., TaskRun],
    folder: Path,
    names: Sequence[str],
    train_steps: int | Sequence[int],
    prompt_text: str | Sequence[str] | None,
    optimizer: optax.GradientTransformation,
    *,
    fully_sharded: bool,
    task_loop: str,
    **intervals,
) -> dict[str, float]:
    """Train each task, publish it, and return {task/metric: value} of their best checkpoints.

    Args:
      open_run: TaskRun with everything but what follows.
      folder: MODEL_DIR; a task lives in the folder of its name there.
      names, train_steps, prompt_text, optimizer, fully_sharded, task_loop: as of train.train.
      intervals: of many_train.train_many.

    Raises:
      UsageError: names, steps or prompts do not fit together.
    """
    check_names(names, open_run.keywords["expert_name"])
    steps = per_task("TRAIN_STEPS", train_steps, len(names))
    prompts = per_task("PROMPT_TEXT", prompt_text, len(names))
    runs, evaluators = [], {}
    for name, own_steps, prompt in zip(names, steps, prompts, strict=True):
        runs.append(
            open_run(
                folder / name,
                name,
                own_steps,
                prompt_text=prompt,
                together=names,
                evaluators=evaluators,
            )
        )
        if len(runs) > 1:
            runs[-1].frozen = None  # that of the first is that of all
    first, settings = runs[0], open_run.keywords
    longest = max(run.prompt_length for run in runs)
    if len({run.prompt_length for run in runs}) > 1:
        check_padding(optimizer, {run.task: run.trainable["prompt/embedding"] for run in runs})
    options = dataclasses.replace(first.made.model.pemt, prompt_length=longest)
    trainer = ManyTrainer(
        PemtModel(first.made.model.t5, options).loss_fn,
        [run.trainable for run in runs],
        first.frozen,
        optimizer,
        settings["batch_size"],
        settings["seed"],
        settings["mesh"],
        first.made.params_axes,
        settings["prng"],
        fully_sharded,
        task_loop,
    )
    first.frozen = None
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(run.checkpoints()) for run in runs]
        logs = [stack.enter_context(MetricsLog(run.folder)) for run in runs]
        metrics = train_many(
            trainer, runs, kept, logs, started=lambda: cli.write_config(folder), **intervals
        )
    return {
        f"{name}/{metric}": value
        for name, own in zip(names, metrics, strict=True)
        for metric, value in own.items()
    }


def check_names(names: Sequence[str], expert_name: str | None) -> None:
    """Raise UsageError for no task, for one twice, and for one EXPERT_NAME of several experts."""
    if not names:
        raise UsageError("MIXTURE_OR_TASK_NAME names no task, expected at least one.")
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice:
        raise UsageError(f"MIXTURE_OR_TASK_NAME names {twice!r} twice, expected each task once.")
    if expert_name and len(names) > 1:
        raise UsageError(
            f"Found EXPERT_NAME {expert_name!r} for {len(names)} tasks, expected "
            "none, for each expert has its task's name."
        )


def check_padding(optimizer: optax.GradientTransformation, prompts: dict[str, np.ndarray]) -> None:
    """Raise UsageError when the optimizer would see that the shorter prompts are padded.

    One that scales by the size of a whole parameter does: padding makes the prompt's mean smaller.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def updated(prompt, gradient):
        params = {"prompt/embedding": prompt}
        state = optimizer.init(params)
        for _ in range(2):  # the first step of a warm-up has rate 0
            updates, state = optimizer.update({"prompt/embedding": gradient}, state, params, task=0)
        return np.asarray(updates["prompt/embedding"])

    task, prompt = min(prompts.items(), key=lambda item: len(item[1]))
    longest = max(len(other) for other in prompts.values())
    gradient = np.random.default_rng(0).normal(size=prompt.shape).astype(prompt.dtype)
    pad = lambda x: np.pad(x, ((longest - len(x), 0), (0, 0)))  # noqa: E731
    alone, padded = updated(prompt, gradient), updated(pad(prompt), pad(gradient))
    if not np.allclose(padded[longest - len(prompt) :], alone, rtol=1e-3, atol=0):
        raise UsageError(
            f"The prompt of {task!r} has {len(prompt)} tokens and the longest {longest}, and this "
            "optimizer scales by the size of a parameter, expected 'adamw' or 'adamw_hf', or "
            "prompts of one length."
        )
