"""The command line of every gin main: flags in, one configured call, one sentence when it fails.

    python -m pemt_jax.train --gin_file=runs/stage1.gin --gin.MODEL_DIR=runs/movies

A main is a function with annotated arguments; its module ends with

    if __name__ == "__main__":
        sys.exit(cli.run(train))

The flags are t5x's. Departures from t5x:
- A value that is no gin literal is a string: `--gin.MODEL_DIR=runs/x` needs no inner quotes.
- A macro that nothing reads is an error (t5x trains the default for `--gin.TRIAN_STEPS=5`), and
  a macro that no file uses fills the main's argument of that name: MODEL_DIR, `model_dir`.
- The module run as __main__ keeps its name, so a gin file says `from pemt_jax import train` and
  works under `python -m pemt_jax.train` and in a test alike (t5x needs `import __main__`).

Importing this module silences the libraries, so a main imports it before all that needs them.
"""

import argparse
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

import gin

import pemt_jax.configs
from pemt_jax.cli.gin_config import bindings_of, load
from pemt_jax.cli.gin_errors import as_usage_errors, parameters_of
from pemt_jax.cli.gin_internals import original
from pemt_jax.cli.startup import silence_libraries
from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.common.storage import cache_folder, replacing

silence_libraries()
# Compiling takes longer than many small runs; what one run compiled, the next reads. JAX looks at
# the variable when it is imported.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "compiled"))

from pemt_jax.parallel import processes  # noqa: E402  isort: skip  (JAX, after the variable)

CONFIGS = Path(pemt_jax.configs.__file__).parent
__all__ = ["bindings_of", "run", "write_config"]
FLAGS = (
    "--gin_file",
    "--gin_search_paths",
    "--gin.NAME",
    "--coordinator_address",
    "--process_count",
    "--process_index",
    "--help",
)


def run(
    main: Callable,
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    doc: str | None = None,
) -> int:
    """Configure `main` from `argv`, call it and return the exit code.

    Where several processes are one run, one that failed ends here and stops the others.

    Args:
        main: the function to configure and call; what it returns is ignored.
        argv: the arguments after the program's name; those of the process when None.
        prog: how the program is called, for --help; from the module of `main` when None.
        doc: what the program does, for --help; the docstring of main's module when None.

    Returns:
        0; or, after `error: one sentence` on stderr, 2 for a UsageError or a fault in the
        configuration, 1 for any other PemtError or the operating system's refusal, 130 for Ctrl-C,
        143 for a SIGTERM that a run has obeyed. Other exceptions keep their traceback.
    """
    code = _run(main, argv, prog, doc)
    processes.leave(code)
    return code


def _run(main: Callable, argv: Sequence[str] | None, prog: str | None, doc: str | None) -> int:
    module = _adopt_running_module(main)

    def configured() -> None:
        flags, bindings = _parse(
            sys.argv[1:] if argv is None else argv,
            _parser(main, prog or f"python -m {module}", doc),
        )
        with processes.joined(flags.coordinator_address, flags.process_count, flags.process_index):
            function = _load(main, flags, bindings)
            with as_usage_errors():
                function()

    return exit_code_of(configured)


def exit_code_of(action: Callable[[], int | None]) -> int:
    """Call `action`; return what it returned, 0 for None, or the code of the error as in `run`."""
    try:
        return action() or 0
    except PemtError as error:
        error = original(error)
        _say(str(error))
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
        return 0
    except OSError as error:
        error = original(error)
        place = f"{error.filename}: " if error.filename else ""
        _say(f"{place}{error.strerror or error}.")
        return 1
    except KeyboardInterrupt:
        _say("Stopped by Ctrl-C.")
        return 130


def _say(sentence: str) -> None:
    # In one piece, for several processes may share a terminal or a log.
    sys.stderr.write(f"error: {sentence}\n")


def arguments_of(main: Callable, argv: Sequence[str]) -> dict[str, object]:
    """The arguments with which `run(main, argv)` would call `main`, defaults left out."""
    flags, bindings = _parse(argv, _parser(main, main.__name__, main.__doc__))
    _load(main, flags, bindings)
    with as_usage_errors():
        return gin.get_bindings(main)


def _load(main: Callable, flags: argparse.Namespace, bindings) -> Callable:
    paths = [path for paths in flags.gin_search_paths for path in paths.split(",") if path]
    return load(main, flags.gin_file, bindings, [str(CONFIGS), *paths])


def write_config(model_dir: str | Path) -> Path:
    """Write what has been read of the configuration to MODEL_DIR/config.gin and return its path.

    The file holds defaults too, serves as a --gin_file and appears whole or not at all. Raises
    PemtError when config.gin exists and is no plain file of that folder.
    """
    path = Path(model_dir) / "config.gin"
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise PemtError(f"{path} is a link or a folder, expected a plain file of the run.")
    if not processes.is_first():
        return path
    with replacing(path) as partial:
        partial.write_text(gin.operative_config_str(), encoding="utf-8")
    return path


def _adopt_running_module(main: Callable) -> str:
    """Give the module run as __main__ its importable name; return the name of main's module."""
    running = sys.modules["__main__"]
    spec = getattr(running, "__spec__", None)
    if main.__module__ != "__main__" or spec is None:
        return main.__module__
    sys.modules[spec.name] = running
    parent, _, child = spec.name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, running)
    for member in vars(running).values():  # gin writes these names into config.gin
        if isinstance(member, (type, types.FunctionType)) and member.__module__ == "__main__":
            member.__module__ = spec.name
    return spec.name


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, by a UsageError."""

    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{message[:1].upper()}{message[1:]}.")


def _parser(main: Callable, prog: str, doc: str | None) -> argparse.ArgumentParser:
    arguments = [
        f"  {name}"
        + (
            ""
            if parameter.default in (parameter.empty, gin.REQUIRED)
            else f" = {parameter.default!r}"
        )
        for name, parameter in parameters_of(main).items()
    ]
    parser = Parser(
        prog=prog,
        usage=f"{prog} [--gin_file=FILE ...] [--gin.NAME=VALUE ...]",
        description=doc or sys.modules[main.__module__].__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(
            [
                inspect.getdoc(main) or "",
                "",
                f"Defaults, set as --gin.{main.__name__}.NAME=VALUE:",
                *arguments,
            ]
        ),
    )
    parser.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="gin file, repeatable; looked for from here, then among the "
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
        ("--process_index", int, "which of them this one is, from 0"),
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


def _parse(
    argv: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    bindings, rest = [], []
    for argument in argv:
        if argument.startswith("--gin."):
            name, _, value = argument.removeprefix("--gin.").partition("=")
            if not (name and value):
                raise UsageError(f"{argument!r} has no value, expected --gin.NAME=VALUE.")
            bindings.append((name.strip(), value.strip()))
        else:
            rest.append(argument)
    flags, unknown = parser.parse_known_args(rest)
    if unknown:
        name = unknown[0].partition("=")[0]
        raise UsageError(
            f"There is no argument {unknown[0]!r}, expected {', '.join(FLAGS)}"
            f"{nearest(name, FLAGS)}."
        )
    return flags, bindings
