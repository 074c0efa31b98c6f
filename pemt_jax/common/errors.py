"""What a user is told: what is wrong, in one sentence with an exit code, and what takes long."""

import difflib
import os
import signal
import sys
from collections.abc import Iterable


class PemtError(Exception):
    """A failure with one sentence for the user: what was found and what was expected."""

    exit_code = 1


class PeerLost(PemtError):
    """Another process of the run was lost or hangs: nothing is wrong with this run, start it again.

    42 is the one code below 128 that xpk's workloads restart. Above 127, shells and schedulers
    read a signal.
    """

    exit_code = 42


class UsageError(PemtError):
    """The command or configuration is wrong: an unknown name, a missing value, a wrong path."""

    exit_code = 2


terminal = {"stderr": 2}  # its descriptor, which is another while TensorFlow is imported


def end_at_interrupt() -> None:
    """Let Ctrl-C end this program with a sentence, also while it imports.

    A KeyboardInterrupt that is raised in the middle of an import is a traceback, is taken for a
    failure of the module, or crashes what is written in C++.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)


def _interrupted(number, frame) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(terminal["stderr"], b"error: Stopped by Ctrl-C.\n")
            os._exit(128 + number)  # nothing has begun that could be left half done
        frame = frame.f_back
    raise KeyboardInterrupt


def warn(sentence: str) -> None:
    """Say on stderr what the user should know but need not act upon."""
    # In one piece: several processes may share it.
    sys.stderr.write(f"warning: {printable(sentence)}\n")
    sys.stderr.flush()


def say(line: str) -> None:
    """Say on stderr what is being done that takes long."""
    sys.stderr.write(f"{printable(line)}\n")
    sys.stderr.flush()


def printable(text: str) -> str:
    """A text in one line, its control characters and halves of characters written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shortened(value: object) -> str:
    """A value for a sentence."""
    try:
        text = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:100]}..."


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return " (nearest: 'x')" for the candidate most like `name`, or "" when none is close."""
    match = difflib.get_close_matches(str(name), list(candidates), n=1, cutoff=0.5)
    return f" (nearest: {match[0]!r})" if match else ""


def no_such(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for a `name` that is none of those known of its kind."""
    known = list(known)
    expected = f"expected one of {', '.join(known)}{nearest(name, known)}"
    return UsageError(f"There is no {kind} {name!r}, {expected}.")
