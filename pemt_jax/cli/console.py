"""`pemt-jax COMMAND ...`: every command under one name, the same as `python -m pemt_jax.COMMAND`.

The command's module runs as __main__, exactly as Python's -m would run it.
"""

import os
import runpy
import sys
from collections.abc import Sequence

from pemt_jax.cli.exit_codes import exit_code_of
from pemt_jax.cli.parser import Parser, check_command

# The module of each command is pemt_jax.COMMAND.
COMMANDS = {
    "train": "train an expert, a target model or a baseline, or resume a stopped run",
    "evaluate": "evaluate a finished run on a split of a task",
    "predict": "predict with a finished run: text in, text out",
    "plan": "find out whether a run fits a TPU slice, and how long it takes at least",
    "sweep": "compare methods on tasks: train, choose on validation, test, as a table says",
    "report": "write an HTML page about a run, several or a sweep: scores, gates, cost",
    "convert": "convert a pretrained T5 between the formats of Hugging Face and T5X",
    "library": "list, verify, import, export and share experts",
    "tasks": "list tasks, show their examples, prepare their data",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    return exit_code_of(lambda: _run(sys.argv[1:] if argv is None else list(argv)))


def _run(argv: Sequence[str]) -> None:
    if not argv or argv[0].startswith("-"):
        parser = _parser()
        parser.parse_args(argv)
        parser.print_help()
        return
    check_command(argv[0], COMMANDS)
    sys.argv = list(argv)
    if not sys.flags.safe_path and sys.path[0] not in ("", os.getcwd()):
        sys.path.insert(0, os.getcwd())  # as -m does, for the user's own task modules
    runpy.run_module(f"pemt_jax.{argv[0]}", run_name="__main__", alter_sys=True)


def _parser() -> Parser:
    width = max(map(len, COMMANDS))
    return Parser(
        prog="pemt-jax",
        usage="pemt-jax COMMAND ...",
        description="\n".join(
            [
                "Experts trained on source tasks, mixed by a learned gate on a target task.",
                "",
                "commands:",
                *(f"  {name.ljust(width)}  {summary}" for name, summary in COMMANDS.items()),
            ]
        ),
        epilog="`pemt-jax COMMAND --help` lists the arguments of a command.\n"
        "`python -m pemt_jax.COMMAND` runs the same command.",
    )
