"""How far a run is: a tqdm bar on a terminal, one plain line per log point elsewhere."""

import sys
import time
from collections.abc import Mapping

import jax
from tqdm import tqdm


class Progress:
    """Shows loss, real examples per second and time left; silent when not `shown`.

    With a `name`, that of one task among many, it shows lines that begin with it, and no bar.
    """

    def __init__(self, total: int, done: int, shown: bool = True, name: str = ""):
        self._name = f"{name}: " if name else ""
        self.total, self.done = total, done
        self._shown = shown and jax.process_index() == 0
        self._bar = None
        if self._shown and not name and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True)
            # tqdm reads the wall clock, and stands still for as long as that is set back.
            self._bar._time = time.monotonic
            self._bar.start_t = self._bar.last_print_t = time.monotonic()
        self._note = ""
        self._values: dict[str, str] = {}
        self._rows, self._window_start = 0, time.perf_counter()
        self._first, self._start = done, self._window_start

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, rows: int) -> None:
        """Count one step over `rows` real examples."""
        self.done += 1
        self._rows += rows
        if self._bar is not None:
            self._bar.update()

    def rates(self) -> dict[str, float]:
        """Return examples and steps per second since the last call."""
        seconds = max(time.perf_counter() - self._window_start, 1e-9)
        rates = {"examples_per_second": self._rows / seconds}
        self._rows, self._window_start = 0, time.perf_counter()
        return rates

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Show a log point."""
        self._values["loss"] = f"{values['loss']:.4f}"
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
        """Show the result of an evaluation, and leave its time out of the rates."""
        self.rates()
        if self._shown:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            line = f"{self._name}step {step}/{self.total}  validation: {shown}"
            if self._bar is not None:
                self.note("")
                self._bar.write(line, file=sys.stderr)
            else:
                print(line, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Show what takes long now, such as compiling; "" when it is over."""
        if self._bar is not None and text != self._note:
            self._note = text
            self._bar.set_description_str(text)

    def _left(self) -> str:
        per_step = (time.perf_counter() - self._start) / max(self.done - self._first, 1)
        return tqdm.format_interval(per_step * (self.total - self.done))
