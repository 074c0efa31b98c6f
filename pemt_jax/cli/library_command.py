"""Experts from the command line: list, verify, import, export, share, combine.

    python -m pemt_jax.library list   [NAME ...]      one line per expert
    python -m pemt_jax.library show   NAME ...        everything a card records
    python -m pemt_jax.library verify [NAME ...]      hash every file
    python -m pemt_jax.library add    FOLDER          an expert's folder, verified
    python -m pemt_jax.library remove NAME
    python -m pemt_jax.library export NAME --to DIR --format peft|folder
    python -m pemt_jax.library import PATH --format peft|reference --name NAME ...
    python -m pemt_jax.library push   NAME REPO       to the Hugging Face hub, or a folder
    python -m pemt_jax.library pull   REPO [NAME]     verified before it is added
    python -m pemt_jax.library merge  NAME --base DIR --to DIR         a T5 with it folded in
    python -m pemt_jax.library combine NAME --experts A,B --method M   one expert of several
    python -m pemt_jax.library random NAME --like EXPERT               a control
    python -m pemt_jax.library lorahub NAME --experts A,B --task TASK  weights without gradients

The library is --library, else $PEMT_JAX_LIBRARY, else runs/library. `COMMAND --help` lists the
arguments of a command. The exit code is 0, 1 when an expert is damaged or does not fit, 2 for wrong
use.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pemt_jax.cli import library_making
from pemt_jax.cli.exit_codes import exit_code_of, report
from pemt_jax.cli.parser import Parser, check_command
from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.writing.contents import check_outside
from pemt_jax.config import base_path
from pemt_jax.library.expert import default_library, expert_folder, expert_names, load_expert
from pemt_jax.library.listing import facts, table
from pemt_jax.library.transfer import add_expert, check_expert_folder, copy_expert, remove_expert


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    return exit_code_of(lambda: _run(sys.argv[1:] if argv is None else list(argv)))


def _run(argv: Sequence[str]) -> int:
    if argv and not argv[0].startswith("-"):
        check_command(argv[0], COMMANDS)
    arguments = _parser().parse_args(argv)
    if arguments.command not in ADDING and not arguments.library.is_dir():
        place = arguments.library
        state = f"{place} is a file" if place.exists() else f"There is no library {place}"
        raise UsageError(
            f"{state}, expected a folder that stage 1 has saved experts in or another "
            f"--library{_others()}."
        )
    return COMMANDS[arguments.command](arguments) or 0


def _others() -> str:
    """The libraries of runs of the demo or below other folders of runs/, for an error."""
    found = [path.as_posix() for path in sorted(Path("runs").glob("*/library")) if path.is_dir()]
    return f" (found: {', '.join(found)})" if found else ""


def _parser() -> Parser:
    parser = Parser(prog="python -m pemt_jax.library", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {name: commands.add_parser(name) for name in COMMANDS}
    for command in made.values():
        command.add_argument(
            "--library",
            type=storage.path,
            default=default_library(),
            metavar="DIR",
            help="default: $PEMT_JAX_LIBRARY, else runs/library",
        )
    for name in ("list", "show", "verify"):
        made[name].add_argument("names", nargs="*", metavar="NAME", help="an expert")
    made["add"].add_argument("folder", type=storage.path, metavar="FOLDER")
    made["add"].add_argument("--name", help="in the library; default: the folder's")
    for name in ("remove", "export", "push"):
        made[name].add_argument("name", metavar="NAME", help="an expert")
    made["push"].add_argument("repo", metavar="REPO", help="OWNER/NAME on the hub, or a folder")
    made["push"].add_argument(
        "--dtype", help="float32 or bfloat16, how numbers are stored there; default: as they are"
    )
    made["pull"].add_argument(
        "repo", metavar="REPO", help="OWNER/NAME[@REVISION] on the hub, or a folder"
    )
    made["pull"].add_argument("name", nargs="?", metavar="NAME", help="default: every expert there")
    made["export"].add_argument(
        "--to", type=storage.path, required=True, metavar="DIR", help="a new folder"
    )
    made["export"].add_argument(
        "--format",
        choices=("peft", "folder"),
        required=True,
        help="a PEFT adapter (without the prompt, which is stored beside it), "
        "or the expert's folder as it is",
    )
    add = made["import"].add_argument
    add(
        "path",
        type=storage.path,
        metavar="PATH",
        help="a PEFT folder with a LoRA on any linear layers of a T5, or its OWNER/NAME[@REVISION] "
        "on the Hugging Face hub; a folder or a state dict of the authors' code",
    )
    add("--format", choices=("peft", "reference"), required=True)
    add("--name", help="of the expert in the library")
    add(
        "--base",
        metavar="DIR",
        help="the pretrained T5 that it was trained on, or its OWNER/NAME[@REVISION] on the hub",
    )
    add(
        "--prompt",
        metavar="TEXT",
        help="the task's description; for a PEFT adapter, which has no "
        "prompt, the prompt starts from its tokens",
    )
    add("--task", help="default: the expert's name")
    add("--vocabulary", metavar="FILE", help="default: the one beside the base")
    add(
        "--model_dir",
        type=storage.path,
        metavar="DIR",
        help="reference: import a target, into this new folder, instead of an expert",
    )
    add(
        "--experts",
        default="",
        metavar="NAME,NAME",
        help="reference: those of the target, in order",
    )
    library_making.add_arguments(made)
    return parser


def _list(arguments: Namespace) -> int:
    library = arguments.library
    text, faults = table(library, arguments.names or expert_names(library))
    if text or not faults:
        print(text or f"no experts in {library}")
    return _report(faults)


def _show(arguments: Namespace) -> None:
    library = arguments.library
    if not arguments.names:
        raise UsageError(
            f"No expert was named, expected one of "
            f"{', '.join(expert_names(library)) or 'none'} in {library}."
        )
    for name in arguments.names:
        print(facts(library, name))


def _verify(arguments: Namespace) -> int:
    faults = []
    for name in arguments.names or expert_names(arguments.library):
        try:
            print(f"{name}  ok  sha256 {load_expert(arguments.library, name).sha256}")
        except PemtError as error:
            faults.append(error)
    return _report(faults)


def _add(arguments: Namespace) -> None:
    expert = add_expert(arguments.library, arguments.folder, arguments.name)
    print(f"{expert.name}  added  sha256 {expert.sha256}")


def _remove(arguments: Namespace) -> None:
    remove_expert(arguments.library, arguments.name)
    print(f"{arguments.name}  removed")


def _export(arguments: Namespace) -> None:
    library, name = arguments.library, arguments.name
    folder = expert_folder(library, name)
    check_outside("--to", arguments.to)
    if library.resolve() in arguments.to.resolve().parents:
        raise UsageError(f"--to {arguments.to} is inside the library, expected a folder elsewhere.")
    if arguments.format == "folder":
        copy_expert(folder, arguments.to, name)
        print(f"{name}  exported to {arguments.to}")
        return
    from pemt_jax.interop.peft import WITHOUT_PROMPT, export_peft

    expert = load_expert(library, name)
    export_peft(arguments.to, expert, check_expert_folder(folder))
    print(f"{name}  exported to {arguments.to}\n{WITHOUT_PROMPT}")


def _import(arguments: Namespace) -> None:
    from pemt_jax.library.hub_names import ADAPTER, find

    found = find(arguments.path, ADAPTER) if arguments.format == "peft" else None
    with storage.fetched(found.folder if found else arguments.path) as path:
        _import_from(path, found.name if found else None, arguments)


def _import_from(path, source: str | None, arguments: Namespace) -> None:
    from pemt_jax.interop.import_expert import Request, import_peft, import_reference

    request = Request(
        arguments.library,
        arguments.name or "",
        path,
        arguments.base and base_path(arguments.base),
        arguments.prompt,
        arguments.task,
        arguments.vocabulary,
        source,
    )
    target = arguments.model_dir is not None
    if target and arguments.format != "reference":
        raise UsageError("A PEFT adapter is imported as an expert, expected no --model_dir.")
    if target == (arguments.name is not None) or (arguments.experts and not target):
        raise UsageError(
            "Expected --name for an expert, or --model_dir with --experts for a target."
        )
    if target:
        from pemt_jax.runs.import_target import import_target

        experts = [name for name in arguments.experts.split(",") if name]
        missing = import_target(request, arguments.model_dir, experts)
        print(f"{arguments.model_dir}  imported")
        if missing:
            print(
                "The files have no gates and no layer norms, so the gate is uniform, the norms "
                "are the base's, and this is not the model that was trained; import its complete "
                "state dict to get that."
            )
        return
    imported = import_peft if arguments.format == "peft" else import_reference
    print(f"{arguments.name}  imported  sha256 {imported(request).sha256}")


def _push(arguments: Namespace) -> None:
    from pemt_jax.library.hub import push_expert

    place = push_expert(arguments.library, arguments.name, arguments.repo, arguments.dtype)
    print(f"{arguments.name}  pushed to {place}")


def _pull(arguments: Namespace) -> int:
    from pemt_jax.library.hub import pull_experts

    pulled = pull_experts(arguments.library, arguments.repo, arguments.name)
    for expert in pulled.added:
        print(f"{expert.name}  pulled  sha256 {expert.sha256}")
    for name in pulled.present:
        print(f"{name}  already there")
    return _report(
        [
            UsageError(
                f"{arguments.library / name} exists already and is not the {name!r} of "
                f"{arguments.repo}, expected that it is removed or renamed first."
            )
            for name in pulled.taken
        ]
    )


def _report(faults: Sequence[PemtError]) -> int:
    return max(map(report, faults), default=0)


COMMANDS = {
    "list": _list,
    "show": _show,
    "verify": _verify,
    "add": _add,
    "remove": _remove,
    "export": _export,
    "import": _import,
    "push": _push,
    "pull": _pull,
    **library_making.COMMANDS,
}
ADDING = ("add", "import", "pull")  # they create the library when there is none
