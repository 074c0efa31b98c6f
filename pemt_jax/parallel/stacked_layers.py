"""Layers stacked on the devices, for models that scan them (common/layer_stacks.py).

This happens after the parameters have been placed, not while they are read: reading needs to know
nothing of it, no host holds a stack, and a device holds at most one stack beside the parameters.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from pemt_jax.common.layer_stacks import stack_layers, stacked_path


def stack_on_devices(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return a flat dict with one array per parameter of all layers, sharded as those of a layer.

    Args:
      params: placed with `NamedSharding`s, by path; emptied, so that what is stacked is freed.
    """
    groups: dict[str, dict[str, jax.Array]] = {}
    for path in list(params):
        groups.setdefault(stacked_path(path), {})[path] = params.pop(path)
    stacked = {}
    for path in list(groups):
        stacked |= stack_layers(
            groups.pop(path), lambda layers: _stack(stacked_sharding(layers[0].sharding))(*layers)
        )
    return stacked


def stacked_sharding(sharding: jax.sharding.Sharding) -> NamedSharding:
    """Return the sharding of all layers, each sharded like one with `sharding`."""
    assert isinstance(sharding, NamedSharding)  # what parameter_shardings returns
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


def stacked_shapes(params: Mapping, shardings: Mapping) -> tuple[dict, dict]:
    """Return shapes and shardings of `stack_on_devices(params)`, given those of `params`."""
    shapes = stack_layers(
        params,
        lambda layers: jax.ShapeDtypeStruct((len(layers), *layers[0].shape), layers[0].dtype),
    )
    return shapes, stack_layers(shardings, lambda layers: stacked_sharding(layers[0]))


@functools.cache
def _stack(sharding: NamedSharding):
    return jax.jit(lambda *layers: jnp.stack(layers), out_shardings=sharding)
