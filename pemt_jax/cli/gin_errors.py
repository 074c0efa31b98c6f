"""What gin raises, in one sentence with the nearest valid name.

gin answers a misspelled name with a ValueError, NameError, AttributeError, KeyError, SyntaxError
or OSError under a traceback through its own parser. Each of them becomes a UsageError here; what
configured code raises is left alone.
"""

import contextlib
import inspect
import os
import re
import sys
import tokenize
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pemt_jax.cli import gin_internals
from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError, nearest, shortened

PLACE = re.compile(r'In file "([^"]+)", line (\d+)')


@contextlib.contextmanager
def as_usage_errors() -> Iterator[None]:
    """Turn what gin itself raises into a UsageError; errors of configured code pass unchanged."""
    try:
        yield
    except PemtError:
        raise
    except Exception as error:
        if _is_of_gin(error):
            raise UsageError(f"{explain(error).rstrip('.')}.") from error
        raise


def explain(error: Exception) -> str:
    """One sentence for an exception raised by gin: place, fault, nearest valid name."""
    if isinstance(gin_internals.original(error), RecursionError):
        return (
            "A value in the gin files is nested too deep, expected fewer brackets and no function "
            "among its own arguments"
        )
    text = str(error)
    place = PLACE.search(text)
    where = f"{place[1]} line {place[2]}: " if place else ""
    if isinstance(error, SyntaxError):
        where = f"{error.filename} line {error.lineno}: " if error.filename else ""
        if match := re.search(r"Failed to parse token '(.*)'", str(error.msg), re.DOTALL):
            return (
                f"{where}The value {shortened(match[1])} cannot be read, expected a string in "
                "quotes, a number, a list, a dictionary, @function or %MACRO"
            )
        return where + " ".join(str(error.msg).split())
    if match := re.match(r"Unable to open file: (.*?)\. Searched config paths: ", text, re.DOTALL):
        return where + _no_file(match[1])
    if match := re.match(r"No configurable matching (?:reference )?'@?(.+?)(?:\(\))?'", text):
        names = gin_internals.registered_names()
        return f"{where}Nothing is called {match[1]!r}{nearest(match[1], names)}"
    if match := re.match(r"Configurable '(.+?)' doesn't have a parameter named '(.+?)'", text):
        names = _arguments(match[1])
        return f"{where}{match[1]} has no argument {match[2]!r}{nearest(match[2], names)}"
    if match := re.match(r"'(\w+)' was not provided by an import statement", text):
        names = _imported_names(place[1]) if place else gin_internals.registered_names()
        return f"{where}{match[1]!r} is not imported in this file{nearest(match[1], names)}"
    if match := re.match(r"Couldn't resolve .*<module '(.+?)'.* has no attribute (\w+)", text):
        names = vars(sys.modules[match[1]]) if match[1] in sys.modules else ()
        return f"{where}{match[1]} has no {match[2]!r}{nearest(match[2], names)}"
    if match := re.match(r"Required bindings for `(.+?)` not provided in config: \[(.+)\]", text):
        return _no_value(match[1], match[2])
    if match := re.match(r"(\w+).*\(\) missing \d+ required .*arguments?: (.+)", text):
        return _no_value(match[1], match[2])
    if match := re.search(r"Ambiguous selector '(.+?)', matches (\[.+?\])", text):
        return f"{where}{match[1]!r} may be any of {match[2]}, expected one of these"
    return where + " ".join(str(gin_internals.original(error)).split())


def parameters_of(function_or_class: Callable) -> dict[str, inspect.Parameter]:
    """The named arguments that gin can fill."""
    signature = inspect.signature(function_or_class)
    return {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _is_of_gin(error: Exception) -> bool:
    """Whether the innermost frame is in gin, or in what gin calls to read and import."""
    if isinstance(error, ModuleNotFoundError) and PLACE.search(str(error)):
        return True
    helpers = (tokenize.__file__, "<frozen importlib")
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    files = [name for name in files if not name.startswith(helpers)]
    if isinstance(gin_internals.original(error), RecursionError):
        return sum(map(gin_internals.is_file_of_gin, files)) > 50
    return bool(files) and gin_internals.is_file_of_gin(files[-1])


def _no_file(name: str) -> str:
    if os.path.islink(name) and not os.path.exists(name):
        return f"{name} is a link to nothing, expected a gin file"
    if os.path.lexists(name):
        kind = "a folder" if os.path.isdir(name) else "a pipe or device"
        return f"{name} is {kind}, expected a gin file"
    return f"There is no gin file {name!r}{nearest(name, _gin_files())}"


def _no_value(function: str, names: str) -> str:
    return f"There is no value for {names} of {function}, expected --gin.{function}.NAME=VALUE"


def _arguments(selector: str) -> Iterable[str]:
    matches = gin_internals.registered_as(selector)
    return parameters_of(matches[0]) if matches else ()


def _imported_names(gin_file: str) -> list[str]:
    lines = storage.path(gin_file).read_text(encoding="utf-8").splitlines()
    return [line.split()[-1] for line in lines if re.match(r"(from|import)\s", line)]


def _gin_files() -> list[str]:
    folders = gin_internals.searched_folders()
    files = [path.relative_to(folder) for folder in folders for path in folder.glob("*/*.gin")]
    return [str(path) for path in [*files, *Path().glob("*.gin")]]
