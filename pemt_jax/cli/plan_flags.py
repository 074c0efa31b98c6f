"""The flags of `python -m pemt_jax.plan`, beside those of gin."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pemt_jax.cli import command as cli
from pemt_jax.common.errors import UsageError, nearest
from pemt_jax.planning.shapes import SHAPES


def parse(argv: Sequence[str], doc: str):
    """Return the flags and the arguments that are left for gin; UsageError for a wrong one."""
    parser = cli.Parser(
        prog="python -m pemt_jax.plan",
        description=doc,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--topology", help="v4:2x2x1, v5e:4x4, v5p:2x2x2, v6e:8x8, ...")
    add("--shape", help=f"a T5 without a checkpoint: {', '.join(SHAPES)}")
    add("--method", help="pemt_source, pemt_target, full, ...")
    add("--batch_size", type=int, help="rows an update, over all chips")
    add("--inputs", type=int, help="longest inputs in tokens")
    add("--targets", type=int, help="longest targets in tokens")
    add("--dtype", help="of activations: float32, bfloat16")
    add("--frozen_dtype", help="of frozen parameters: float32, bfloat16")
    add("--remat_policy", help="none, minimal, full")
    add("--prng", help="threefry2x32, rbg")
    add(
        "--broadcast_dropout",
        action="store_true",
        default=None,
        help="one mask for all positions of a row, as T5X's",
    )
    add("--train_steps", type=int, help="updates of the run")
    add("--model_parallel", type=int, help="chips over which parameters are split")
    add("--expert_parallel", type=int, help="chips over which the experts are split")
    add(
        "--fully_sharded",
        action="store_true",
        default=None,
        help="split the backbone over the data's chips too",
    )
    add("--no_decode", action="store_true", help="do not compile the decode step")
    add("--search", action="store_true", help="list the ways that fit, best first")
    add("--compile", type=int, default=1, metavar="N", help="of --search: compile the N best")
    add("--json", type=Path, metavar="FILE", help="write the plan there too")
    options, rest = parser.parse_known_args(argv)
    for argument in rest:
        if not argument.startswith("--gin"):
            known = [*parser._option_string_actions, "--gin_file", "--gin.NAME"]
            raise UsageError(
                f"There is no argument {argument!r}, expected one of --help"
                f"{nearest(argument.partition('=')[0], known)}."
            )
    if not options.topology:
        raise UsageError("There is no slice to plan for, expected --topology=v5e:4x4 or another.")
    if not rest and not options.shape:
        raise UsageError("There is nothing to plan, expected --shape or --gin_file.")
    return options, rest
