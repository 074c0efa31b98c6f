"""Where activations lie while a function of the model runs on a mesh.

The modules name the logical axes of their activations, and `param_with_axes` those of parameters,
by flax's `with_sharding_constraint`; it does nothing until rules and a mesh are set. T5X sets its
own; here they are set while our functions are traced, so that XLA keeps rows on their devices,
splits feed-forward and attention activations over model, and gathers what is split over more axes
(fully sharded matrices, a bank of experts) only where it is used.
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
    """Return `function`(params, ...) that constrains its activations to `mesh` when it is traced.

    Args:
        function: its first argument is the model's nested parameters.
        mesh: one of a single device changes nothing.
        params_axes: the model's logical axes; None changes nothing.
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
    """Return flax's rules: those of partitioning.py whose mesh axis divides all that has the name.

    A model has one size for each name (its heads, its experts), so what divides its parameters
    divides its activations; XLA would refuse anything else.
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
