"""How activations are sharded while a function of the model runs on a mesh.

The model's modules name the logical axes of their activations in flax's `with_sharding_constraint`
and those of their parameters in `param_with_axes`. Neither has an effect until rules and a mesh are
set. T5X sets its own. Ours are set while a function is traced, so that XLA keeps each example on
its device, shards feed-forward and attention activations over `model`, and gathers arrays sharded
over further axes (fully sharded matrices, banks of experts) only where they are used.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util
from jax.sharding import Mesh

from pemt_jax.parallel.partitioning import LOGICAL_AXIS_RULES, batch_axes, logical_axes


def constrained(function: Callable, mesh: Mesh, params_axes: Mapping | None) -> Callable:
    """Return `function`, with its activations sharded over `mesh` when it is traced.

    Args:
        function: takes the model's nested parameters as its first argument.
        mesh: with a single device, `function` is returned unchanged.
        params_axes: the model's logical axes; with None, `function` is returned unchanged.
    """
    if mesh.size == 1 or not params_axes:
        return function

    @functools.wraps(function)
    def on_mesh(params, *args, **kwargs):
        rules = axis_rules(params, params_axes, mesh)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(rules):
            return function(params, *args, **kwargs)

    return on_mesh


def axis_rules(
    params: Mapping, params_axes: Mapping, mesh: Mesh
) -> list[tuple[str, str | tuple[str, ...] | None]]:
    """Return LOGICAL_AXIS_RULES for flax, without those whose mesh axis does not divide a size.

    A logical axis (heads, experts) has the same size in a model's parameters and activations, so a
    mesh axis that divides the former divides the latter. XLA accepts nothing else.
    """
    named = logical_axes(params_axes)
    sizes: dict[str | None, set[int]] = {}
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
    for path, value in flat.items():
        for axis, size in zip(named.get(path, ()), value.shape, strict=False):
            sizes.setdefault(axis, set()).add(size)
    rules: list[tuple[str, str | tuple[str, ...] | None]] = [("batch", batch_axes(mesh))]
    for axis, mesh_axis in LOGICAL_AXIS_RULES.items():
        if axis != "batch":
            parts = mesh.shape.get(mesh_axis, 1)
            divides = all(size % parts == 0 for size in sizes.get(axis, ()))
            rules.append((axis, mesh_axis if parts > 1 and divides else None))
    return rules
