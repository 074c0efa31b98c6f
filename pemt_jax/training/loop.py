"""The training loop: when to log, evaluate, save, stop and publish.

`run_loop` is the loop of one run, or of several that share their steps (multitask/): a `Stepper`
makes the steps, a `Run` per task does what is due at their boundaries. Runs that a stop has left at
different steps meet again: the loop makes the earliest step that one of them lacks, with those that
lack it. A run of several whose loss is not finite stops where it is, and the others go on.

Between two log points nothing is read back from the device: metrics are merged there, and so is
the first step whose loss, gradient or update was not finite, which stops the run before it can be
saved. What the loop knows of a run (best evaluation so far, evaluations without a better one) is in
every checkpoint, so a resumed run also stops early where the uninterrupted one would.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import jax

from pemt_jax.common.errors import PemtError
from pemt_jax.parallel import processes
from pemt_jax.parallel.stop_signals import Stopped, StopRequest, StopSignals
from pemt_jax.run_config import LoopConfig
from pemt_jax.training.profile import Profile
from pemt_jax.training.run import Run, window_like
from pemt_jax.training.step import Batch, merge_metrics
from pemt_jax.training.trainer import Trainer


class Stepper(Protocol):
    """Makes the steps of a loop, for its runs by their number."""

    def batches(self, step: int, ends: Sequence[int]) -> Iterator[Batch]:
        """The batches of this step and the following; run i takes part before step ends[i]."""
        ...

    def compiles(self, batch: Batch) -> bool:
        """Whether a step on this batch has to be compiled first."""
        ...

    def step(self, batch: Batch, active: Sequence[bool]) -> dict:
        """Update the active runs; return the step's metrics on the device."""
        ...

    def examples(self, batch: Batch, step: int, run: int) -> int:
        """How many examples of a run are in the batch of a step, over all processes."""
        ...

    def part(self, window: dict, run: int) -> dict:
        """A run's part of merged metrics."""
        ...

    def with_parts(self, metrics: dict, parts: Mapping[int, Mapping], window: dict | None) -> dict:
        """The window with these parts of runs in it, as it was before this step's `metrics`."""
        ...


class SingleStepper:
    """The plain stepper: one run, one trainer."""

    def __init__(self, trainer: Trainer, batches: Callable[[int], Iterator[Batch]]):
        self.trainer, self._batches = trainer, batches
        self.compiles = trainer.compiles

    def batches(self, step, ends):
        return self._batches(step)

    def step(self, batch, active):
        return self.trainer.step(batch)

    def examples(self, batch, step, run):
        return self.trainer.examples(batch)

    def part(self, window, run):
        return window

    def with_parts(self, metrics, parts, window):
        return window_like(parts[0], metrics)


def run_loop(
    stepper: Stepper, runs: Sequence[Run], settings: LoopConfig, folder: str | os.PathLike
) -> None:
    """Make the steps that the runs lack, and what is due after each.

    A checkpoint is saved with each evaluation, every `save_every` steps, when the runs are asked to
    stop, and at the end of each. `folder` gets the profile, if the settings want one.

    Raises:
        Stopped: SIGTERM or SIGINT came; the state is saved and the same command resumes.
        PemtError: a loss, gradient or update was not finite; the last finite checkpoint stays. Of
            several runs those that could go on have ended.
    """

    def due(every: int | None, step: int) -> bool:
        return every is not None and step % every == 0

    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        profile = stack.enter_context(Profile(folder, settings.profile_steps))
        steps = _Steps(stepper, runs, profile)
        for run in runs:
            run.signals = signals
            stack.enter_context(run.progress)
        try:
            for run in runs:
                # A run stopped between a step and its evaluation still owes it.
                if run.result.step and due(settings.eval_every, run.result.step):
                    run.evaluate_if_owed()
                run.finish_if_ended()
            while any(not run.ended for run in runs):
                step, active = steps.make()
                evaluating = due(settings.eval_every, step) and any(r.evaluates for r in active)
                saving = due(settings.save_every, step)
                everyone = due(settings.log_every, step) or evaluating or saving
                last = [run for run in active if step == run.train_steps]
                if everyone or last:
                    steps.cut(active if everyone else last, log=True, keep=not everyone)
                for run in [run for run in active if not run.failure]:
                    if run.evaluates and (evaluating or run in last):
                        run.evaluate()  # which saves
                    elif saving:
                        run.save()
                if signals.reached(step):
                    raise StopRequest
                for run in active:
                    run.finish_if_ended()
                if evaluating:  # the evaluations of others are not in a run's own rate
                    for run in active:
                        run.progress.rates()
        except StopRequest:
            stop(steps, runs, signals.received)
    raise_failures(runs)


class _Steps:
    """The steps of a loop, and the metrics since the last log point, merged on the device."""

    def __init__(self, stepper: Stepper, runs: Sequence[Run], profile: Profile):
        self.stepper, self.runs, self.profile = stepper, runs, profile
        self.window = None
        self._ends: list[int] | None = None
        self._batches: Iterator[Batch] = iter(())

    def make(self) -> tuple[int, list[Run]]:
        """Make the earliest step that is lacking; return the step now reached and who made it."""
        step = min(run.result.step for run in self.runs if not run.ended)
        active = [not run.ended and run.result.step == step for run in self.runs]
        batches = self._from(step)
        processes.report(step)
        batch = next(batches, None)
        if batch is None:
            steps = max(run.train_steps for run in self.runs)
            raise PemtError(f"The data ended at step {step}, expected {steps} steps.")
        compiles = self.stepper.compiles(batch)
        if compiles:
            for run in self.runs:
                run.progress.note("compiling")
        processes.report(None if compiles else step, 1)
        metrics = self.stepper.step(batch, active)
        processes.report(step, 2)
        made = [(i, run) for i, run in enumerate(self.runs) if active[i]]
        if carried := {i: run.carried for i, run in made if run.carried}:
            self.window = self.stepper.with_parts(metrics, carried, self.window)
        before = self.window
        self.window = metrics if before is None else merge_metrics(before, metrics)
        # Waiting for the step before keeps one step queued: the device never idles, and a signal
        # or a full bar is at most one step ahead of the truth.
        if before is not None:
            jax.block_until_ready(before["loss"])
        for i, run in made:
            run.carried = None
            run.made_step(self.stepper.examples(batch, step, i))
        self.profile.made_step()
        return step + 1, [run for _, run in made]

    def cut(self, runs: Sequence[Run], log: bool, keep: bool = False) -> None:
        """Give these runs their part of the window, and start a new one unless it is kept."""
        if self.window is not None:
            for i, run in enumerate(self.runs):
                if run in runs:
                    run.take(self.stepper.part(self.window, i), log)
        if not keep:
            self.window = None

    def _from(self, step: int) -> Iterator[Batch]:
        ends = [run.end for run in self.runs]
        if ends != self._ends:
            self._ends, self._batches = ends, self.stepper.batches(step, ends)
        return self._batches


def stop(steps: _Steps, runs: Sequence[Run], received: int) -> None:
    """Save every run that has not finished, and raise Stopped."""
    running = [run for run in runs if not run.ended]
    step = min((run.result.step for run in running), default=0)
    steps.cut([run for run in running if run.result.step == step], log=False)
    raise_failures(runs if len(runs) == 1 else ())
    left = [run for run in runs if not run.finished and not run.failure]
    for run in left:
        run.save()
    for run in runs:
        if run.checkpoints:
            run.checkpoints.wait()
    many = len(runs) > 1
    where = ", ".join(
        f"{run.result.step} of {run.train_steps}" + (f" ({run.name})" if many else "")
        for run in left
    )
    saved = f"which {'are' if many else 'is'} saved: the same command resumes there"
    if not all(run.checkpoints for run in runs):
        saved = "and nothing is saved, for the run has no checkpoint folder"
    at = f"by {signal.Signals(received).name} after {'steps' if many else 'step'} {where}"
    raise Stopped(f"Stopped {at}, {saved}.", received) from None


def raise_failures(runs: Sequence[Run]) -> None:
    """Raise the failure of a run, and say of several how many have ended in spite of it."""
    failures = [run.failure for run in runs if run.failure]
    if not failures:
        return
    if len(runs) == 1:
        raise failures[0]
    raise PemtError(
        f"{failures[0]} {len(runs) - len(failures)} of {len(runs)} tasks have ended and are "
        "published."
    )
