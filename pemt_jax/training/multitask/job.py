"""Several tasks in one job: stage 1 for several sources, or stage 2 for several targets.

    python -m pemt_jax.train --gin_file=runs/stage1.gin \\
        --gin.MIXTURE_OR_TASK_NAME="('pemt_mnli','pemt_qnli')" --gin.MODEL_DIR=runs/sources ...

Each task's run is kept in MODEL_DIR/TASK as a run of its own would be: checkpoints, log, artefact.
Only the step is shared, over one frozen backbone.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from pemt_jax.common.errors import UsageError
from pemt_jax.model.pemt_model import PemtModel
from pemt_jax.optimizers import Transformation, with_task
from pemt_jax.run_config import TrainConfig
from pemt_jax.training.loop import run_loop
from pemt_jax.training.metrics_log import MetricsLog
from pemt_jax.training.multitask.stepper import MultitaskStepper
from pemt_jax.training.multitask.trainer import MultitaskTrainer, TaskView


def train_tasks(
    config: TrainConfig, runs: Sequence, started: Callable[[], None]
) -> dict[str, float]:
    """Train each task's run, publish it, and return {task/metric: value} of their best checkpoints.

    Args:
      config: of the job.
      runs: runs.task_run.TaskRun of each task, the first with the frozen parameters of all.
      started: called once, when everything is ready to train.

    Raises:
      Stopped, PemtError: as training.loop.run_loop.
    """
    first = runs[0]
    if len({run.prompt_length for run in runs}) > 1:
        mixing = first.built.model.pemt.prompt_mixing
        if mixing in ("attention", "product"):
            raise UsageError(
                f"The tasks' prompts have different lengths and PemtConfig.prompt_mixing is "
                f"{mixing!r}, expected one length, as of one PROMPT_TEXT, or a run per task."
            )
        check_padding(
            config.optimizer, {run.task: run.trainable["prompt/embedding"] for run in runs}
        )
    longest = max(run.prompt_length for run in runs)
    options = dataclasses.replace(first.built.model.pemt, prompt_length=longest)
    trainer = MultitaskTrainer(
        PemtModel(first.built.model.t5, options).loss_fn,
        [run.trainable for run in runs],
        first.take_frozen(),
        config.optimizer,
        config.data.batch_size,
        config.loop.seed,
        first.mesh,
        first.built.params_axes,
        config.loop.prng,
        config.mesh.fully_sharded,
        config.loop.task_loop,
        first.built.model.t5.scan_layers,
    )
    stepper = MultitaskStepper(
        trainer, [run.source for run in runs], [run.prompt_length for run in runs]
    )
    metrics = {}
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(run.checkpoints()) for run in runs]
        in_loop = []
        for i, (run, checkpoints) in enumerate(zip(runs, kept, strict=True)):
            view = TaskView(trainer, i)
            log = stack.enter_context(MetricsLog(run.folder))
            in_loop.append(run.in_loop(view, checkpoints, log, metrics, name=run.task))
        started()
        run_loop(stepper, in_loop, config.loop, config.folder / "profile")
    return {
        f"{run.task}/{name}": value for run in runs for name, value in metrics[run.task].items()
    }


def check_padding(optimizer: Transformation, prompts: dict[str, np.ndarray]) -> None:
    """Raise UsageError when the optimizer would see that the shorter prompts are padded.

    One that scales by the size of a whole parameter does: padding makes the prompt's mean smaller.
    """
    optimizer = with_task(optimizer)

    def updated(prompt, gradient):
        params = {"prompt/embedding": prompt}
        state = optimizer.init(params)
        for _ in range(2):  # the first step of a warm-up has rate 0
            updates, state = optimizer.update({"prompt/embedding": gradient}, state, params, task=0)
        return np.asarray(cast(dict, updates)["prompt/embedding"])

    def padded(x):
        return np.pad(x, ((longest - len(x), 0), (0, 0)))

    task, prompt = min(prompts.items(), key=lambda item: len(item[1]))
    longest = max(len(other) for other in prompts.values())
    gradient = np.random.default_rng(0).normal(size=prompt.shape).astype(prompt.dtype)
    alone, with_padding = updated(prompt, gradient), updated(padded(prompt), padded(gradient))
    if not np.allclose(with_padding[longest - len(prompt) :], alone, rtol=1e-3, atol=0):
        raise UsageError(
            f"The prompt of {task!r} has {len(prompt)} tokens and the longest {longest}, and this "
            "optimizer scales by the size of a parameter, expected 'adamw' or 'adamw_hf', or "
            "prompts of one length."
        )
