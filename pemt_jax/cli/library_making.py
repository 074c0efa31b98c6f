"""The commands of `python -m pemt_jax.library` that make something of experts; see there."""

from argparse import Namespace
from collections.abc import Callable, Mapping

from pemt_jax.cli.parser import Parser
from pemt_jax.common import storage
from pemt_jax.common.errors import UsageError
from pemt_jax.common.user_input.code import import_module
from pemt_jax.config import base_path
from pemt_jax.library.combination import METHODS, Combination
from pemt_jax.library.combine import combine_experts, random_expert


def add_arguments(made: Mapping[str, Parser]) -> None:
    """Give each of the commands its arguments."""
    for name in ("combine", "random", "lorahub"):
        made[name].add_argument("name", metavar="NAME", help="of the new expert")
    add = made["combine"].add_argument
    add("--experts", required=True, metavar="NAME,NAME", help="what it is made of, in order")
    add("--weights", metavar="W,W", help="one per expert, as in --weights=0.7,-0.2; default: 1/E")
    add("--method", required=True, metavar="METHOD", help=f"one of {', '.join(METHODS)}")
    add("--density", type=float, metavar="D", help="share of the numbers that pruning keeps")
    add("--rank", type=int, metavar="R", help="of the svd methods; default: the largest per layer")
    add("--prompt_of", metavar="NAME", help="whose prompt it gets; default: the first expert's")
    made["random"].add_argument("--like", required=True, metavar="NAME", help="its size and norms")
    for name in ("combine", "random"):
        made[name].add_argument("--seed", type=int, default=0, help="default: 0")
    add = made["lorahub"].add_argument
    add("--experts", required=True, metavar="NAME,NAME", help="what it is made of, in order")
    add("--task", required=True, metavar="TASK", help="whose training examples are evaluated")
    add("--base", required=True, metavar="DIR", help="the pretrained T5 of the experts")
    add("--import", dest="modules", metavar="MODULE", action="append", default=[], help="of tasks")
    add("--prompt_of", metavar="NAME", help="whose prompt it gets; default: the first expert's")
    add("--evaluations", type=int, default=40, metavar="N", help="at most; default: 40")
    add("--inputs", type=int, default=128, metavar="N", help="longest input; default: 128 tokens")
    add("--targets", type=int, default=16, metavar="N", help="longest target; default: 16 tokens")
    add = made["merge"].add_argument
    add("name", metavar="NAME", help="an expert")
    add(
        "--base",
        required=True,
        metavar="DIR",
        help="the pretrained T5 that it was trained on, or its OWNER/NAME[@REVISION] on the hub",
    )
    add("--to", required=True, type=storage.path, metavar="DIR", help="a new folder")
    add("--dtype", help="float32 or bfloat16, how numbers are stored; default: as in the base")


def _combine(arguments: Namespace) -> None:
    names = arguments.experts.split(",")
    try:
        words = (arguments.weights or "").split(",") if arguments.weights else []
        weights = tuple(map(float, words)) if words else (1 / len(names),) * len(names)
    except ValueError as error:
        raise UsageError(
            f"--weights is {arguments.weights!r}, expected numbers separated by commas."
        ) from error
    combination = Combination(
        arguments.method, weights, arguments.density, arguments.rank, arguments.seed
    )
    library, prompt_of = arguments.library, arguments.prompt_of
    card = combine_experts(library, arguments.name, names, combination, prompt_of)
    print(f"{arguments.name}  combined  sha256 {card.sha256}")


def _random(arguments: Namespace) -> None:
    card = random_expert(arguments.library, arguments.name, arguments.like, arguments.seed)
    print(f"{arguments.name}  made at random  sha256 {card.sha256}")


def _lorahub(arguments: Namespace) -> None:
    from pemt_jax.runs.searching.lorahub import Search, lorahub

    for module in arguments.modules:
        import_module(module)
    search = Search(
        arguments.task,
        base_path(arguments.base),
        arguments.prompt_of,
        arguments.evaluations,
        arguments.inputs,
        arguments.targets,
    )
    names = arguments.experts.split(",")
    card = lorahub(arguments.library, arguments.name, names, search)
    print(f"{arguments.name}  combined  {card.config['weights']}  sha256 {card.sha256}")


def _merge(arguments: Namespace) -> None:
    from pemt_jax.interop.merging.merge import merge_expert

    library, to = arguments.library, arguments.to
    merged = merge_expert(library, arguments.name, arguments.base, to, arguments.dtype)
    print(f"{arguments.name}  merged into {to}")
    if merged.has_tokenizer:
        print(f"Put this before every text:\n{merged.prefix}")
    else:
        ids = ", ".join(map(str, merged.tokens.values()))
        print(f"The base has no tokenizer. Put these ids before every text:\n{ids}")


COMMANDS: dict[str, Callable[[Namespace], int | None]] = {
    "merge": _merge,
    "combine": _combine,
    "random": _random,
    "lorahub": _lorahub,
}
