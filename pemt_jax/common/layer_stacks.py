"""Parameters of equal layers, one path per layer or one path for all of them.

Parameters are stored, trained, checkpointed and published per layer, under T5X's names:
`encoder/layers_3/mlp/wi/kernel` [D, F]. A model with `T5Config.scan_layers` computes with all
layers of a stack in one array, `encoder/layers/mlp/wi/kernel` [layers, D, F]. What is frozen is
stacked once, when it is loaded; what is trained is stacked in each step, so that the trainable
parameters, the optimizer and the checkpoints do not know whether the layers are scanned.
"""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

Value = TypeVar("Value")
LAYER = re.compile(r"(^|/)layers_(\d+)/")


def stacked_path(path: str) -> str:
    """Return the path of the array of all layers; `path` itself outside of a layer."""
    return LAYER.sub(r"\1layers/", path)


def stack_layers(
    flat: Mapping[str, Value], stack: Callable[[list[Value]], Value]
) -> dict[str, Value]:
    """Return a flat dict in which the values of the layers of a stack are one.

    Args:
      flat: by '/'-joined path, per layer or stacked already.
      stack: makes one value of those of the layers, first layer first.
    """
    layers: dict[str, dict[int, Value]] = {}
    others = {}
    for path, value in flat.items():
        if found := LAYER.search(path):
            layers.setdefault(stacked_path(path), {})[int(found[2])] = value
        else:
            others[path] = value
    return others | {
        path: stack([values[i] for i in sorted(values)]) for path, values in layers.items()
    }
