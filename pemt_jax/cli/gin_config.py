"""A gin configuration, loaded and held against what reads it before anything runs.

gin alone accepts a misspelled macro and finds a missing one only when it is needed. Here each of
these is a UsageError with the nearest valid name:
- a macro that no binding reads, or one without a value; a required argument without a value;
- a binding of an unknown function or argument;
- a plain value that contradicts an annotation: 'abc' for an int, 'abc' for a list.

gin has no public view of its configuration: this module and gin_errors read `gin.config._CONFIG`
and `_REGISTRY`, and no other module does.
"""

import contextlib
import inspect
import os
import re
import tokenize
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import gin
from gin import config as gin_config
from gin import config_parser

from pemt_jax.cli.gin_errors import as_usage_errors, configurable_names, parameters_of
from pemt_jax.common.errors import UsageError, nearest

SIMPLE_TYPES = (int, float, str, bool, type(None))


def load(
    main: Callable,
    files: Sequence[str],
    bindings: Sequence[tuple[str, str]],
    folders: Sequence[str],
) -> Callable:
    """Load gin files, then bindings, check all of it and return `main` ready to be called.

    Args:
        main: the function to configure. A macro that no binding reads fills its argument of
            the same name in lower case, if it has one (MODEL_DIR fills `model_dir`); in files
            that do not configure `main` at all, every macro with a value does.
        files: names of gin files, found from the working directory or in one of `folders`.
        bindings: (name, value) pairs: a macro or `function.argument`, and a gin literal or, when
            it is none, a plain string.
        folders: where files and their `include` statements are looked for.

    Raises:
        UsageError: for the first fault found.
    """
    gin.clear_config()
    gin_config._LOCATION_PREFIXES[:] = ["", *folders]
    gin_config._FILE_READERS[:] = [(open, os.path.isfile)]  # gin's other one logs every miss
    with as_usage_errors(), _recorded_macros() as read:
        for name in files:
            gin.parse_config_file(name)
        if gin_config._inverse_lookup(main) is None:
            gin.register(main)
        for name, value in bindings:
            _bind(name, value)
        given = {name for name, _ in bindings}
        _fill_arguments(main, read, given)
    _check_macros_are_read(main, read, given)
    _check_nothing_is_missing(main)
    _check_types()
    return gin.get_configurable(main)


def bindings_of(module: types.ModuleType) -> dict[str, str]:
    """What has been read so far of the configuration of a module's functions, macros resolved.

    Returns {"function.argument": value as text}, defaults included; empty without gin.
    """
    values, found = _macro_values(), {}
    for (_, selector), arguments in sorted(gin_config._OPERATIVE_CONFIG.items()):
        configurable = gin_config._REGISTRY[selector]
        if configurable.wrapped.__module__ != module.__name__:
            continue
        for argument, value in arguments.items():
            while (macro := _macro_of(value)) is not None:
                value = values[macro]
            found[f"{configurable.name}.{argument}"] = str(value)
    return found


@contextlib.contextmanager
def _recorded_macros() -> Iterator[set[str]]:
    """Collect every %NAME that gin parses, those in bindings overridden later included."""
    read, original = set(), gin_config.ParserDelegate.macro

    def macro(delegate, name):
        read.add(name)
        return original(delegate, name)

    gin_config.ParserDelegate.macro = macro
    try:
        yield read
    finally:
        gin_config.ParserDelegate.macro = original


def _bind(name: str, value: str) -> None:
    if not re.fullmatch(r"[A-Za-z_]\w*([./][A-Za-z_]\w*)*", name):
        raise UsageError(
            f"There can be no name {name!r} as in --gin.{name}={value}, expected that "
            "of a macro or function.argument."
        )
    statement = f"{name} = {_literal(name, value)}"
    try:
        gin.parse_config(statement)
    except ValueError as error:
        # gin looks a bare name up among what the files have bound so far; the modules that the
        # files import hold more.
        imports = gin_config.ImportManager(gin_config._IMPORTS).sorted_imports
        try:
            gin.parse_config([*(line.format() for line in imports), statement])
        except AttributeError:
            raise
        except (NameError, ValueError):
            if "No configurable matching '" in str(error):
                bindings = [
                    f"{selector}.{argument}"
                    for selector in configurable_names()
                    for argument in parameters_of(gin.get_configurable(selector))
                ]
                raise UsageError(
                    f"Nothing is called {name!r} as in --gin.{name}={value}"
                    f"{nearest(name, bindings)}."
                ) from None
            raise error from None


def _literal(name: str, value: str) -> str:
    """`value` as gin writes it: unchanged when it is a gin literal, else quoted as a string."""
    try:
        statements = list(config_parser.ConfigParser(f"x = {value}\n", _AnyReference()))
    except (SyntaxError, tokenize.TokenError) as error:
        if value[0] in "'\"[{(@%":
            raise UsageError(
                f"The value in --gin.{name}={value} cannot be read, expected a "
                "string, number, list, dictionary, @function or %MACRO."
            ) from error
        return repr(value)
    return value if len(statements) == 1 else repr(value)


class _AnyReference(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name, evaluate):
        return scoped_configurable_name

    def macro(self, macro_name):
        return macro_name


def _bound(main: Callable) -> dict[str, object]:
    return gin_config._CONFIG.get(("", gin_config._inverse_lookup(main).selector), {})


def _fill_arguments(main: Callable, read: set[str], given: set[str]) -> None:
    selector = gin_config._inverse_lookup(main).selector
    explicit = {name.rpartition(".")[2] for name in given}
    values = _macro_values()
    # In a file of another main (a run's own, given to evaluate) every macro may be meant for us.
    foreign = not _bound(main)
    for argument in parameters_of(main):
        macro = argument.upper()
        free = argument not in _bound(main) or (macro in given and argument not in explicit)
        meant = macro in values and (
            macro not in read or (foreign and not _is_required(values[macro]))
        )
        if meant and free:
            gin.bind_parameter(("", selector, argument), gin_config.parse_value(f"%{macro}"))


def _macro_values() -> dict[str, object]:
    return {
        scope: arguments["value"]
        for (scope, selector), arguments in gin_config._CONFIG.items()
        if selector == "gin.macro"
    }


def _macro_of(value: object) -> str | None:
    """The name of the macro that `value` refers to, or None."""
    is_macro = (
        isinstance(value, gin_config.ConfigurableReference)
        and value.configurable.wrapped is gin_config.macro
    )
    return "/".join(value.scopes) if is_macro else None


def _macros_in_force() -> set[str]:
    references = gin_config.iterate_references(gin_config._CONFIG)
    return {name for name in map(_macro_of, references) if name}


def _check_macros_are_read(main: Callable, read: set[str], given: set[str]) -> None:
    in_force = _macros_in_force()
    candidates = in_force | {argument.upper() for argument in parameters_of(main)}
    for name in _macro_values():
        # A file may set a macro whose reader another file has replaced; the same on the command
        # line is a wish that would not be fulfilled.
        if name not in (in_force if name in given else read):
            where = f"--gin.{name}=..." if name in given else "a gin file"
            raise UsageError(
                f"The macro {name} is set by {where} but nothing reads it"
                f"{nearest(name, candidates - {name})}."
            )


def _check_nothing_is_missing(main: Callable) -> None:
    values = _macro_values()
    missing = sorted(
        name for name in _macros_in_force() if name not in values or _is_required(values[name])
    )
    if not missing:
        missing = [
            f"{name}.{argument}"
            for (_, name), arguments in gin_config._CONFIG.items()
            for argument, value in arguments.items()
            if _is_required(value)
        ]
    if not missing:
        missing = [
            name.upper()
            for name, parameter in parameters_of(main).items()
            if parameter.default in (parameter.empty, gin.REQUIRED) and name not in _bound(main)
        ]
    if missing:
        flags = " ".join(f"--gin.{name}=..." for name in missing)
        raise UsageError(
            f"There is no value for {', '.join(missing)}, expected {flags} or a gin "
            f"file that sets {'it' if len(missing) == 1 else 'them'}."
        )


def _is_required(value: object) -> bool:
    return isinstance(value, gin_config.ConfigurableReference) and value.config_key == (
        "gin.REQUIRED",
        "gin.constant",
    )


def _check_types() -> None:
    values = _macro_values()
    for (_, selector), arguments in gin_config._CONFIG.items():
        if selector == "gin.macro":
            continue
        configurable = gin_config._REGISTRY[selector]
        hints = _hints(configurable.wrapped)
        for argument, value in arguments.items():
            source = reader = f"{configurable.name}.{argument}"
            while (macro := _macro_of(value)) is not None:
                source, value = f"{macro}, read by {reader},", values[macro]
            expected = _expected(value, hints.get(argument))
            if expected:
                raise UsageError(f"{source} is {value!r}, expected {expected}.")


def _hints(function_or_class: Callable) -> dict[str, object]:
    function = function_or_class
    if inspect.isclass(function):
        function = function.__init__
    try:
        return typing.get_type_hints(inspect.unwrap(function))
    except (NameError, TypeError, AttributeError):  # an annotation that only type checkers resolve
        return {}


def _expected(value: object, hint: object) -> str:
    """What `hint` wants when the plain `value` certainly is no such thing, else ""."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    members = typing.get_args(hint) if union else (hint,)
    plain = [member for member in members if member in SIMPLE_TYPES]
    kinds = [typing.get_origin(member) or member for member in members if member not in plain]
    if (
        type(value) not in SIMPLE_TYPES
        or type(value) in plain
        or (type(value) is int and float in plain)
        or not all(inspect.isclass(kind) and issubclass(kind, Collection) for kind in kinds)
    ):
        return ""
    names = ["None" if member is type(None) else member.__name__ for member in plain]
    names += ["a dictionary" if issubclass(kind, Mapping) else "a list" for kind in kinds]
    return " or ".join(names)
