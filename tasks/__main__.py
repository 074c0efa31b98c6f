"""Tasks from the command line.

    python -m pemt_jax.tasks                        all tasks: sizes, data, metric, source
    python -m pemt_jax.tasks list 'pemt_*'          those whose names match
    python -m pemt_jax.tasks show pemt_cb           rendered examples and the prompt
    python -m pemt_jax.tasks prepare pemt_glue      download and cache, ready to work offline
    python -m pemt_jax.tasks cache                  what $PEMT_JAX_CACHE holds
    python -m pemt_jax.tasks cache --prune          remove what was unused for --older_than days

A name is that of a task or a mixture. TFDS data are stored in --data_dir, else $TFDS_DATA_DIR, else
~/tensorflow_datasets. `--import MODULE` first registers tasks of your own.
"""

import argparse
import sys
from collections.abc import Sequence

import seqio

from pemt_jax.cli.exit_codes import exit_code_of
from pemt_jax.cli.parser import Parser, check_command
from pemt_jax.tasks.commands import caches, listing, preparing
from pemt_jax.tasks.sources import cached

COMMANDS = {
    "list": lambda given: listing.print_table(given.names),
    "show": lambda given: listing.print_examples(given.names, given.split, given.rows),
    "prepare": lambda given: preparing.prepare_all(given.names, given.cache_dir),
    "cache": lambda given: caches.print_or_prune(given.names, given.prune, given.older_than),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, 1 for a failure, 2 for wrong use."""
    return exit_code_of(lambda: _run(_parser().parse_args(argv)))


def _parser() -> Parser:
    parser = Parser(prog="python -m pemt_jax.tasks", description=__doc__)
    add = parser.add_argument
    add("command", nargs="?", default="list", metavar="|".join(COMMANDS))
    add("names", nargs="*", metavar="NAME")
    add("--split", default="train", help="of show (default: %(default)s)")
    add("--rows", type=int, default=3, help="examples that show prints (default: %(default)s)")
    add("--data_dir", help="the folder of TFDS")
    add("--cache_dir", default=cached.default_folder(), help="cached tasks (default: %(default)s)")
    add("--prune", action="store_true", help="of cache: remove unused tokens and compiled steps")
    add("--older_than", type=float, metavar="DAYS", help=f"default: {caches.PRUNE_DAYS:g}")
    add("--import", dest="modules", metavar="MODULE", action="append", default=[])
    return parser


def _run(given: argparse.Namespace) -> None:
    for module in given.modules:
        preparing.import_tasks(module)
    if given.data_dir:
        seqio.set_tfds_data_dir_override(given.data_dir)
    seqio.add_global_cache_dirs([given.cache_dir])
    check_command(given.command, COMMANDS)
    COMMANDS[given.command](given)


if __name__ == "__main__":
    sys.exit(main())
