"""The boundary around a user's code: what it raises is one sentence with file, line and exception.

User code is what a module of theirs does when it is imported, and the metric functions,
postprocessors, sources and preprocessors of their tasks. Its stack is behind the sentence, which
--traceback shows.
"""

import contextlib
import importlib
import inspect
import os
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pemt_jax.common.errors import PemtError, UsageError, nearest

# How TensorFlow names the line of a function that it has converted or traced.
PLACE = re.compile(r'File "([^"]+)", line (\d+), in ')
STANDARD = os.path.dirname(os.__file__)  # Python's own modules
PACKAGE = str(Path(__file__).parents[2])


@contextlib.contextmanager
def user_code(
    what: str,
    code: Callable | None = None,
    kind: type[PemtError] = PemtError,
    theirs: tuple[type[Exception], ...] = (Exception,),
) -> Iterator[None]:
    """Context in which code of a user's runs.

    Args:
      what: it does, for the sentence: "The metric x of task 'y'".
      code: the function that is called, whose own place is named where no line of the user's is
        reached: it has other arguments, say.
      kind: of the error; a UsageError that is raised inside gets the place too, for then the code
        is that of a module that declares something.
      theirs: exceptions that are taken for the user's although no line of theirs led to them; the
        others pass.

    Raises:
      PemtError: of this kind, in place of any exception but our own.
    """
    try:
        yield
    except PemtError as error:
        if kind is UsageError and (where := place(error)):
            wrong = UsageError if isinstance(error, UsageError) else PemtError
            raise wrong(f"{where}: {str(error).splitlines()[0]}") from error
        raise
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # an exception of theirs may be of any class
        where = place(error)
        if not where and not isinstance(error, theirs):
            raise
        where = where or (defined_at(code) if code else "")
        raise kind(f"{what} failed{where and f' at {where}'}: {named(error)}.") from error


def import_module(name: str) -> None:
    """Import a user's module by its name.

    Raises:
      UsageError: it has no such name, does not exist, or fails.
    """
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        dotted = ".".join(Path(name).with_suffix("").parts).lstrip(".") if name else ""
        near = f", {dotted!r}" if dotted and dotted.replace(".", "").isidentifier() else ""
        raise UsageError(f"Found {name!r} to import, expected the name of a module{near}.")
    try:
        with user_code(f"The import of {name}", kind=UsageError):
            importlib.import_module(name)
    except UsageError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and f"{name}.".startswith(f"{missing.name}."):
            here = [path.stem for path in Path().glob("*.py")]
            raise UsageError(
                f"There is no module {name!r}, expected one that is installed or in the working "
                f"directory{nearest(name, here)}."
            ) from missing
        raise


def named(error: BaseException) -> str:
    """An exception in one line: its type, and the first line of its text.

    Of one that TensorFlow has wrapped in a stack it is the line about the exception inside.
    """
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{type(error).__name__}: {error.strerror}: {error.filename!r}"
    lines = [re.sub(r"{{.*?}} ?", "", line).strip() for line in _text(error).splitlines()]
    inner = [line for line in lines if re.match(r"\w+(Error|Exception): ", line)]
    if inner:
        return inner[-1].rstrip(".")
    text = next(filter(None, lines), "").rstrip(".")
    return f"{type(error).__name__}{text and ': '}{text}"


def place(error: BaseException) -> str:
    """ "FILE line N" of the innermost line of a user's that led to an exception, or ""."""
    if isinstance(error, SyntaxError) and (file := error.filename or "").endswith(".py"):
        return f"{file} line {error.lineno}"
    for file, line in reversed(PLACE.findall(_text(error))):
        if _is_users(file, {}):
            return f"{file} line {line}"
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if _is_users(frame.f_code.co_filename, frame.f_globals):
            return f"{frame.f_code.co_filename} line {line}"
    return ""


def defined_at(code: Callable) -> str:
    """ "FILE line N" where a function or class is defined, or "" for a built-in one."""
    try:
        found: Any = inspect.unwrap(getattr(code, "func", code))
        return f"{inspect.getsourcefile(found)} line {inspect.getsourcelines(found)[1]}"
    except (TypeError, OSError):
        return ""


def _text(error: BaseException) -> str:
    """What an exception says, or "" where its own code fails."""
    try:
        return str(error)
    except Exception:
        return ""


def _is_users(file: str, names: dict) -> bool:
    """Whether code is neither ours nor a library's, by its file and the names of its module."""
    spec = names.get("__spec__")
    module = spec.name if spec else names.get("__name__", "")
    return not (
        file.startswith((STANDARD, PACKAGE, "<"))
        or "site-packages" in file
        or "__autograph_generated_file" in file
        or module.partition(".")[0] == "pemt_jax"
    )
