"""Configurations made of parts, whose fields are given and read by their own names.

    @dataclass(frozen=True)
    class Loop(Part):
        steps: int

    @dataclass(frozen=True, kw_only=True)
    class Config(Flat):
        folder: str
        loop: Loop

    Config.of(folder="runs/x", steps=3) == Config(folder="runs/x", loop=Loop(steps=3))

Code reads parts, gin and the command line know only names.
"""

import dataclasses
import functools
import inspect
import math
import numbers
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pemt_jax.common.errors import UsageError, nearest, shortened
from pemt_jax.common.user_input.types import check


@dataclasses.dataclass(frozen=True)
class Part:
    """A group of fields inside a configuration; its fields are reached by their own names."""


LARGEST = 2**31 - 1  # of a count: JAX's indices have 32 bits


def choose(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise UsageError unless the value is one of those allowed."""
    if value not in allowed:
        raise UsageError(
            f"Found {name} {shortened(value)}, expected one of {', '.join(allowed)}"
            f"{nearest(str(value), allowed)}."
        )


def not_blank(what: str = "a path", **texts: Any) -> None:
    """Raise UsageError for a text, by its name, that is neither None nor has a character in it."""
    for name, value in texts.items():
        check(name, value, str | None)
        if value is not None and not value.strip():
            raise UsageError(f"Found {name} {value!r}, expected {what}.")


def at_least(least: int, *, largest: int = LARGEST, **values: int | None) -> None:
    """Raise UsageError for a count, by its name, that is neither None nor `least` or more."""
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise UsageError(f"Found {name} {shortened(value)}, expected a whole number.")
        if not least <= value <= largest:
            expected = f"{least} or more" if value < least else f"at most {largest}"
            raise UsageError(f"Found {name} {shortened(value)}, expected {expected}.")


def number(
    name: str, value: Any, least: float = 0, below: float = math.inf, positive: bool = False
) -> None:
    """Raise UsageError unless the value is a number in [least, below), or in (least, below)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UsageError(f"Found {name} {shortened(value)}, expected a number.")
    found: Any = value
    if not least <= found < below or found > sys.float_info.max or (positive and found == least):
        begin = f"more than {least:g}" if positive else f"{least:g} or more"
        end = " and finite" if below == math.inf else f" and less than {below:g}"
        raise UsageError(f"Found {name} {shortened(value)}, expected {begin}{end}.")


def lengths(name: str, value: object) -> None:
    """Raise UsageError unless the value is {feature: tokens} with inputs and targets."""
    if not isinstance(value, Mapping):
        raise UsageError(f"Found {name} {shortened(value)}, expected a dictionary of lengths.")
    for feature in ("inputs", "targets"):
        if feature not in value:
            raise UsageError(f"{name} has no length for {feature!r}, expected one.")
    for feature in value.keys() - {"inputs", "targets"}:
        raise UsageError(
            f"{name} has a length for {shortened(feature)}, expected only 'inputs' and 'targets'."
        )
    at_least(1, **{f"{name}[{feature!r}]": length for feature, length in value.items()})


def bucket_lengths(name: str, value: Any) -> None:
    """Raise UsageError unless the value is None, a count, lengths, or pairs of lengths."""
    if value is None or isinstance(value, numbers.Integral):
        at_least(1, **{name: typing.cast(Any, value)})
        return
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise UsageError(f"Found {name} {shortened(value)}, expected lengths or how many of them.")
    for found in value:
        is_pair = isinstance(found, Sequence) and not isinstance(found, str)
        if is_pair and len(found) != 2:
            raise UsageError(
                f"Found {name} with {shortened(found)}, expected pairs of the lengths of inputs "
                "and targets."
            )
        pair = found if is_pair else (found,)
        for length in pair:
            at_least(1, **{f"a length of {name}": typing.cast(Any, length)})


@dataclasses.dataclass(frozen=True)
class Flat:
    """A configuration made of parts, that can be given and read by the names of all its fields."""

    @classmethod
    def of(cls, **values: object) -> typing.Self:
        """The configuration with these fields, each put into its part.

        Raises:
          UsageError: an unknown or missing field.
        """
        known = cls.parameters()
        for name in values:
            if name not in known:
                raise UsageError(f"{cls.__name__} has no {name!r}{nearest(name, known)}.")
        required = (name for name, p in known.items() if p.default is p.empty)
        if missing := [name for name in required if name not in values]:
            raise UsageError(f"{cls.__name__} has no value for {', '.join(missing)}.")
        try:  # the checks of the parts say more
            made = cls._of(values)
        except (TypeError, ValueError, AttributeError):
            cls.check_types(values)
            raise
        cls.check_types(values)
        return made

    @classmethod
    def _of(cls, values: Mapping[str, object]) -> typing.Self:
        given, parts = {}, cls.parts()
        for field in dataclasses.fields(cls):
            if field.name in parts:
                part = parts[field.name]
                names = [inner.name for inner in dataclasses.fields(part)]
                given[field.name] = part(**{n: values[n] for n in names if n in values})
            elif field.name in values:
                given[field.name] = values[field.name]
        return cls(**given)

    @classmethod
    def check_types(cls, values: Mapping[str, object]) -> None:
        """Raise UsageError for a value that is not of its parameter's annotation."""
        for name, value in values.items():
            check(name.upper(), value, cls.parameters()[name].annotation)

    def flat(self) -> dict[str, object]:
        """{field: value} of all parts."""
        found = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            inner = dataclasses.fields(value) if isinstance(value, Part) else ()
            found |= {part.name: getattr(value, part.name) for part in inner}
            if not isinstance(value, Part):
                found[field.name] = value
        return found

    def replace(self, **values: object) -> typing.Self:
        """A copy with other values of these fields, whatever part they are in."""
        return self.of(**self.flat() | values)

    @classmethod
    def parts(cls) -> dict[str, type[Part]]:
        """{field: class} of the parts."""
        hints = typing.get_type_hints(cls)
        return {name: hint for name, hint in hints.items() if _is_part(hint)}

    @classmethod
    @functools.cache
    def parameters(cls) -> dict[str, inspect.Parameter]:
        """The fields of all parts as parameters of a function, those without a default first."""
        hints, found = typing.get_type_hints(cls), []
        for field in dataclasses.fields(cls):
            part = hints[field.name]
            owner = part if _is_part(part) else cls
            own = dataclasses.fields(part) if _is_part(part) else (field,)
            of_owner = typing.get_type_hints(owner)
            found += [
                inspect.Parameter(
                    inner.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=_default(inner),
                    annotation=of_owner[inner.name],
                )
                for inner in own
            ]
        found.sort(key=lambda p: p.default is not p.empty)
        return {parameter.name: parameter for parameter in found}


def _is_part(hint: object) -> bool:
    return inspect.isclass(hint) and issubclass(hint, Part)


def _default(field: dataclasses.Field) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    missing = field.default is dataclasses.MISSING
    return inspect.Parameter.empty if missing else field.default
