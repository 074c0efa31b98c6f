"""Published numbers, shown beside ours with their source: published.json."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from pemt_jax.common.errors import no_such


@dataclasses.dataclass(frozen=True)
class Published:
    """A published table.

    Attributes:
      source: where its numbers were read.
      note: what has to be known of them.
      rows: {method as it is called there: {task as it is called here: value}}.
    """

    title: str
    source: str
    note: str
    rows: Mapping[str, Mapping[str, float]]


NOTHING = Published("", "", "", {})


def published(name: str | None) -> Published:
    """A table of published.json; UsageError with the nearest name when there is none."""
    if name is None:
        return NOTHING
    tables = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    if name not in tables:
        raise no_such("published table", name, tables)
    return Published(**tables[name])
