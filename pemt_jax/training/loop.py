"""The training loop: when to log, evaluate, save and stop.

Between two log points nothing is read back from the device: metrics are merged there, and so is
the first step whose loss, gradient or update was not finite, which stops the run before it can be
saved. The loop's own state (best evaluation so far, evaluations without a better one) is in every
checkpoint, so a resumed run also stops early where the uninterrupted one would.
"""

import dataclasses
import math
import signal
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from pemt_jax.checkpoints.manager import Checkpoints
from pemt_jax.checkpoints.newest import restore_newest
from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.parallel import processes
from pemt_jax.parallel.partitioning import row_share
from pemt_jax.parallel.stop_signals import Stopped, StopRequest, StopSignals
from pemt_jax.training.metrics_log import MetricsLog
from pemt_jax.training.nonfinite import describe_leaf
from pemt_jax.training.progress import Progress
from pemt_jax.training.step import Batch, compute_metrics, merge_metrics
from pemt_jax.training.trainer import Trainer


@dataclasses.dataclass
class TrainResult:
    """How far a run is.

    Attributes:
        step: updates made.
        best_step, best_value: the best evaluation; of equal ones the earliest.
        waited: evaluations since then.
        evaluated: the last step that was evaluated.
        metrics: of that evaluation.
    """

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    waited: int = 0
    evaluated: int | None = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)


def train(
    trainer: Trainer,
    batches: Callable[[int], Iterator[Batch]],
    train_steps: int,
    *,
    checkpoints: Checkpoints | None = None,
    evaluate: Callable[[dict], Mapping[str, float]] | None = None,
    log: MetricsLog | None = None,
    log_every: int = 20,
    eval_every: int | None = None,
    save_every: int | None = None,
    patience: int | None = None,
    best_metric: str | None = None,
    higher_is_better: bool = True,
    show_bar: bool = True,
    versions: Mapping[str, str] | None = None,
) -> TrainResult:
    """Train to `train_steps` updates, from the latest checkpoint when there is one.

    Args:
        batches: start step -> iterator over the batches of that step and the following ones.
        evaluate: nested parameters -> validation metrics; called every `eval_every` steps and at
            the end. A checkpoint is saved with each evaluation, every `save_every` steps, when
            the run is asked to stop, and at the end.
        patience: stop after this many evaluations in a row without a better `best_metric`.
        versions: noted in every checkpoint.

    Raises:
        Stopped: SIGTERM or SIGINT came; the state is saved and the same command resumes.
        PemtError: a loss, gradient or update was not finite; the last finite checkpoint stays.
    """
    check_intervals(
        log_every=log_every, eval_every=eval_every, save_every=save_every, patience=patience
    )
    if patience is not None and (best_metric is None or evaluate is None):
        raise UsageError("Patience needs a best metric and an evaluation, expected both.")
    run, window = resume(trainer, checkpoints, log, train_steps)
    loop = Loop(
        trainer,
        run,
        train_steps,
        checkpoints,
        log,
        Progress(train_steps, run.step, show_bar),
        dict(versions or {}),
        carried=window,
    )

    def due(every: int | None) -> bool:
        return every is not None and run.step % every == 0

    def evaluation() -> None:
        loop.evaluate(evaluate, best_metric, 1 if higher_is_better else -1)

    with StopSignals() as loop.signals, loop.progress:
        try:
            # A run stopped between the last step and its evaluation still owes it.
            if evaluate and run.step and due(eval_every) and run.evaluated != run.step:
                evaluation()
            iterator = None
            while run.step < train_steps and not (patience and run.waited >= patience):
                iterator = iterator or batches(run.step)
                processes.report(run.step)
                loop.step(next(iterator, None))
                last = run.step == train_steps
                evaluating = evaluate and (last or due(eval_every))
                if due(log_every) or last or evaluating or due(save_every):
                    loop.log_window()
                if evaluating:
                    evaluation()
                elif due(save_every):
                    loop.save()
                if loop.signals.reached(run.step):
                    raise StopRequest
            if evaluate and run.evaluated != run.step:
                evaluation()
            loop.save()
            if checkpoints:
                checkpoints.wait()
            if loop.signals.received:
                raise StopRequest
        except StopRequest:
            loop.stop()
    return run


def check_intervals(**intervals: int | None) -> None:
    """Raise UsageError for an interval, by its name, that is neither None nor 1 or more."""
    for name, every in intervals.items():
        if every is not None and every < 1:
            raise UsageError(f"Found {name} {every}, expected 1 or more.")


def resume(
    trainer: Trainer, checkpoints: Checkpoints | None, log: MetricsLog | None, train_steps: int
) -> tuple[TrainResult, Mapping[str, list] | None]:
    """Restore the newest checkpoint, if any; return how far its run is, and its open window.

    Raises:
        UsageError: that is farther than `train_steps`.
    """
    run, window = TrainResult(), None
    if checkpoints and (found := restore_newest(trainer, checkpoints)):
        step, manifest = found
        run = TrainResult(step, metrics=manifest["metrics"], **manifest["progress"])
        window = manifest["window"]
    if run.step > train_steps:
        raise UsageError(
            f"{checkpoints.folder} is at step {run.step}, expected TRAIN_STEPS of at least that "
            f"but found {train_steps}."
        )
    if log:
        log.resume(run.step, run.evaluated)
    return run, window


@dataclasses.dataclass
class Loop:
    """What the loop does at its boundaries; `window` are the metrics since the last log point.

    A run that is asked to stop writes no line for the window that it leaves open: it goes into the
    checkpoint, from where it comes back as `carried`, so that the log is that of an undisturbed
    run.
    """

    trainer: Trainer
    run: TrainResult
    train_steps: int
    checkpoints: Checkpoints | None
    log: MetricsLog | None
    progress: Progress
    versions: dict[str, str]
    signals: StopSignals | None = None
    window: dict | None = None
    carried: Mapping[str, list] | None = None

    def step(self, batch: Batch | None) -> None:
        if batch is None:
            raise PemtError(
                f"The data ended at step {self.run.step}, expected {self.train_steps} steps."
            )
        compiles = self.trainer.compiles(batch)
        if compiles:
            self.progress.note("compiling")
        processes.report(None if compiles else self.run.step, 1)
        metrics = self.trainer.step(batch)
        processes.report(self.run.step, 2)
        self.progress.note("")
        before, self.carried = self.window or window_like(self.carried, metrics), None
        self.window = metrics if before is None else merge_metrics(before, metrics)
        # Waiting for the step before keeps one step queued: the device never idles, and a signal
        # or a full bar is at most one step ahead of the truth.
        if before is not None:
            jax.block_until_ready(before["loss"])
        self.run.step += 1
        self.progress.step(round(_real_rows(batch) / row_share(self.trainer.mesh)))

    def check_finite(self) -> None:
        """Stop the run when a step since the last log point was not finite."""
        bad = self.window and jax.device_get(self.window["first_bad_step"])
        if bad and bad.step >= 0:
            kept = self.checkpoints.latest_step() if self.checkpoints else None
            last = (
                "no checkpoint was saved before it"
                if kept is None
                else (f"the last finite checkpoint is step {kept}")
            )
            leaf = describe_leaf(int(bad.leaf), self.trainer.state.trainable, self.trainer.frozen)
            raise PemtError(
                f"Step {int(bad.step)} had loss {float(bad.loss):g}, gradient norm "
                f"{float(bad.gradient_norm):g} and update norm {float(bad.update_norm):g}, "
                f"first in {leaf}, expected finite numbers ({last})."
            )

    def log_window(self) -> None:
        """Write the means since the last log point, or stop when one of them was not finite."""
        if self.window is None:
            return
        self.check_finite()
        window, self.window = self.window, None
        del window["first_bad_step"]
        values = compute_metrics(window) | self.progress.rates()
        self.progress.report(self.run.step, values)
        if self.log:
            self.log.write(self.run.step, "train", values)

    def save(self, metrics: Mapping[str, float] | None = None) -> None:
        processes.report(None)
        if self.checkpoints:
            progress = dataclasses.asdict(self.run)
            del progress["step"], progress["metrics"]
            self.checkpoints.save(
                self.run.step,
                self.trainer.state,
                metrics,
                progress=progress,
                window=self.window and _values(self.window),
                data_step=self.run.step,
                seed=self.trainer.seed,
                versions=self.versions,
            )

    def evaluate(self, evaluate: Callable, best_metric: str | None, sign: int) -> None:
        """Evaluate, note whether it is the best so far, log and save."""
        run = self.run
        processes.report(None)
        self.progress.note("evaluating")
        with self.signals.interruptible():
            run.metrics = dict(evaluate(self.trainer.params()))
        run.evaluated = run.step
        if best_metric is not None:
            if best_metric not in run.metrics:
                raise UsageError(
                    f"The evaluation has no metric {best_metric!r}, expected one of "
                    f"{', '.join(sorted(run.metrics))}{nearest(best_metric, run.metrics)}."
                )
            value = run.metrics[best_metric]
            best = -math.inf if run.best_value is None else sign * run.best_value
            # Of equal values the earlier stays the best, and NaN is never better.
            if sign * value > best:
                run.best_step, run.best_value, run.waited = run.step, value, 0
            else:
                run.waited += 1
        if self.log:
            self.log.write(run.step, "validation", run.metrics)
        self.progress.evaluated(run.step, run.metrics)
        self.save(run.metrics)

    def stop(self) -> None:
        """Save and raise Stopped."""
        self.check_finite()
        self.save()
        if self.checkpoints:
            self.checkpoints.wait()
        where = f"after step {self.run.step} of {self.train_steps}"
        saved = (
            ", which is saved: the same command resumes there"
            if self.checkpoints
            else ", and nothing is saved, for the run has no checkpoint folder"
        )
        name = signal.Signals(self.signals.received).name
        raise Stopped(f"Stopped by {name} {where}{saved}.", self.signals.received) from None


def _values(window: Mapping) -> dict[str, list]:
    """The numbers of merged metrics, exact in JSON, for a checkpoint."""
    return {
        name: [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(metric)]
        for name, metric in jax.device_get(window).items()
    }


def window_like(values: Mapping[str, list] | None, metrics: Mapping) -> dict | None:
    """What `_values` was given, in the types of a step's metrics; None where there was nothing."""
    return values and {
        name: jax.tree.unflatten(
            jax.tree.structure(metric),
            [
                np.asarray(value, leaf.dtype)
                for value, leaf in zip(values[name], jax.tree.leaves(metric), strict=True)
            ],
        )
        for name, metric in metrics.items()
    }


def _real_rows(batch: Batch) -> int:
    """Rows that are examples: those with a target token that counts."""
    weights = batch.get("decoder_loss_weights")
    if weights is None:
        return len(next(iter(batch.values())))
    return int(np.any(weights > 0, axis=-1).sum())
