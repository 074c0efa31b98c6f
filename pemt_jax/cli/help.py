"""What --help of a gin main lists beside its flags: arguments, methods, optimizers, macros.

Nothing is parsed by gin and nothing that a configuration imports is imported, so --help needs
neither TensorFlow nor the tasks.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import gin

import pemt_jax.configs

CONFIGS = Path(pemt_jax.configs.__file__).parent
COMMON = "runs/common.gin"


def epilog(main: Callable, parameters: Mapping[str, inspect.Parameter]) -> str:
    """The text after the flags: the docstring of `main`, its defaults, and the names to choose."""
    sections = [
        inspect.getdoc(main) or "",
        _section(
            f"Defaults, set as --gin.{main.__name__}.NAME=VALUE:",
            [
                name
                if parameter.default in (parameter.empty, gin.REQUIRED)
                else f"{name} = {parameter.default!r}"
                for name, parameter in parameters.items()
            ],
        ),
    ]
    if "method" in parameters:
        from pemt_jax.optimizers import CHAINS

        sections += [
            _section("Methods, set as --gin.METHOD=NAME:", methods()),
            _section("Optimizers, set as --gin.optimizers.make_optimizer.name=NAME:", [*CHAINS]),
            _section(f"Macros of {COMMON}, set as --gin.NAME=VALUE:", macros()),
        ]
    return "\n\n".join(section for section in sections if section)


def methods() -> list[str]:
    """A line per method: its name and what it trains."""
    from pemt_jax.model.methods import METHODS

    width = max(map(len, METHODS))
    return [f"{name.ljust(width)}  {method.summary}" for name, method in METHODS.items()]


def macros() -> list[str]:
    """The macros that the shipped configurations of runs share."""
    text = (CONFIGS / COMMON).read_text(encoding="utf-8")
    return re.findall(r"^([A-Z]\w*) *=", text, re.MULTILINE)


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([title, *(f"  {line}" for line in lines)]) if lines else ""
