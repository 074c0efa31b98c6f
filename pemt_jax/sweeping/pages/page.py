"""The page of a sweep, one self-contained HTML file like that of runs."""

import os
from collections.abc import Mapping, Sequence

from pemt_jax.common.errors import UsageError
from pemt_jax.common.versions import VERSION
from pemt_jax.common.writing.output import check_output, output
from pemt_jax.reporting.heats import Heat
from pemt_jax.reporting.page import template
from pemt_jax.reporting.records import FINISHED
from pemt_jax.sweeping.methods import METHODS
from pemt_jax.sweeping.pages import text
from pemt_jax.sweeping.pages.numbers import base_loss, candidate, costs, gates, shown, transfers
from pemt_jax.sweeping.pages.pictures import curve_figures, layer_heats
from pemt_jax.sweeping.pages.results import Results, read_sweep, title_of

FAULTS = 50  # runs without a result that are listed one by one


def write_sweep_report(
    sweep: str | os.PathLike,
    to: str | os.PathLike | None = None,
    *,
    markdown: str | os.PathLike | None = None,
    latex: str | os.PathLike | None = None,
) -> Results:
    """Write a sweep's page, or its table as Markdown or LaTeX, or several; return what was found.

    Raises:
      UsageError: the folder is no sweep with results. PemtError: a file cannot be written.
    """
    targets = {"--to": to, "--markdown": markdown, "--latex": latex}
    wanted = {flag: os.fspath(place) for flag, place in targets.items() if place is not None}
    if "--to" in wanted and not wanted["--to"].endswith((".html", ".htm")):
        raise UsageError(f"{wanted['--to']!r} is no name of a page, expected one ending in .html.")
    for flag, place in wanted.items():
        check_output(flag, place)
    results = read_sweep(os.fspath(sweep))
    forms = {"--to": render, "--markdown": text.markdown, "--latex": text.latex}
    for flag, place in wanted.items():
        content = forms[flag](results)
        with output(flag, place) as file:
            file.write(content)
    return results


def render(results: Results) -> str:
    """Return the page."""
    rows = results.rows
    entries = [
        results.entries[method, column]
        for column in results.columns
        for method in results.methods
        if (method, column) in results.entries
    ]
    faults = [row for row in rows if row["state"] != FINISHED]
    return template("sweep.html").render(
        title=results.title,
        results=results,
        entries=entries,
        matrix=[
            (method, [results.entries.get((method, column)) for column in results.columns])
            for method in results.methods
        ],
        column_name=text.column_name,
        at_chance=text.at_chance,
        shown=shown,
        notes=text.notes(results, brackets=False),
        titles={method: title_of(method) for method in results.methods},
        papers={m: METHODS[m].paper if m in METHODS else "" for m in results.methods},
        costs=costs(rows, results.costs),
        base_loss=base_loss(rows),
        transfers=transfers(rows),
        figures=curve_figures(rows, results.columns),
        layers=layer_heats(rows, results.columns),
        gates=_gate_tables(gates(rows)),
        choices=_choices(rows),
        faults=faults[:FAULTS],
        more_faults=max(0, len(faults) - FAULTS),
        finished=len(rows) - len(faults),
        settings={k: v for k, v in results.settings.items() if v not in (None, {}, [])},
        bases=sorted({row["base"] for row in rows if row["base"]}),
        version=VERSION,
    )


def _gate_tables(found: Sequence[tuple[str, Mapping[str, float]]]) -> list[Heat]:
    """Mean gates, those over the same experts in one table."""
    tables: dict[tuple[str, ...], list] = {}
    for name, own in found:
        tables.setdefault(tuple(own), []).append((name, list(own.values())))
    largest = max((value for _, own in found for value in own.values()), default=0.0)
    return [
        Heat("Mean gate on the test split", "method, task, shots", columns, rows, largest)
        for columns, rows in tables.items()
    ]


def _choices(rows: Sequence[Mapping]) -> list[dict[str, object]]:
    """What was chosen from, a line per cell with more than one candidate."""
    cells: dict[tuple, dict[str, list[float]]] = {}
    chosen: dict[tuple, str] = {}
    for row in rows:
        key = (row["method"], row["task"], row["shots"], row["set"])
        own = cells.setdefault(key, {}).setdefault(candidate(row), [])
        if "average" in row["validation"]:
            own.append(row["validation"]["average"])
        if row["chosen"]:
            chosen[key] = candidate(row)
    return [
        {
            "cell": key,
            "chosen": chosen.get(key),
            "means": [
                (name, sum(values) / len(values) if values else None)
                for name, values in own.items()
            ],
        }
        for key, own in cells.items()
        if len(own) > 1
    ]
