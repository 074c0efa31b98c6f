"""Tables whose cells are coloured by their values, such as the mean gates of a model's layers."""

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Heat:
    """A table whose cells are coloured by their values.

    Attributes:
      columns, rows: their names; rows come with their values.
      largest: the value of the full colour.
    """

    title: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float]]]
    largest: float


def gate_heats(gates: Mapping[str, Sequence[float]], sources: Sequence[str]) -> list[Heat]:
    """Mean gates of the encoder and of the decoder, a row per gated sublayer and their mean last.

    Args:
      gates: {"encoder/layers_0/mlp": the weight of each source}, in any order.
    """
    largest, found = max((max(row) for row in gates.values()), default=0.0), []
    for stack, part in itertools.groupby(sorted(gates, key=layer_order), _stack):
        rows = [(_layer(layer), list(gates[layer])) for layer in part]
        if len(rows) > 1:
            columns = zip(*(values for _, values in rows), strict=True)
            rows.append(("mean", [statistics.fmean(column) for column in columns]))
        title = f"{stack.capitalize()}: mean gate per layer and source"
        found.append(Heat(title, "layer", sources, rows, largest))
    return found


def layer_order(layer: str) -> tuple:
    """Sorts the encoder before the decoder, layers by number, sublayers by name."""
    stack, number, *sublayer = layer.split("/")
    return stack != "encoder", int(number.rpartition("_")[2]), sublayer


def _stack(layer: str) -> str:
    return layer.partition("/")[0]


def _layer(layer: str) -> str:
    """`encoder/layers_3/mlp` as `3 feed-forward`."""
    _, number, sublayer = layer.split("/", 2)
    name = "feed-forward" if sublayer == "mlp" else sublayer.replace("_", " ")
    return f"{number.rpartition('_')[2]} {name}"
