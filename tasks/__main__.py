"""Tasks from the command line.

    python -m pemt_jax.tasks                        all tasks: sizes, data, metric, source
    python -m pemt_jax.tasks list 'pemt_*'          those whose names match
    python -m pemt_jax.tasks show pemt_cb           rendered examples, and the prompt
    python -m pemt_jax.tasks prepare pemt_glue      download and cache, ready to work offline

A name is that of a task or a mixture. Data go where TFDS puts them: --data_dir, else
$TFDS_DATA_DIR, else ~/tensorflow_datasets. `--import MODULE` registers tasks of your own first.
"""

import argparse
import fnmatch
import sys
from collections.abc import Sequence

import seqio

from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.tasks import listing, preparing
from pemt_jax.tasks.sources import cached

COMMANDS = ("list", "show", "prepare")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, 1 for a failure, 2 for wrong use."""
    parser = argparse.ArgumentParser(
        prog="python -m pemt_jax.tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", default="list", metavar="list|show|prepare")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--split", default="train", help="of show (default: train)")
    parser.add_argument("--rows", type=int, default=3, help="examples that show prints")
    parser.add_argument("--data_dir", help="the folder of TFDS")
    parser.add_argument(
        "--cache_dir",
        default=cached.default_folder(),
        help="the folder of cached tasks (default: %(default)s)",
    )
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module that registers tasks, repeatable",
    )
    arguments = parser.parse_args(argv)
    try:
        for module in arguments.modules:
            preparing.import_tasks(module)
        if arguments.data_dir:
            seqio.set_tfds_data_dir_override(arguments.data_dir)
        seqio.add_global_cache_dirs([arguments.cache_dir])
        _run(arguments)
    except PemtError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: Stopped by Ctrl-C; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def _run(arguments: argparse.Namespace) -> None:
    command, names = arguments.command, arguments.names
    if command not in COMMANDS:
        raise UsageError(
            f"There is no command {command!r}, expected one of {', '.join(COMMANDS)}"
            f"{nearest(command, COMMANDS)}."
        )
    if command == "list":
        known = sorted(seqio.TaskRegistry.names())
        print(
            listing.table(
                [
                    name
                    for name in known
                    if not names or any(fnmatch.fnmatchcase(name, pattern) for pattern in names)
                ]
            )
        )
        return
    if not names:
        raise UsageError(f"No task was named, expected `python -m pemt_jax.tasks {command} NAME`.")
    tasks = [task for name in names for task in preparing.tasks_named(name)]
    for number, task in enumerate(tasks, 1):
        if command == "show":
            print(listing.examples(task, arguments.split, arguments.rows), end="\n\n")
        else:
            print(
                f"{number}/{len(tasks)} {task.name}: {task.source.data}"
                if hasattr(task.source, "data")
                else task.name,
                flush=True,
            )
            preparing.prepare(task, arguments.cache_dir)


if __name__ == "__main__":
    sys.exit(main())
