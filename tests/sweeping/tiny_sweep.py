"""A sweep of the tiny system, in this process or by the command."""

import contextlib
import io
import json
from pathlib import Path

import tiny_system

from pemt_jax.cli import command as cli
from pemt_jax.sweeping import running
from pemt_jax.sweeping.commands import Commands, Ended
from pemt_jax.sweeping.table import SweepConfig


def config(world, folder: Path, **values) -> SweepConfig:
    """A sweep over the tiny system's two experts; two methods, two rates, two seeds."""
    defaults = {
        "methods": ("adapter", "single"),
        "tasks": ("tiny_mood",),
        "file": str(world.gin_file),
        "steps": 4,
        "seeds": (0, 1),
        "rates": (0.01, 0.03),
        "base": str(world.base),
        "libraries": {"two": (str(world.library), tiny_system.EXPERTS)},
        "bindings": {"EVAL_EVERY": 2},
    }
    return SweepConfig.of(folder=str(folder), **defaults | values)


class InProcess(Commands):
    """Commands called in this process; `before` is given each one's name and arguments."""

    def __init__(self, before=lambda module, arguments: None):
        super().__init__()
        self.before, self.called = before, []

    def run(self, module, arguments, log):
        self.called.append((module, list(arguments)))
        self.before(module, arguments)
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = cli.run(tiny_system.MAINS[module], list(arguments))
        error = said.getvalue().strip().splitlines()[-1:] if code else [""]
        return Ended(code, error[0].removeprefix("error: "), 1.0, 10**6)


def sweep(made: SweepConfig, before=lambda module, arguments: None) -> list[tuple]:
    """Run a sweep in this process; return the commands that it called."""
    one = running.Sweep(made)
    one.commands = InProcess(before)
    one.run()
    return one.commands.called


def lines(folder: Path, name: str = "results.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]
