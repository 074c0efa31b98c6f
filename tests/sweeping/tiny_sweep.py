"""Sweeps for tests: of the tiny system in this process, or of runs that only look trained."""

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tiny_system

from pemt_jax.cli import command as cli
from pemt_jax.cli import library_command
from pemt_jax.common.user_input.paragraphs import general_text_task
from pemt_jax.library.artefact import Card, write_artefact
from pemt_jax.sweeping import running
from pemt_jax.sweeping.commands import Commands, Ended
from pemt_jax.sweeping.table import SweepConfig


def config(folder: Path, file: str | Path, **values) -> SweepConfig:
    """A sweep of one method without experts, two rates and two seeds."""
    defaults = {
        "methods": ("adapter",),
        "tasks": ("tiny_mood",),
        "file": str(file),
        "steps": 4,
        "seeds": (0, 1),
        "rates": (0.01, 0.03),
    }
    return SweepConfig.of(folder=str(folder), **defaults | values)


class InProcess(Commands):
    """Commands called in this process."""

    def run(self, module, arguments, log):
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            if module == "library":
                code = library_command.main(arguments)
            else:
                code = cli.run(tiny_system.MAINS[module], list(arguments))
        error = said.getvalue().strip().splitlines()[-1:] if code else [""]
        return Ended(code, error[0].removeprefix("error: "), 1.0, 10**6)


class Pretended(Commands):
    """Commands that write what a run would leave, without training.

    Args:
      score: the validation metric of a training command's flags; None for a failed run.
      calls: gets (module, folder) of each command, and of each run that one evaluates.
      untestable: whether the test of a run in a folder fails.
      unreadable: whether those of general text do.
      stop_after: commands after which the sweep's process would be killed.
    """

    def __init__(
        self,
        score: Callable[[Mapping], float | None],
        calls: list,
        stop_after: int = 10**9,
        untestable: Callable[[Path], bool] = lambda folder: False,
        unreadable: bool = False,
    ):
        super().__init__()
        self.score, self.calls, self.left = score, calls, stop_after
        self.untestable, self.unreadable = untestable, unreadable

    def run(self, module, arguments, log):
        flags = dict(argument.removeprefix("--gin.").split("=", 1) for argument in arguments)
        folder, tasks = Path(flags["MODEL_DIR"]), flags.get("MIXTURE_OR_TASK_NAME", "")
        if module == "evaluate":
            text = flags.get("GENERAL_TEXT", "").strip("'")
            more = eval(flags.get("MORE_MODEL_DIRS", "()"))
            return self._evaluate([folder, *map(Path, more)], text)
        self._note(module, folder)
        names = eval(tasks) if tasks.startswith("(") else [tasks]
        for name in names:
            value = self.score(flags | {"MIXTURE_OR_TASK_NAME": name})
            if value is None:
                return Ended(1, "The loss of step 3 is not finite, expected a number.", 1.0, 10)
            place = folder / name if len(names) > 1 else folder
            metrics = {"accuracy": value, "average": value, "loss": 1.0}
            card = Card("target", "adapter", name, "b" * 64, metrics=metrics)
            log = [{"step": step, "kind": "validation", "average": value - 4 / step, "loss": 1.0}
                   for step in (2, 4)]  # fmt: skip
            place.mkdir(parents=True, exist_ok=True)
            (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
            write_artefact(place / "artefact", {"x": np.zeros(2, np.float32)}, card)
        return Ended(0, "", 1.0, 10)

    def _note(self, module, folder):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.calls.append((module, folder.name))

    def _evaluate(self, folders, text):
        for folder in folders:
            self._note("evaluate", folder)
            card = json.loads((folder / "artefact" / "card.json").read_text())
            if text and self.unreadable:
                return Ended(1, "There is no room.", 1.0, 10)
            if not text and self.untestable(folder):
                return Ended(1, "There is no test split.", 1.0, 10)
            found = {"accuracy": 70.0, "average": 70.0}
            name = f"{card['task']}-test.json"
            if text:
                found = {"cross_entropy": 3.0 + card["metrics"]["accuracy"] / 100, "loss": 9.0}
                name = f"{general_text_task(text)}-validation.json"
            (folder / "evaluation" / "splits").mkdir(parents=True, exist_ok=True)
            (folder / "evaluation" / name).write_text(json.dumps(found))
        return Ended(0, "", 1.0, 10)


def sweep(made: SweepConfig, commands: Commands | None = None) -> None:
    """Run a sweep with other commands than processes."""
    one = running.Sweep(made)
    one.commands = commands or InProcess()
    one.run()


def pretend(made: SweepConfig, score=lambda flags: 60.0, **options) -> list[tuple[str, str]]:
    """Run a sweep whose runs only look trained; return the commands that it called."""
    calls: list[tuple[str, str]] = []
    sweep(made, Pretended(score, calls, **options))
    return calls


def lines(folder: Path, name: str = "results.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]
