"""The parser of every command: a wrong flag is one sentence, and each has --traceback and --log."""

import argparse
import sys
import typing
from collections.abc import Collection, Iterable, Sequence

from pemt_jax.cli.exit_codes import show_stack
from pemt_jax.cli.startup import LOG_LEVELS, show_log
from pemt_jax.common.errors import UsageError, nearest, no_such


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are UsageErrors; `exit_codes.exit_code_of` prints them."""

    def __init__(self, **settings):
        defaults = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(**defaults | settings)
        group = self.add_argument_group("diagnosis")
        group.add_argument(
            "--traceback",
            action="store_true",
            default=argparse.SUPPRESS,
            help="print the stack behind an error too; also PEMT_JAX_TRACEBACK=1",
        )
        group.add_argument(
            "--log",
            metavar="|".join(LOG_LEVELS),
            default=argparse.SUPPRESS,
            help="print the log from this level on (default: warning); also PEMT_JAX_LOG=LEVEL",
        )

    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{message[:1].upper()}{message[1:]}.")

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else list(args)
        if "--traceback" in args:  # before anything can be wrong with the others
            show_stack()
        found, unknown = super().parse_known_args(args, namespace)
        if hasattr(found, "log"):
            show_log(found.log)
        return found, unknown

    def parse_args(self, args=None, namespace=None):
        found, unknown = self.parse_known_args(args, namespace)
        self.check_no_others(unknown)
        return found

    def check_no_others(self, unknown: Sequence[str], known: Iterable[str] = ()) -> None:
        """Raise UsageError for the first unknown argument.

        Args:
            unknown: what is left of the arguments.
            known: flags that somebody else parses, among which the nearest may be.
        """
        if unknown:
            flags = [*self._flags(), *known]
            raise UsageError(
                f"There is no argument {unknown[0]!r}, expected one of those in --help"
                f"{nearest(unknown[0].partition('=')[0], flags)}."
            )

    def _flags(self) -> list[str]:
        flags = [flag for action in self._actions for flag in action.option_strings]
        for action in self._actions:
            if isinstance(action.choices, dict):  # sub-commands
                flags += [flag for parser in action.choices.values() for flag in parser._flags()]
        return flags


def check_command(name: str, commands: Collection[str]) -> None:
    """Raise UsageError when `name` is none of the commands."""
    if name not in commands:
        raise no_such("command", name, commands)
