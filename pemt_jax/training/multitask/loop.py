"""The training loop of many tasks: what trainer.train does for one, for each of them.

A task has its own steps, log, checkpoints, best evaluation and end; only the step is shared. Tasks
that a stop has left at different steps meet again: the job makes the earliest step that one of
them lacks, with those that lack it, until all stand at the same step. A task whose loss is not
finite stops where it is, and the others go on.
"""

import dataclasses
import signal
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from pemt_jax.checkpoints.manager import Checkpoints
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.data.batching import train_iterator
from pemt_jax.parallel import processes
from pemt_jax.parallel.stop_signals import Stopped, StopRequest, StopSignals
from pemt_jax.runs.task_run import TaskRun
from pemt_jax.training.loop import Loop, TrainResult, check_intervals, resume, window_like
from pemt_jax.training.metrics_log import MetricsLog
from pemt_jax.training.multitask.batches import ManyBatchSource
from pemt_jax.training.multitask.trainer import ManyTrainer
from pemt_jax.training.progress import Progress
from pemt_jax.training.step import Params, TrainState, merge_metrics


@dataclasses.dataclass(frozen=True)
class OneOfMany:
    """One task of a ManyTrainer, as trainer.Loop sees the trainer of a run."""

    many: ManyTrainer
    task: int

    @property
    def seed(self) -> int:
        return self.many.seed

    @property
    def state(self) -> TrainState:
        return self.many.task_state(self.task)

    @property
    def frozen(self) -> Params:
        return self.many.frozen

    @property
    def trainable_like(self) -> dict[str, jax.ShapeDtypeStruct]:
        return self.many.trainable_like(self.task)

    def params(self) -> dict:
        return self.many.params(self.task)

    def restore(self, checkpoints: Checkpoints, step: int) -> None:
        self.many.restore(self.task, checkpoints, step)


@dataclasses.dataclass
class _Task:
    """One task's run in the job; `failure` is why it stopped before its end.

    It has ended after its last step, and finished when what then is owed has been done.
    """

    run: TaskRun
    loop: Loop
    patience: int | None
    failure: PemtError | None = None
    finished: bool = False

    @property
    def result(self) -> TrainResult:
        return self.loop.run

    @property
    def ended(self) -> bool:
        waited = self.patience and self.result.waited >= self.patience
        return bool(self.failure or waited or self.result.step >= self.run.train_steps)

    @property
    def end(self) -> int:
        """The step before which it takes part."""
        return self.result.step if self.ended else self.run.train_steps

    def give(self, window, log: bool) -> None:
        """Take the metrics since the last log point: to log them, or to save them unlogged."""
        self.loop.window = window
        try:
            self.loop.log_window() if log else self.loop.check_finite()
        except PemtError as error:
            self.failure = PemtError(f"{self.run.task}: {error}")

    def evaluate(self) -> None:
        run = self.run
        self.loop.evaluate(run.validation, run.best_metric, 1 if run.higher_is_better else -1)


def train_many(
    trainer: ManyTrainer,
    runs: Sequence[TaskRun],
    checkpoints: Sequence[Checkpoints],
    logs: Sequence[MetricsLog],
    *,
    started: Callable[[], None],
    log_every: int = 20,
    eval_every: int | None = None,
    save_every: int | None = None,
    patience: int | None = None,
    versions: Mapping[str, str] | None = None,
) -> list[dict[str, float]]:
    """Train each task to its end, from its latest checkpoint, and publish it there and then.

    Args:
        trainer: made of the runs' trainables, in their order.
        runs, checkpoints, logs: of each task.
        started: called once, before the first step.
        log_every, eval_every, save_every, patience, versions: as in trainer.train, of every task.

    Returns:
        The validation metrics of each task's best checkpoint.

    Raises:
        Stopped: as in trainer.train; the state of every task is saved.
        PemtError: a task had a step that was not finite; the others have ended and are published.
    """
    check_intervals(
        log_every=log_every, eval_every=eval_every, save_every=save_every, patience=patience
    )
    lacking = [run.task for run in runs if run.validation is None]
    if patience is not None and lacking:
        raise UsageError(
            f"Patience needs an evaluation, expected {lacking[0]!r} to have a validation split."
        )
    tasks = []
    for index, (run, kept, log) in enumerate(zip(runs, checkpoints, logs, strict=True)):
        view = OneOfMany(trainer, index)
        result, window = resume(view, kept, log, run.train_steps)
        progress = Progress(run.train_steps, result.step, name=run.task)
        loop = Loop(
            view, result, run.train_steps, kept, log, progress, dict(versions or {}), carried=window
        )
        tasks.append(_Task(run, loop, patience))
    job = _Job(trainer, tasks, started)
    with StopSignals() as signals:
        for task in tasks:
            task.loop.signals = signals
        try:
            for task in tasks:
                owing = eval_every and task.result.step and task.result.step % eval_every == 0
                # A run stopped between a step and its evaluation still owes it.
                if owing and task.run.validation and task.result.evaluated != task.result.step:
                    task.evaluate()
                job.finish_if_ended(task)
            while job.running:
                step, active = job.step()
                due = lambda every, step=step: every is not None and step % every == 0  # noqa: E731
                last = [task for task in active if step == task.run.train_steps]
                if due(log_every) or due(eval_every) or due(save_every) or last:
                    everyone = due(log_every) or due(eval_every) or due(save_every)
                    job.deal(active if everyone else last, log=True, cut=everyone)
                for task in [task for task in active if not task.failure]:
                    if task.run.validation and (due(eval_every) or task in last):
                        task.evaluate()
                    elif due(save_every):
                        task.loop.save()
                for task in active:
                    job.finish_if_ended(task)
                if due(eval_every):  # the evaluations of others are not in a task's own rate
                    for task in active:
                        task.loop.progress.rates()
                if signals.reached(step) and job.running:
                    raise StopRequest
        except StopRequest:
            job.stop(signals.received)
    if failures := [task.failure for task in tasks if task.failure]:
        raise PemtError(
            f"{failures[0]} {len(tasks) - len(failures)} of {len(tasks)} tasks have "
            "ended and are published."
        )
    return [job.metrics[task.run.task] for task in tasks]


class _Job:
    """What the tasks have in common: the step, its batches, and metrics since the last log point.

    `window` holds them on the device, [slots]: all that run are cut at the same steps.
    """

    def __init__(self, trainer: ManyTrainer, tasks: Sequence[_Task], started: Callable):
        self.trainer, self.tasks, self.started = trainer, tasks, started
        self.window, self.metrics = None, {}
        self._batches, self._ends = None, None

    @property
    def running(self) -> list[_Task]:
        return [task for task in self.tasks if not task.ended]

    def step(self) -> tuple[int, list[_Task]]:
        """Make the earliest step that is lacking; return the step now reached and who made it."""
        step = min(task.result.step for task in self.running)
        active = [not task.ended and task.result.step == step for task in self.tasks]
        batches = self._batches_from(step)
        processes.report(step)
        batch = next(batches)
        processes.report(None if self.trainer.compiles(batch) else step, 1)
        metrics = self.trainer.step(batch, active)
        processes.report(step, 2)
        before = self._window_with_carried(active, metrics)
        self.window = metrics if before is None else merge_metrics(before, metrics)
        if before is not None:  # one step is queued at most, as in trainer.Loop
            jax.block_until_ready(before["loss"])
        for slot, task in enumerate(self.tasks):
            if active[slot]:
                task.result.step += 1
                task.loop.progress.step(len(task.run.source.plan(step)))
        return step + 1, [task for task, makes in zip(self.tasks, active, strict=True) if makes]

    def _window_with_carried(self, active: Sequence[bool], metrics: Mapping) -> dict | None:
        """The window, with what tasks that go on now had in theirs when they were stopped."""
        window = self.window
        for slot, task in enumerate(self.tasks):
            if not active[slot] or task.loop.carried is None:
                continue
            if window is None:
                window = jax.tree.map(np.zeros_like, jax.device_get(metrics))
                window["first_bad_step"].step[:] = -1
            window = jax.tree.map(np.array, jax.device_get(window))  # copies, to be written to
            own = window_like(task.loop.carried, metrics)
            jax.tree.map(lambda x, y, slot=slot: np.put(x, slot, y), window, own)
            task.loop.carried = None
        return window

    def deal(self, tasks: Sequence[_Task], log: bool, cut: bool) -> None:
        """Give these tasks their part of the window; `cut` starts a new window."""
        window = jax.device_get(self.window)
        for slot, task in enumerate(self.tasks):
            if task in tasks and window is not None:
                task.give(jax.tree.map(lambda x, slot=slot: x[slot], window), log)
        if cut:
            self.window = None

    def finish_if_ended(self, task: _Task) -> None:
        """Evaluate, save and publish a task that has come to its end."""
        if not task.ended or task.failure or task.finished:
            return
        if task.run.validation and task.result.evaluated != task.result.step:
            task.evaluate()
        task.loop.save()
        self.metrics[task.run.task] = task.run.publish(
            task.loop.checkpoints, task.result, task.loop.trainer.trainable_like
        )
        task.finished = True

    def stop(self, received: int) -> None:
        """Save every task that has not finished, and raise Stopped."""
        step = min((task.result.step for task in self.running), default=0)
        self.deal([task for task in self.running if task.result.step == step], log=False, cut=True)
        open_tasks = [task for task in self.tasks if not task.finished and not task.failure]
        for task in open_tasks:
            task.loop.save()
        for task in self.tasks:
            task.loop.checkpoints.wait()
        steps = ", ".join(
            f"{task.result.step} of {task.run.train_steps} ({task.run.task})" for task in open_tasks
        )
        name = signal.Signals(received).name
        raise Stopped(
            f"Stopped by {name} after steps {steps}, which are saved: the same command "
            "resumes there.",
            received,
        ) from None

    def _batches_from(self, step: int):
        ends = [task.end for task in self.tasks]
        if ends != self._ends:
            if self._ends is None:
                self.started()
            runs = [task.run for task in self.tasks]
            rows = [
                self.trainer.local_rows(slot, run.source.batch_size)
                for slot, run in enumerate(runs)
            ]
            source = ManyBatchSource(
                [run.source for run in runs],
                ends,
                self.trainer.slots,
                [run.prompt_length for run in runs],
                rows,
            )
            self._ends, self._batches = ends, train_iterator(source, step, max(ends) - step)
        return self._batches
