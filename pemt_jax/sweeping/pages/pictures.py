"""A sweep's learning curves and its gates per layer, from the lines of its results alone.

Only so much is shown as can be read, and drawn in a second: the first FIGURES columns of the table
and the first LINES methods that are trained.
"""

import statistics
from collections.abc import Mapping, Sequence

from pemt_jax.reporting.figures import COLOURS, LINES, STYLES, Figure, Line, draw
from pemt_jax.reporting.heats import Heat, gate_heats
from pemt_jax.sweeping.methods import METHODS
from pemt_jax.sweeping.pages.numbers import Column
from pemt_jax.sweeping.pages.text import column_name

FIGURES = 8  # columns whose curves and gates are shown
GATED = "pemt"  # the method whose gates are shown by layer


def curve_figures(rows: Sequence[Mapping], columns: Sequence[Column]) -> list[Figure]:
    """The validation metric by step of each column, with the chosen runs of a method as a line."""
    curves: dict[tuple[Column, str], list] = {}
    for row in rows:
        if row["chosen"] and row.get("curve") and _is_trained(row["method"]):
            curve = [(int(step), float(value)) for step, value in row["curve"]]
            curves.setdefault(((row["task"], row["shots"]), row["method"]), []).append(curve)
    methods = list(dict.fromkeys(method for _, method in curves))
    looks = {
        name: (COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)])
        for i, name in enumerate(methods[:LINES])
    }  # the same in all figures
    found = []
    for column in columns:
        lines = [
            Line(name, curves[column, name], *look)
            for name, look in looks.items()
            if (column, name) in curves
        ]
        if lines := [line for line in lines if line.mean]:
            key, title = f"curve{len(found)}", f"Validation metric of {column_name(column)}"
            svg = draw(key, "validation metric", lines, ranges=True)
            left_out = len(methods) - len(looks)
            found.append(Figure(key, title, lines, left_out, svg, of="method", ranges=True))
        if len(found) == FIGURES:
            break
    return found


def layer_heats(rows: Sequence[Mapping], columns: Sequence[Column]) -> list[dict]:
    """Mean gates per layer and source over the chosen runs of PEMT, of each column.

    Returns:
      {"column", "runs", "heats"}; two of a column whose expert sets have other experts.
    """
    groups: dict[tuple, list[Mapping]] = {}
    for row in rows:
        if row["chosen"] and row["method"] == GATED and row.get("gates"):
            shape = {layer: tuple(sorted(gates)) for layer, gates in row["gates"].items()}
            key = ((row["task"], row["shots"]), tuple(sorted(shape.items())))
            groups.setdefault(key, []).append(row)
    found = []
    for (column, layers), members in groups.items():
        if column in columns and len(found) < FIGURES:
            sources = _sources(members[0])
            mean = {
                layer: [
                    statistics.fmean(row["gates"][layer][name] for row in members)
                    for name in sources
                ]
                for layer, _ in layers
            }
            heats: list[Heat] = gate_heats(mean, sources)
            found.append({"column": column, "runs": len(members), "heats": heats})
    return found


def _sources(row: Mapping) -> list[str]:
    """The experts of a run, in its order as far as that is known."""
    have = next(iter(row["gates"].values()))
    named = [name for name, _ in row["experts"] if name in have]
    return [*named, *(name for name in have if name not in named)]


def _is_trained(method: str) -> bool:
    return method not in METHODS or METHODS[method].trained
