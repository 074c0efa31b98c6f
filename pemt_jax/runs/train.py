"""A training run from its configuration to what it publishes."""

import contextlib
import logging
from collections.abc import Callable

from pemt_jax.data.batching import train_iterator
from pemt_jax.run_config import TrainConfig
from pemt_jax.runs.config_file import write_config
from pemt_jax.runs.model_dir import alone, check_model_dir
from pemt_jax.runs.probe import check_answers
from pemt_jax.runs.task_run import TaskRun, open_runs
from pemt_jax.training import loop
from pemt_jax.training.metrics_log import MetricsLog
from pemt_jax.training.multitask.job import train_tasks
from pemt_jax.training.trainer import Trainer

log = logging.getLogger(__name__)


def train(config: TrainConfig, config_text: Callable[[], str] | None = None) -> dict[str, float]:
    """Train as the configuration says, publish the result and return its validation metrics.

    Args:
      config: the run; of a job of several tasks the metrics are {task/metric: value}.
      config_text: gives the text of MODEL_DIR/config.gin; None to write it from `config`.

    Raises:
      UsageError, PemtError: the configuration is wrong, or the run failed.
      Stopped: SIGTERM or SIGINT came; the same call resumes the run.
    """

    def started() -> None:
        write_config(config, config_text)

    if config.is_job:
        check_answers({"MODEL_DIR": config.folder})
        check_model_dir(config.folder)
        runs = open_runs(config)
        with alone([config.folder, *(run.folder for run in runs)]):
            return train_tasks(config, runs, started)
    run = TaskRun(config)
    with alone([run.folder]):
        return train_one(run, started)


def train_one(run: TaskRun, started: Callable[[], None]) -> dict[str, float]:
    """Train and publish the run of one task; `started` is called before its first step."""
    config, metrics = run.config, {}
    settings = config.loop
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(run.checkpoints())
        trainer = Trainer(
            run.built.model.loss_fn,
            run.trainable,
            run.take_frozen(),
            config.optimizer,
            settings.seed,
            run.mesh,
            run.built.params_axes,
            settings.prng,
            config.mesh.fully_sharded,
            release=True,
            scan_layers=run.built.model.t5.scan_layers,
        )

        def batches(start: int):
            started()  # not before the run that is there has been restored
            return train_iterator(run.source, start, config.steps - start)

        in_loop = run.in_loop(trainer, kept, stack.enter_context(MetricsLog(run.folder)), metrics)
        stepper = loop.SingleStepper(trainer, batches)
        loop.run_loop(stepper, [in_loop], settings, config.folder / "profile")
    return metrics[run.task]
