"""The parts of gin that have no public name: what it has registered, parsed and bound.

gin has no public view of its configuration, so a misspelled macro or a missing value cannot be
found before it is needed. This is the only module that imports `gin.config` and
`gin.config_parser`. Each function has a name for what it returns and a test of its own, and a
private name that a later gin no longer has is one sentence with gin's version.
"""

import contextlib
import importlib.metadata
import io
import os
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gin import config, config_parser

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.user_input.files import read_text

VERIFIED = "0.5.0"


def _gin(name: str):
    try:
        return getattr(config, name)
    except AttributeError:
        raise PemtError(
            f"gin-config {importlib.metadata.version('gin-config')} has no gin.config.{name}, "
            f"expected it as in gin-config {VERIFIED}."
        ) from None


def look_for_files_in(folders: Sequence[str]) -> None:
    """Make gin look for its files in the working directory, then in `folders`, and only there."""
    _gin("_LOCATION_PREFIXES")[:] = ["", *folders]
    # gin's other reader logs every miss.
    _gin("_FILE_READERS")[:] = [(_GinFile, os.path.isfile), (_GinFile, _is_remote_file)]


def _is_remote_file(name: str) -> bool:
    # gin puts each folder that it searches before a name, which a URL does not take.
    is_url = storage.is_remote(name) and name.index(":") < name.index("/")
    return is_url and storage.path(name).is_file()


class _GinFile(io.StringIO):
    """A gin file that is being parsed: gin opens those that it includes before it leaves it."""

    parsed: list[str] = []

    def __init__(self, name: str):
        if name in self.parsed:
            cycle = " -> ".join([*self.parsed[self.parsed.index(name) :], name])
            raise UsageError(f"The gin file {name} includes itself ({cycle}).")
        super().__init__(read_text(storage.path(name), "a gin file"))
        self.name = name  # gin's errors have it

    def __enter__(self) -> "_GinFile":
        self.parsed.append(self.name)
        return self

    def __exit__(self, kind, error, stack) -> None:
        self.parsed.remove(self.name)
        if isinstance(error, tokenize.TokenError):  # has no name of a file
            raise UsageError(
                f"{self.name} ends inside a value, expected a closing bracket or quote."
            ) from error


def searched_folders() -> list[Path]:
    """The folders in which gin looks for its files, the working directory excepted."""
    return [Path(prefix) for prefix in _gin("_LOCATION_PREFIXES") if prefix]


def import_lines() -> list[str]:
    """The import statements of all files parsed so far, each as a line of gin."""
    return [line.format() for line in _gin("ImportManager")(_gin("_IMPORTS")).sorted_imports]


@contextlib.contextmanager
def recorded_macros() -> Iterator[set[str]]:
    """Collect every %NAME that gin parses, including those in bindings overridden later."""
    delegate = _gin("ParserDelegate")
    read, original = set(), delegate.macro

    def macro(self, name):
        read.add(name)
        return original(self, name)

    delegate.macro = macro
    try:
        yield read
    finally:
        delegate.macro = original


def statements_in(text: str) -> int:
    """How many gin statements `text` is; SyntaxError or TokenError when it is none."""
    return len(list(config_parser.ConfigParser(text, _AnyReference())))


def modules_in(text: str) -> list[str]:
    """The modules that a gin file's text imports, by name; nothing is imported or bound.

    Raises:
        SyntaxError, TokenError: it is no gin.
    """
    statements = config_parser.ConfigParser(text, _AnyReference())
    return [
        statement.module
        for statement in statements
        if isinstance(statement, config_parser.ImportStatement)
        and not statement.module.startswith("__gin__")
    ]


def macros_read_in(files: Sequence[str], bindings: Sequence[str]) -> set[str]:
    """Every %NAME in gin files, as gin finds them and what they include, and in bindings.

    Raises:
        SyntaxError, TokenError: one is no gin.
    """
    reference, waiting, seen = _AnyReference(), list(files), set()
    texts = ["\n".join(bindings)]
    while texts or waiting:
        text = texts.pop() if texts else _text_of(waiting.pop())
        for statement in config_parser.ConfigParser(text, reference):
            if isinstance(statement, config_parser.IncludeStatement):
                waiting += {statement.filename} - seen
                seen.add(statement.filename)
    return reference.macros


def _text_of(name: str) -> str:
    for prefix in _gin("_LOCATION_PREFIXES"):
        path = os.path.join(prefix, name)
        for reader, is_there in _gin("_FILE_READERS"):
            if is_there(path):
                with reader(path) as file:
                    return file.read()
    return ""


def check_before_others(check: Callable[[Mapping], None]) -> None:
    """Call `check` with gin's bindings when a program has parsed them all, as T5X's mains do.

    It comes before what gin itself checks then; gin.config.register_finalize_hook comes after it.
    """
    _gin("_FINALIZE_HOOKS").insert(0, check)


class _AnyReference(config_parser.ParserDelegate):
    """Accepts references to what does not exist: only the syntax, and `macros`, are asked for."""

    def __init__(self):
        self.macros: set[str] = set()

    def configurable_reference(self, scoped_configurable_name, evaluate):
        return scoped_configurable_name

    def macro(self, macro_name):
        self.macros.add(macro_name)
        return macro_name


def selector_of(function_or_class: Callable) -> str | None:
    """The complete name under which something is registered, or None when it is not."""
    found = _gin("_inverse_lookup")(function_or_class)
    return found and found.selector


def registered(selector: str) -> tuple[str, Callable]:
    """The short name and the function or class registered under a complete name."""
    found = _gin("_REGISTRY")[selector]
    return found.name, found.wrapped


def registered_as(name: str) -> list[Callable]:
    """The functions and classes whose complete name ends in `name`."""
    return [found.wrapped for found in _gin("_REGISTRY").get_all_matches(name)]


def registered_names() -> list[str]:
    """The shortest name of everything registered by now, gin's own excepted."""
    registry = _gin("_REGISTRY")
    return [
        registry.minimal_selector(selector)
        for selector, _ in registry.items()
        if not selector.startswith("gin.")
    ]


def bindings() -> list[tuple[str, Mapping[str, object]]]:
    """What is bound, macros excepted: (selector, {argument: value}), one pair per scope."""
    return [
        (selector, arguments)
        for (_, selector), arguments in _gin("_CONFIG").items()
        if selector != "gin.macro"
    ]


def bound_arguments(function_or_class: Callable) -> Mapping[str, object]:
    """{argument: value} of what is bound to something registered, outside every scope."""
    return _gin("_CONFIG").get(("", selector_of(function_or_class)), {})


def macro_values() -> dict[str, object]:
    """The macros that have a value, and their values as parsed."""
    return {
        scope: arguments["value"]
        for (scope, selector), arguments in _gin("_CONFIG").items()
        if selector == "gin.macro"
    }


def macros_in_force() -> set[str]:
    """The macros to which a current binding refers."""
    references = _gin("iterate_references")(_gin("_CONFIG"))
    return {name for name in map(macro_of, references) if name}


def scopes_bound() -> list[tuple[str, str]]:
    """(scope, selector) of what is bound in a scope, macros excepted."""
    return [key for key in _gin("_CONFIG") if key[0] and key[1] != "gin.macro"]


def scopes_entered() -> set[str]:
    """The names of the scopes that a reference, @scope/name, enters."""
    references = _gin("iterate_references")(_gin("_CONFIG"))
    return {name for reference in references for name in reference.scopes}


def macros_in(value: object) -> set[str]:
    """The macros to which a value refers, on its own or inside a list."""
    references = _gin("iterate_references")({"": value})
    return {name for name in map(macro_of, references) if name}


def macro_of(value: Any) -> str | None:
    """The name of the macro that `value` refers to, or None."""
    is_macro = isinstance(
        value, _gin("ConfigurableReference")
    ) and value.configurable.wrapped is _gin("macro")
    return "/".join(value.scopes) if is_macro else None


def is_reference(value: object) -> bool:
    """Whether `value` is a reference, @function or %MACRO, whose value gin makes when it calls."""
    return isinstance(value, _gin("ConfigurableReference"))


def reference_to(macro: str) -> object:
    """What gin stores for %MACRO."""
    return _gin("parse_value")(f"%{macro}")


def is_required(value: Any) -> bool:
    """Whether `value` is %gin.REQUIRED, which stands for a value that is still missing."""
    return isinstance(value, _gin("ConfigurableReference")) and value.config_key == (
        "gin.REQUIRED",
        "gin.constant",
    )


def original(error: BaseException) -> BaseException:
    """The exception that was raised, where gin raised a copy with the path to the failing call."""
    # The method of an exception from C++, as of XLA's, has None for its name.
    while "augment_exception_message_and_reraise" in (type(error).__str__.__qualname__ or ""):
        assert error.__context__ is not None  # gin raises the copy while it handles the original
        error = error.__context__  # a copy keeps neither attributes nor a plain message
    return error


def is_file_of_gin(filename: str) -> bool:
    """Whether a frame's file name is that of one of gin's own modules."""
    return Path(filename).parent == Path(config.__file__).parent
