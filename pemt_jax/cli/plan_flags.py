"""The flags of `python -m pemt_jax.plan`, in addition to those of gin."""

from argparse import BooleanOptionalAction
from collections.abc import Sequence

from pemt_jax.cli.parser import Parser
from pemt_jax.common.errors import UsageError
from pemt_jax.common.flat_config import at_least
from pemt_jax.model.methods import METHODS
from pemt_jax.planning.shapes import SHAPES


def parse(argv: Sequence[str], doc: str):
    """Return the flags and the arguments that are left for gin; UsageError for a wrong one."""
    parser = Parser(prog="python -m pemt_jax.plan", description=doc)
    add = parser.add_argument
    add("--topology", help="v4:2x2x1, v5e:4x4, v5p:2x2x2, v6e:8x8, ...")
    add("--shape", help=f"a T5 without a checkpoint: {', '.join(SHAPES)}")
    add("--method", help=", ".join(METHODS))
    add("--batch_size", type=int, help="examples per update, over all chips")
    add("--eval_batch_size", type=int, help="examples per batch of evaluation, over all chips")
    add("--inputs", type=int, help="longest inputs in tokens")
    add("--targets", type=int, help="longest targets in tokens")
    add("--dtype", help="of activations: float32, bfloat16")
    add("--frozen_dtype", help="of frozen parameters: float32, bfloat16")
    add("--remat_policy", help="none, minimal, full")
    add("--prng", help="threefry2x32, rbg")
    add(
        "--scan_layers",
        action=BooleanOptionalAction,
        help="compile one layer per stack, not all of them",
    )
    add(
        "--broadcast_dropout",
        action=BooleanOptionalAction,
        help="one mask per example, the default, or one per position, as the reference",
    )
    add("--train_steps", type=int, help="updates of the run")
    add("--model_parallel", type=int, help="chips over which the parameters are sharded")
    add("--expert_parallel", type=int, help="chips over which the experts are sharded")
    add(
        "--fully_sharded",
        action="store_true",
        default=None,
        help="shard the backbone over the data chips too",
    )
    add(
        "--no_evaluation",
        "--no_decode",
        action="store_true",
        help="do not compile the steps of evaluation",
    )
    add("--compile_time", action="store_true", help="print the time to lower and compile each step")
    add("--search", action="store_true", help="list the layouts that fit, best first")
    add("--compile", type=int, default=1, metavar="N", help="of --search: compile the N best")
    add("--json", metavar="FILE", help="write the plan to this file too")
    options, rest = parser.parse_known_args(argv)
    unknown = [argument for argument in rest if not argument.startswith("--gin")]
    parser.check_no_others(unknown, ("--gin_file", "--gin.NAME"))
    at_least(0, **{"--compile": options.compile})
    if not options.topology:
        raise UsageError("There is no slice to plan for, expected --topology=v5e:4x4 or another.")
    if not rest and not options.shape:
        raise UsageError("There is nothing to plan, expected --shape or --gin_file.")
    return options, rest
