"""Tasks from the command line.

    python -m pemt_jax.tasks                        all tasks: sizes, data, metric, source
    python -m pemt_jax.tasks list 'pemt_*'          those whose names match
    python -m pemt_jax.tasks show pemt_cb           rendered examples and the prompt
    python -m pemt_jax.tasks prepare pemt_glue      download and cache, ready to work offline

A name is that of a task or a mixture. TFDS data are stored in --data_dir, else $TFDS_DATA_DIR, else
~/tensorflow_datasets. `--import MODULE` first registers tasks of your own.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

import seqio

from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.tasks.commands import listing, preparing
from pemt_jax.tasks.sources import cached

COMMANDS = ("list", "show", "prepare")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, 1 for a failure, 2 for wrong use."""
    try:
        _run(_parser().parse_args(argv))
    except PemtError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: Stopped by Ctrl-C; the same command continues from here.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m pemt_jax.tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("command", nargs="?", default="list", metavar="|".join(COMMANDS))
    add("names", nargs="*", metavar="NAME")
    add("--split", default="train", help="of show (default: %(default)s)")
    add("--rows", type=int, default=3, help="examples that show prints (default: %(default)s)")
    add("--data_dir", help="the folder of TFDS")
    folder = cached.default_folder()
    add("--cache_dir", default=folder, help="the folder of cached tasks (default: %(default)s)")
    text = "a module that registers tasks, repeatable"
    add("--import", dest="modules", action="append", default=[], metavar="MODULE", help=text)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[:1].upper()}{message[1:]}.")


def _run(arguments: argparse.Namespace) -> None:
    command, names = arguments.command, arguments.names
    for module in arguments.modules:
        preparing.import_tasks(module)
    if arguments.data_dir:
        seqio.set_tfds_data_dir_override(arguments.data_dir)
    seqio.add_global_cache_dirs([arguments.cache_dir])
    if command == "list":
        listing.print_table(names)
    elif command == "show":
        listing.print_examples(names, arguments.split, arguments.rows)
    elif command == "prepare":
        preparing.prepare_all(names, arguments.cache_dir)
    else:
        raise UsageError(
            f"There is no command {command!r}, expected one of {', '.join(COMMANDS)}"
            f"{nearest(command, COMMANDS)}."
        )


if __name__ == "__main__":
    sys.exit(main())
