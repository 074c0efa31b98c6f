"""The command line of every gin main: flags in, one configured call, one sentence when it fails.

    python -m pemt_jax.train --gin_file=runs/stage1.gin --gin.MODEL_DIR=runs/movies

A main is a function with annotated arguments; its module ends with

    if __name__ == "__main__":
        sys.exit(command.run(train))

The flags are t5x's, and those of every command (see parser.py). Departures from t5x:
- A value that is not a gin literal is a string: `--gin.MODEL_DIR=runs/x` needs no inner quotes.
- A macro that nothing reads is an error (t5x trains the default for `--gin.TRIAN_STEPS=5`), and
  a macro that no file uses fills the main's argument of that name: MODEL_DIR, `model_dir`.
- The module run as __main__ keeps its name, so a gin file says `from pemt_jax import train` and
  works under `python -m pemt_jax.train` and in a test alike (t5x needs `import __main__`).

What a main's module may import at its top is told in startup.py.
"""

import argparse
import sys
import types
from collections.abc import Callable, Sequence

import gin

from pemt_jax.cli.exit_codes import exit_code_of
from pemt_jax.cli.gin_config import load
from pemt_jax.cli.gin_errors import as_usage_errors, parameters_of
from pemt_jax.cli.help import CONFIGS, epilog
from pemt_jax.cli.parser import Parser
from pemt_jax.cli.startup import announce_tensorflow
from pemt_jax.common.configured import text_of_configuration
from pemt_jax.common.errors import UsageError
from pemt_jax.parallel import processes

__all__ = ["arguments_of", "exit_code_of", "run"]


def run(main: Callable, argv: Sequence[str] | None = None, first_line: str | None = None) -> int:
    """Configure `main` from `argv`, call it and return the exit code.

    Where several processes are one run, a process that failed ends here and stops the others.

    Args:
        main: the function to configure and call; what it returns is ignored.
        argv: the arguments after the program's name; those of the process when None.
        first_line: printed by the first process when TensorFlow begins to be imported.

    Returns:
        0, or the code of the failure as in `exit_codes.exit_code_of`.
    """
    _adopt_running_module(main)

    def configured() -> None:
        flags, bindings = _parse(sys.argv[1:] if argv is None else argv, _parser(main))
        with processes.joined(flags.coordinator_address, flags.process_count, flags.process_index):
            if first_line and processes.is_first():
                announce_tensorflow(first_line)
            function = _load(main, flags, bindings)
            with as_usage_errors(), text_of_configuration(gin.operative_config_str):
                function()

    code = exit_code_of(configured)
    processes.leave(code)
    return code


def arguments_of(main: Callable, argv: Sequence[str]) -> dict[str, object]:
    """The arguments with which `run(main, argv)` would call `main`, defaults left out."""
    flags, bindings = _parse(argv, _parser(main))
    _load(main, flags, bindings)
    with as_usage_errors():
        return gin.get_bindings(main)


def _load(main: Callable, flags: argparse.Namespace, bindings) -> Callable:
    paths = [path for paths in flags.gin_search_paths for path in paths.split(",") if path]
    return load(main, flags.gin_file, bindings, [str(CONFIGS), *paths])


def _adopt_running_module(main: Callable) -> None:
    """Give the module run as __main__ its importable name, if `main` is of it."""
    running = sys.modules["__main__"]
    spec = getattr(running, "__spec__", None)
    if main.__module__ != "__main__" or spec is None:
        return
    sys.modules[spec.name] = running
    parent, _, child = spec.name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, running)
    for member in vars(running).values():  # gin writes these names into config.gin
        if isinstance(member, (type, types.FunctionType)) and member.__module__ == "__main__":
            member.__module__ = spec.name


def _parser(main: Callable) -> Parser:
    prog = f"python -m {main.__module__}"
    parser = Parser(
        prog=prog,
        usage=f"{prog} [--gin_file=FILE ...] [--gin.NAME=VALUE ...]",
        description=sys.modules[main.__module__].__doc__,
        epilog=epilog(main, parameters_of(main)),
    )
    parser.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="gin file, repeatable; searched for in the working directory, then among the "
        "installed configurations, then in the search paths",
    )
    parser.add_argument(
        "--gin.NAME",
        metavar="VALUE",
        dest="binding",
        help="a value for the macro NAME or for function.argument, repeatable",
    )
    for name, kind, text in (
        ("--coordinator_address", str, "HOST:PORT of process 0, where several are one run"),
        ("--process_count", int, "how many processes there are"),
        ("--process_index", int, "the index of this one, from 0"),
    ):
        parser.add_argument(name, type=kind, metavar=name.rsplit("_", 1)[-1].upper(), help=text)
    parser.add_argument(
        "--gin_search_paths",
        action="append",
        default=[],
        metavar="FOLDERS",
        help="more folders with gin files, separated by commas, repeatable",
    )
    return parser


def _parse(argv: Sequence[str], parser: Parser) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    for_gin = [argument for argument in argv if argument.startswith("--gin.")]
    flags, unknown = parser.parse_known_args([part for part in argv if part not in for_gin])
    parser.check_no_others(unknown)
    bindings = []
    for argument in for_gin:
        name, _, value = map(str.strip, argument.removeprefix("--gin.").partition("="))
        if not (name and value):
            raise UsageError(f"{argument!r} has no value, expected --gin.NAME=VALUE.")
        bindings.append((name, value))
    return flags, bindings
