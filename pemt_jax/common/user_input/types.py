"""Whether a value that a user gave is of the type that a field or an argument is annotated with.

Only what is certainly wrong is refused: an annotation that is not understood takes any value.
"""

import dataclasses
import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pemt_jax.common.errors import UsageError, shortened

# type -> what is one, and what it is called in a sentence
SIMPLE: dict[Any, tuple[Any, str]] = {
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "a text"),
    bool: (bool | np.bool_, "True or False"),
    type(None): (type(None), "None"),
}


def check_fields(configuration: Any) -> None:
    """Raise UsageError for a field of a dataclass that is not of its type."""
    kind = type(configuration)
    for name, hint in hints_of(kind).items():
        check(f"{kind.__name__}.{name}", getattr(configuration, name), hint)


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """{field: annotation} of a dataclass."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def check(name: str, value: object, hint: Any) -> None:
    """Raise UsageError for a value, by its `name`, that is not of the annotated type."""
    if found := expected(value, hint):
        raise UsageError(f"Found {name} {shortened(value)}, expected {found}.")
    try:
        str(value).encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise UsageError(
            f"Found {name} {shortened(value)}, expected a text that UTF-8 can hold."
        ) from error


def expected(value: object, hint: Any, members: bool = True) -> str:
    """What `hint` wants when the value certainly is no such thing, else "".

    Without `members` what is in a list or dictionary is not looked at.
    """
    kinds = typing.get_args(hint) if _is_union(hint) else (hint,)
    if any(_is_of(value, kind, members) for kind in kinds):
        return ""
    return " or ".join(dict.fromkeys(map(_name, kinds)))


def _is_union(hint: object) -> bool:
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


def _is_of(value: Any, kind: Any, members: bool) -> bool:
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in SIMPLE:
        # A truth value is an integer in Python, and no number that anybody means.
        is_truth = isinstance(value, bool | np.bool_)
        return isinstance(value, SIMPLE[origin][0]) and (not is_truth or origin is bool)
    if not inspect.isclass(origin):
        return True
    if origin is Callable:
        return callable(value)
    if issubclass(origin, Mapping):
        parts = (value.keys(), value.values()) if isinstance(value, Mapping) else None
    elif issubclass(origin, Sequence):
        parts = (value,) if isinstance(value, list | tuple | np.ndarray) else None
    else:
        try:
            return isinstance(value, origin)
        except TypeError:  # a protocol that cannot be asked
            return True
    return parts is not None and not (
        members
        and any(
            expected(member, hint)
            for part, hint in zip(parts, arguments, strict=False)
            for member in part
        )
    )


def _name(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in SIMPLE:
        return SIMPLE[origin][1]
    if origin is Callable:
        return "a function"
    if issubclass(origin, Mapping):
        return "a dictionary"
    if issubclass(origin, Sequence):
        simple = arguments and arguments[0] in SIMPLE
        return f"a list of {_name(arguments[0]).split()[-1]}s" if simple else "a list"
    if getattr(origin, "_is_protocol", False):  # its docstring says what it is
        text = (inspect.getdoc(origin) or origin.__name__).partition(":")[0]
        return text[:1].lower() + text[1:]
    return origin.__name__
