"""The progress of a run: a tqdm bar on a terminal, one plain line per log point elsewhere."""

import sys
import time
from collections.abc import Mapping

import jax
from tqdm import tqdm

from pemt_jax.common.errors import say
from pemt_jax.library.artefact import brief


class Progress:
    """Prints the loss, examples per second and the time left to stderr.

    Args:
        total: number of steps of the run.
        done: number of steps already made.
        shown: whether to print; processes other than the first never do.
        name: the task of a job with several, which begins each line; such a job has no bars.
    """

    def __init__(self, total: int, done: int, shown: bool = True, name: str = ""):
        self._name = f"{name}: " if name else ""
        self.total, self.done = total, done
        self._shown = shown and jax.process_index() == 0
        self._bar = None
        if self._shown and not name and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True)
            # By default tqdm reads the wall clock, and stops updating while that is set back.
            vars(self._bar)["_time"] = time.monotonic
            self._bar.start_t = self._bar.last_print_t = time.monotonic()
        self._note, self._said = "", set[str]()
        self._values: dict[str, str] = {}
        self._examples, self._window_start = 0, time.perf_counter()
        self._first, self._start = done, self._window_start

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, examples: int) -> None:
        """Count one step on a batch with so many examples."""
        self.done += 1
        self._examples += examples
        if self._bar is not None:
            self._bar.update()

    def rates(self) -> dict[str, float]:
        """Return {"examples_per_second"} since the last call."""
        seconds = max(time.perf_counter() - self._window_start, 1e-9)
        rates = {"examples_per_second": self._examples / seconds}
        self._examples, self._window_start = 0, time.perf_counter()
        return rates

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Show the metrics of a log point."""
        self._values["loss"] = f"{values['loss']:.4g}"
        self._values["examples/s"] = f"{values['examples_per_second']:.1f}"
        if self._bar is not None:
            self._bar.set_postfix(self._values)
        elif self._shown:
            shown = "  ".join(f"{name} {value}" for name, value in self._values.items())
            print(
                f"{self._name}step {step}/{self.total}  {shown}  left {self._left()}",
                file=sys.stderr,
                flush=True,
            )

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of an evaluation, and exclude its time from the rates."""
        self.rates()
        if self._shown:
            shown = "  ".join(f"{name} {value}" for name, value in brief(metrics).items())
            line = f"{self._name}step {step}/{self.total}  validation: {shown}"
            if self._bar is not None:
                self.note("")
                self._bar.write(line, file=sys.stderr)
            else:
                print(line, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Show what takes long at the moment, such as compiling; "" for nothing.

        Without a bar it is a line, the first time.
        """
        if self._bar is not None and text != self._note:
            self._note = text
            self._bar.set_description_str(text)
        elif self._bar is None and self._shown and text and text not in self._said:
            self._said.add(text)
            say(f"{self._name}step {self.done}/{self.total}  {text}")

    def _left(self) -> str:
        per_step = (time.perf_counter() - self._start) / max(self.done - self._first, 1)
        return tqdm.format_interval(per_step * (self.total - self.done))
