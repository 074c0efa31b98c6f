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
import typing
from collections.abc import Sequence

from pemt_jax.common.errors import UsageError, nearest


@dataclasses.dataclass(frozen=True)
class Part:
    """A group of fields inside a configuration; its fields are reached by their own names."""


def choose(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise UsageError unless the value is one of those allowed."""
    if value not in allowed:
        raise UsageError(
            f"Found {name} {value!r}, expected one of {', '.join(allowed)}"
            f"{nearest(str(value), allowed)}."
        )


def at_least(least: int, **values: float | None) -> None:
    """Raise UsageError for a value, by its name, that is neither None nor `least` or more."""
    for name, value in values.items():
        if value is not None and value < least:
            raise UsageError(f"Found {name} {value}, expected {least} or more.")


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
        given, parts = {}, cls.parts()
        for field in dataclasses.fields(cls):
            if field.name in parts:
                part = parts[field.name]
                names = [inner.name for inner in dataclasses.fields(part)]
                given[field.name] = part(**{n: values[n] for n in names if n in values})
            elif field.name in values:
                given[field.name] = values[field.name]
        return cls(**given)

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
