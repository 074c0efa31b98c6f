"""Bad inputs by category: a module each, whose CASES are data."""

import dataclasses
import importlib
from collections.abc import Iterable

from case import Case

CATEGORIES = (
    "gin_values",
    "gin_files",
    "paths",
    "rows",
    "cards",
    "runs",
    "headers",
    "bases",
    "foreign",
    "flags",
    "user_code",
)
PLANTED = "planted"  # broken promises, which the judge must see


def all_cases(categories: Iterable[str]) -> list[Case]:
    """The cases of these categories, in order; no two of one category have the same name."""
    found = []
    for category in categories:
        cases = importlib.import_module(f"cases.{category}").CASES
        names = [case.name for case in cases]
        assert len(set(names)) == len(names), sorted(n for n in names if names.count(n) > 1)
        found += [dataclasses.replace(case, category=category) for case in cases]
    return found
