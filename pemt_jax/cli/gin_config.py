"""A gin configuration, loaded and checked against what reads it before anything runs.

gin alone accepts a misspelled macro and finds a missing one only when it is needed. Here each of
these is a UsageError with the nearest valid name:
- a macro that no binding reads, or one without a value; a required argument without a value;
- a binding of an unknown function or argument;
- a value that contradicts an annotation: 'abc' for an int, a list for a text.

What gin does not make public is read by `gin_internals`.
"""

import contextlib
import inspect
import re
import tokenize
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import gin

from pemt_jax.cli import gin_internals
from pemt_jax.cli.gin_errors import as_usage_errors, parameters_of
from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError, nearest, shortened, warn
from pemt_jax.common.user_input.code import import_module, user_code
from pemt_jax.common.user_input.files import read_text
from pemt_jax.common.user_input.types import expected


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
    gin_internals.look_for_files_in(folders)
    with as_usage_errors(), gin_internals.recorded_macros() as read:
        for name in files:
            with _imports_of(name):
                gin.parse_config_file(name)
        if gin_internals.selector_of(main) is None:
            gin.register(main)
        for name, value in bindings:
            _bind(name, value)
        given = {name for name, _ in bindings}
        _fill_arguments(main, read, given)
    check_no_cycles()
    check_macros_are_read(read, given, {argument.upper() for argument in parameters_of(main)})
    _check_scopes_are_entered()
    check_nothing_is_missing(main)
    _check_types()
    return gin.get_configurable(main)


def import_modules_of(model_dir: str) -> None:
    """Import what MODEL_DIR/config.gin imports, and do nothing else of what it says.

    The folder above is looked at too: there a job of several tasks has its config.gin, and an
    artefact that of its run. A module that cannot be imported is a warning, for the task may be
    another's.
    """
    folder = storage.path(model_dir)
    for place in (folder, folder.resolve().parent):
        path = place / "config.gin"
        if path.is_symlink() or not path.is_file():
            continue
        try:
            modules = gin_internals.modules_in(read_text(path, "a gin file"))
        except (PemtError, ValueError, SyntaxError, tokenize.TokenError) as error:
            warn(f"{path} cannot be read ({error}), so nothing that it imports is imported.")
            continue
        for module in modules:
            try:
                import_module(module)
            except UsageError as error:
                warn(f"{error} It is imported by {path}.")


@contextlib.contextmanager
def _imports_of(gin_file: str) -> Iterator[None]:
    """Context in which a gin file is parsed, and the modules that it names are imported."""
    with user_code(f"An import of the gin file {gin_file}", kind=UsageError, theirs=()):
        yield


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
        try:
            gin.parse_config([*gin_internals.import_lines(), statement])
        except AttributeError:
            raise
        except (NameError, ValueError):
            if "No configurable matching '" in str(error):
                bindings = [
                    f"{selector}.{argument}"
                    for selector in gin_internals.registered_names()
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
        statements = gin_internals.statements_in(f"x = {value}\n")
    except (SyntaxError, tokenize.TokenError) as error:
        if value[0] in "'\"[{(@%":
            raise UsageError(
                f"The value in --gin.{name}={value} cannot be read, expected a "
                "string, number, list, dictionary, @function or %MACRO."
            ) from error
        return repr(value)
    return value if statements == 1 else repr(value)


def _fill_arguments(main: Callable, read: set[str], given: set[str]) -> None:
    selector = gin_internals.selector_of(main)
    bound = gin_internals.bound_arguments(main)
    owners = [name.rpartition(".")[::2] for name in given]  # ("FewShot", "seed") is another's
    explicit = {name for owner, name in owners if owner and f".{selector}".endswith(f".{owner}")}
    values = gin_internals.macro_values()
    # In a file of another main (a run's own, given to evaluate) every macro may be meant for us.
    foreign = not bound
    for argument in parameters_of(main):
        macro = argument.upper()
        free = argument not in bound or (macro in given and argument not in explicit)
        meant = macro in values and (
            macro not in read or (foreign and not gin_internals.is_required(values[macro]))
        )
        if meant and free:
            gin.bind_parameter(("", selector, argument), gin_internals.reference_to(macro))


def check_no_cycles() -> None:
    """Raise UsageError for a macro that is its own value, which gin would look up without end."""
    values = gin_internals.macro_values()
    reads = {name: gin_internals.macros_in(value) & values.keys() for name, value in values.items()}
    for name in values:
        path = [name]
        while path:
            if (following := next(iter(reads[path[-1]]), None)) is None:
                reads = {key: others - {path[-1]} for key, others in reads.items()}
                path.pop()
            elif following in path:
                cycle = " -> ".join([*path[path.index(following) :], following])
                raise UsageError(f"The macro {following} is its own value ({cycle}).")
            else:
                path.append(following)


def _check_scopes_are_entered() -> None:
    entered = gin_internals.scopes_entered()
    for scope, selector in gin_internals.scopes_bound():
        if not entered & set(scope.split("/")):
            name, _ = gin_internals.registered(selector)
            raise UsageError(
                f"{scope}/{name} is bound but nothing enters the scope {scope!r}"
                f"{nearest(scope, entered)}, expected {name} or a reference @{scope}/{name}()."
            )


def check_macros_are_read(
    read: Collection[str], given: Collection[str], known: Collection[str] = ()
) -> None:
    """Raise UsageError for a macro that no binding reads.

    Args:
        read: the macros that any file reads.
        given: those set on the command line.
        known: names that may be meant beside those in force.
    """
    in_force = gin_internals.macros_in_force()
    candidates = in_force | set(known)
    for name in gin_internals.macro_values():
        # A file may set a macro whose reader another file has replaced; the same on the command
        # line is a wish that would not be fulfilled.
        if name not in (in_force if name in given else read):
            where = f"--gin.{name}=..." if name in given else "a gin file"
            raise UsageError(
                f"The macro {name} is set by {where} but nothing reads it"
                f"{nearest(name, candidates - {name})}."
            )


def check_nothing_is_missing(main: Callable | None = None) -> None:
    """Raise UsageError for macros and arguments without a value, those of `main` included."""
    values = gin_internals.macro_values()
    missing = sorted(
        name
        for name in gin_internals.macros_in_force()
        if name not in values or gin_internals.is_required(values[name])
    )
    if not missing:
        missing = [
            f"{name}.{argument}"
            for name, arguments in gin_internals.bindings()
            for argument, value in arguments.items()
            if gin_internals.is_required(value)
        ]
    if not missing and main is not None:
        missing = [
            name.upper()
            for name, parameter in parameters_of(main).items()
            if parameter.default in (parameter.empty, gin.REQUIRED)
            and name not in gin_internals.bound_arguments(main)
        ]
    if missing:
        flags = " ".join(f"--gin.{name}=..." for name in missing)
        raise UsageError(
            f"There is no value for {', '.join(missing)}, expected {flags} or a gin "
            f"file that sets {'it' if len(missing) == 1 else 'them'}."
        )


def _check_types() -> None:
    values = gin_internals.macro_values()
    for selector, arguments in gin_internals.bindings():
        name, function = gin_internals.registered(selector)
        hints = _hints(function)
        for argument, value in arguments.items():
            source = reader = f"{name}.{argument}"
            while (macro := gin_internals.macro_of(value)) is not None:
                source, value = f"{macro}, read by {reader},", values[macro]
            if gin_internals.is_reference(value):
                continue
            if found := expected(value, hints.get(argument, Any), members=False):
                raise UsageError(f"{source} is {shortened(value)}, expected {found}.")


def _hints(function_or_class: Callable) -> dict[str, object]:
    function = function_or_class
    if inspect.isclass(function):
        function = function.__init__
    try:
        return typing.get_type_hints(inspect.unwrap(function))
    except (NameError, TypeError, AttributeError):  # an annotation that only type checkers resolve
        return {}
