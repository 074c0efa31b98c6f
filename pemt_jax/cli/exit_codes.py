"""The end of a command: a failure is one sentence on stderr and an exit code.

The stack behind the sentence is printed before it when the command has the flag --traceback (see
parser.py) or the environment PEMT_JAX_TRACEBACK=1. PEMT_JAX_LOG is the level of the package's log.
"""

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from pemt_jax.cli import gin_internals
from pemt_jax.cli.startup import show_log, startup
from pemt_jax.common.errors import PemtError, UsageError, printable
from pemt_jax.common.storage import cache_folder

WORD, LONGEST = 300, 4000  # characters of a word and of a sentence that are still shown
_show_stack = False


def exit_code_of(action: Callable[[], int | None]) -> int:
    """Call `action` as a program: `startup` first, one sentence when it fails.

    Returns:
        what `action` returned, 0 for None; or, after `error: one sentence` on stderr, 2 for a
        UsageError, 42 for a PeerLost, 1 for any other PemtError or an error of the operating
        system, 130 for Ctrl-C, 143 for a SIGTERM that a run has obeyed. Other exceptions keep
        their traceback.
    """
    global _show_stack
    _show_stack = os.environ.get("PEMT_JAX_TRACEBACK", "") not in ("", "0")
    try:
        startup()
        show_log(os.environ.get("PEMT_JAX_LOG") or "warning")
        try:
            return action() or 0
        finally:  # also after --help, which exits: what cannot be written is said while it can be
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
        return 0
    except SystemExit as error:
        if (place := _foreign_exit(error)) is None:
            raise
        return report(PemtError(f"{place} called sys.exit({error.code!r}), expected none there."))
    except (PemtError, OSError, KeyboardInterrupt) as error:
        return report(error)
    except RuntimeError as error:
        if (sentence := _of_surroundings(str(error).splitlines()[:1])) is None:
            raise
        return report(UsageError(sentence))


def _of_surroundings(text: Sequence[str]) -> str | None:
    """The sentence for a RuntimeError about where a command runs; None for any other."""
    for found in text:
        if (reason := found.removeprefix("Unable to initialize backend")) != found:
            where = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
            return (
                f"JAX has no such devices as {where} names ({reason.strip(' .')}), expected others."
            )
        if (path := found.removeprefix("Symlink loop from ")) != found:  # of Path.resolve
            return f"{path.strip()} is a link that leads to itself, expected a file or folder."
    return None


def _foreign_exit(error: SystemExit) -> str | None:
    """Where a module of the user's ended the program; None where this package or argparse did."""
    frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
    spec = frame.f_globals.get("__spec__")
    if spec is None or spec.name.partition(".")[0] in ("pemt_jax", "argparse"):
        return None
    return f"{frame.f_code.co_filename} line {line}"


def show_stack() -> None:
    """Print the stack behind every sentence of the running command."""
    global _show_stack
    _show_stack = True


def report(error: PemtError | OSError | KeyboardInterrupt) -> int:
    """Print the sentence for an error on stderr; return its exit code."""
    stack = "".join(traceback.format_exception(error)) if _show_stack else ""
    found = gin_internals.original(error)
    if isinstance(found, PemtError):
        sentence, code = str(found), found.exit_code
    elif isinstance(found, OSError):
        sentence, code = _of_system(found), 1
    else:
        sentence, code = "Stopped by Ctrl-C.", 130
    # In one piece, because several processes may share a terminal or a log.
    sys.stderr.write(f"{stack}error: {_one_line(sentence)}\n")
    return code


def _of_system(error: OSError) -> str:
    """The sentence for an error of the operating system."""
    reason = error.strerror or str(error)
    if not error.filename:
        return f"{'The output: ' if error.errno == errno.ENOSPC else ''}{reason}."
    cache = cache_folder()
    if cache in (place := Path(os.fsdecode(error.filename)), *place.parents):
        return f"{place}: {reason}, expected $PEMT_JAX_CACHE to be a folder to write to."
    return f"{place}: {reason}."


def _one_line(sentence: str) -> str:
    """A sentence without control characters, and without what is too long in it to be read."""
    line = printable(sentence)
    line = re.sub(rf"\S{{{WORD},}}", lambda match: f"{match[0][:100]}...{match[0][-50:]}", line)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
