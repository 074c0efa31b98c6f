"""One run in the training loop: how far it is, and what it does when something is due."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import numpy as np

from pemt_jax.checkpoints.manager import Checkpoints
from pemt_jax.checkpoints.newest import restore_newest
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.parallel import processes
from pemt_jax.parallel.stop_signals import StopRequest, StopSignals
from pemt_jax.training.metrics_log import MetricsLog
from pemt_jax.training.nonfinite import describe_leaf
from pemt_jax.training.progress import Progress
from pemt_jax.training.step import Params, TrainState, compute_metrics


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


class Trained(Protocol):
    """What a run needs of its trainer: a Trainer, or one task of a MultitaskTrainer."""

    seed: int

    @property
    def state(self) -> TrainState: ...
    @property
    def frozen(self) -> Params: ...
    @property
    def trainable_like(self) -> Mapping: ...
    def params(self) -> dict: ...
    def restore(self, checkpoints: Checkpoints, step: int) -> None: ...


@dataclasses.dataclass(eq=False)
class Run:
    """A run that is resumed from its newest checkpoint when it is made.

    A run that is asked to stop writes no line for the window that it leaves open: it goes into the
    checkpoint, from where it comes back as `carried`, so that the log is that of an undisturbed
    run. A run has `ended` when no training steps are left, and `finished` when it is also
    evaluated, saved and published.

    Attributes:
        trainer: holds the state that is saved and evaluated.
        train_steps: updates.
        checkpoints, log: None to keep none.
        name: shown before its lines where there are several.
        validation: nested parameters -> validation metrics.
        best_metric, higher_is_better: what chooses the best evaluation.
        patience: stop after this many evaluations in a row without a better one.
        learning_rate: updates made -> rate of the next, for the log.
        publish: called once, after the last save.
        versions: noted in every checkpoint.
        show_bar: whether progress is shown.

    Raises:
        UsageError: patience without an evaluation, or checkpoints farther than `train_steps`.
    """

    trainer: Trained
    train_steps: int
    checkpoints: Checkpoints | None = None
    log: MetricsLog | None = None
    _: dataclasses.KW_ONLY
    name: str = ""
    validation: Callable[[dict], Mapping[str, float]] | None = None
    best_metric: str | None = None
    higher_is_better: bool = True
    patience: int | None = None
    learning_rate: Callable[[int], float] | None = None
    publish: Callable[[TrainResult], object] | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    show_bar: bool = True

    def __post_init__(self):
        if self.patience is not None and (self.best_metric is None or self.validation is None):
            who = f"{self.name!r} to have a validation split" if self.name else "both"
            raise UsageError(f"Patience needs a best metric and an evaluation, expected {who}.")
        self.result, self.carried = self._resume()
        self.progress = Progress(self.train_steps, self.result.step, self.show_bar, self.name)
        self.signals = StopSignals()  # those of the loop, once it runs
        self.failure: PemtError | None = None
        self.finished = False
        self._window: dict | None = None  # metrics that are saved unlogged

    @property
    def evaluates(self) -> bool:
        return self.validation is not None

    @property
    def ended(self) -> bool:
        waited = self.patience and self.result.waited >= self.patience
        return bool(self.failure or waited or self.result.step >= self.train_steps)

    @property
    def end(self) -> int:
        """The step before which it takes part."""
        return self.result.step if self.ended else self.train_steps

    def made_step(self, examples: int) -> None:
        """Count a step over so many examples."""
        self.result.step += 1
        self.progress.step(examples)

    def take(self, window: dict, log: bool) -> None:
        """Take the metrics since the last log point: to log them, or to save them unlogged."""
        try:
            self._check_finite(window)
        except PemtError as error:
            self.failure = PemtError(f"{self.name}: {error}") if self.name else error
            return
        if not log:
            self._window = window
            return
        values = compute_metrics({k: v for k, v in window.items() if k != "first_bad_step"})
        if self.learning_rate:  # of the last update
            values["learning_rate"] = self.learning_rate(self.result.step - 1)
        values |= self.progress.rates()
        self.progress.report(self.result.step, values)
        if self.log:
            self.log.write(self.result.step, "train", values)

    def evaluate(self) -> None:
        """Evaluate, note whether it is the best so far, log and save."""
        result = self.result
        assert self.validation is not None
        processes.report(None)
        self.progress.note("evaluating")
        with self.signals.interruptible():
            result.metrics = dict(self.validation(self.trainer.params()))
        result.evaluated = result.step
        if self.best_metric is not None:
            value = result.metrics[self.best_metric]
            sign = 1 if self.higher_is_better else -1
            best = -math.inf if result.best_value is None else sign * result.best_value
            # Of equal values the earlier stays the best, and NaN is never better.
            if sign * value > best:
                result.best_step, result.best_value, result.waited = result.step, value, 0
            else:
                result.waited += 1
        if self.log:
            self.log.write(result.step, "validation", result.metrics)
        self.progress.evaluated(result.step, result.metrics)
        self.save(result.metrics)

    def evaluate_if_owed(self) -> None:
        """Evaluate, unless it cannot or this step has been evaluated."""
        if self.evaluates and self.result.evaluated != self.result.step:
            self.evaluate()

    def save(self, metrics: Mapping[str, float] | None = None) -> None:
        processes.report(None)
        if self.checkpoints:
            if self.log:
                self.log.flush()  # the checkpoint says how many lines there are
            progress = dataclasses.asdict(self.result)
            del progress["step"], progress["metrics"]
            self.checkpoints.save(
                self.result.step,
                self.trainer.state,
                metrics,
                progress=progress,
                window=self._window and window_values(self._window),
                data_step=self.result.step,
                seed=self.trainer.seed,
                versions=self.versions,
            )

    def finish_if_ended(self) -> None:
        """Evaluate, save and publish a run that has come to its end."""
        if not self.ended or self.failure or self.finished:
            return
        self.evaluate_if_owed()
        self.save()
        if self.checkpoints:
            self.checkpoints.wait()
        if self.signals.received:
            raise StopRequest
        if self.publish:
            self.publish(self.result)
        self.finished = True

    def _resume(self) -> tuple[TrainResult, Mapping[str, list] | None]:
        """Restore the newest checkpoint, if any; return how far it is, and its open window."""
        result, window = TrainResult(), None
        if self.checkpoints and (found := restore_newest(self.trainer, self.checkpoints)):
            step, manifest = found
            try:
                progress, window = manifest["progress"], manifest["window"]
                kinds = isinstance(progress, dict), isinstance(window, dict | None)
                if not all(kinds) or type(manifest["data_step"]) is not int:
                    raise TypeError("its progress, window or data_step is of another kind")
                result = TrainResult(step, metrics=manifest["metrics"], **progress)
            except (KeyError, TypeError) as error:
                raise PemtError(
                    f"{self.checkpoints.folder / str(step)} is of another version ({error}), "
                    "expected the checkpoint of a run of this version."
                ) from error
            if step > self.train_steps:
                raise UsageError(
                    f"{self.checkpoints.folder} is at step {step}, expected TRAIN_STEPS of at "
                    f"least that but found {self.train_steps}."
                )
        if self.log:
            self.log.resume(result.step, result.evaluated)
        return result, window

    def _check_finite(self, window: dict) -> None:
        """Raise PemtError when a step since the last log point was not finite."""
        bad = jax.device_get(window["first_bad_step"])
        if bad.step < 0:
            return
        kept = self.checkpoints.latest_step() if self.checkpoints else None
        last = (
            "no checkpoint was saved before it"
            if kept is None
            else f"the last finite checkpoint is step {kept}"
        )
        leaf = describe_leaf(int(bad.leaf), self.trainer.state.trainable, self.trainer.frozen)
        raise PemtError(
            f"Step {int(bad.step)} had loss {float(bad.loss):g}, gradient norm "
            f"{float(bad.gradient_norm):g} and update norm {float(bad.update_norm):g}, first in "
            f"{leaf}, expected finite numbers ({last})."
        )


def window_values(window: Mapping) -> dict[str, list]:
    """The numbers of merged metrics, exact in JSON, for a checkpoint."""
    return {
        name: [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(metric)]
        for name, metric in jax.device_get(window).items()
    }


def window_like(values: Mapping[str, list], metrics: Mapping) -> dict:
    """What `window_values` was given, in the types of a step's metrics."""
    return {
        name: jax.tree.unflatten(
            jax.tree.structure(metric),
            [
                np.asarray(value, leaf.dtype)
                for value, leaf in zip(values[name], jax.tree.leaves(metric), strict=True)
            ],
        )
        for name, metric in metrics.items()
    }
