"""A sweep as its report has it: read from its folder once, put into any form afterwards."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from pemt_jax.common import storage
from pemt_jax.common.user_input.files import read_object
from pemt_jax.sweeping.methods import METHODS
from pemt_jax.sweeping.pages.numbers import Column, Entry, columns, entries
from pemt_jax.sweeping.pages.published import Published, published
from pemt_jax.sweeping.results import COSTS, RESULTS, TABLE, read_lines, read_results


@dataclasses.dataclass(frozen=True)
class Results:
    """What a sweep found.

    Attributes:
      rows, costs: the lines of results.jsonl and costs.jsonl.
      settings: the table, of sweep.json.
      columns: of the tables, (task, shots).
      entries: {(method, column): entry}.
    """

    rows: Sequence[Mapping]
    costs: Sequence[Mapping]
    settings: Mapping
    columns: Sequence[Column]
    entries: Mapping[tuple[str, Column], Entry]
    published: Published

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(method for method, _ in self.entries))

    @property
    def title(self) -> str:
        return str(self.settings.get("title", "Sweep"))

    @property
    def baseline(self) -> str:
        return str(self.settings.get("baseline", ""))

    def mean(self, method: str) -> float | None:
        """Over all columns; None where one is missing, or where there is only one."""
        values = [
            entry.mean if (entry := self.entries.get((method, column))) else None
            for column in self.columns
        ]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if len(known) == len(values) > 1 else None

    def published_rows(self) -> list[tuple[str, list[float | None]]]:
        """Published values in the same columns, of tasks with all their examples."""
        found = []
        for name, values in self.published.rows.items():
            row = [values.get(task) if shots == "full" else None for task, shots in self.columns]
            if any(value is not None for value in row):
                found.append((name, row))
        return found


def is_sweep(place: str) -> bool:
    """Whether a folder is a sweep's."""
    return (storage.path(place) / RESULTS).is_file() or (storage.path(place) / TABLE).is_file()


def read_sweep(place: str) -> Results:
    """Read a sweep.

    Raises:
      UsageError: it has no results yet. PemtError: a file of it is damaged.
    """
    folder: Path = storage.path(place)
    rows = read_results(folder)
    costs = read_lines(folder / COSTS) if (folder / COSTS).is_file() else []
    table = folder / TABLE
    settings = read_object(table, "a sweep's table") if table.is_file() else {}
    other = published(settings.get("published"))
    found = entries(rows, str(settings.get("baseline", "")), other.rows)
    return Results(rows, costs, settings, columns(rows), found, other)


def title_of(method: str) -> str:
    """What a method is called on a page."""
    return METHODS[method].title if method in METHODS else method
