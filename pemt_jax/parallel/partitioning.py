"""Mesh, logical axis rules and shardings.

Every parameter carries logical axis names (flax partitioning, collection `params_axes`). The
rules map a logical axis to an axis of the mesh: ('data', 'model'), or ('data', 'expert', 'model')
where an expert axis is asked for; one device is a mesh of 1 x 1. A dimension that its mesh axis
does not divide is replicated.

    batch                            data, and expert: the backbone's work is never done twice
    vocab, mlp, heads, joined_kv     model, as in T5X
    experts                          expert: a device keeps only its experts of the frozen bank,
                                     and a layer's are gathered where they are used
    expert_rank                      expert where it does not divide the number of experts
    the rest                         replicated

Fully sharded, the matrices of the backbone are split over data (and expert) as well, frozen or
trained, and gathered layer by layer. Rows of a batch that the mesh does not divide are made up by
empty ones, which count in no loss, metric or gate (models.py).
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen.partitioning as flax_partitioning
import flax.traverse_util
import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from pemt_jax.common.errors import UsageError, nearest

LOGICAL_AXIS_RULES = {
    "batch": "data",
    "vocab": "model",
    "mlp": "model",
    "heads": "model",
    "joined_kv": "model",
    "embed": None,
    "kv": None,
    "length": None,
    "layers": None,
    "relpos_buckets": None,
    # PEMT. What is trained is small: to split it would cost more in messages than it saves.
    "experts": "expert",
    "expert_rank": "expert",
    "gate": None,
    "prompt": None,
    "adapter": None,
}
PEMT_AXES = {"experts", "expert_rank", "gate", "prompt", "adapter"}


def make_mesh(data: int | None = None, model: int = 1, expert: int = 1, devices=None) -> Mesh:
    """Return the mesh over all devices, with an expert axis when `expert` is more than 1.

    `data` defaults to what is left. `devices` may be those of a topology that is not attached;
    None for the ones that are.

    Raises:
        UsageError: data * expert * model is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if data is None:
        data = max(len(devices) // max(model * expert, 1), 1)
    sizes = {"data": data, "expert": expert, "model": model}
    if expert == 1:
        del sizes["expert"]
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != len(devices):
        raise UsageError(
            f"A mesh of {' x '.join(f'{size} {axis}' for axis, size in sizes.items())} needs "
            f"{math.prod(sizes.values())} devices, expected sizes whose product is the "
            f"{len(devices)} found."
        )
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        devices=devices,
        axis_types=(jax.sharding.AxisType.Auto,) * len(sizes),
    )


def batch_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """Return the mesh axes over which the rows of a batch are dealt."""
    return tuple(axis for axis in ("data", "expert") if axis in mesh.shape)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return where a batch lies: its first axis is split by rows."""
    return NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))


def logical_axes(params_axes: Mapping) -> dict[str, tuple[str | None, ...]]:
    """Flatten the `params_axes` collection to {parameter path: logical axis names}."""
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(
        params_axes, sep="/", is_leaf=lambda _, x: isinstance(x, flax_partitioning.AxisMetadata)
    )
    axes = {}
    for path, metadata in flat.items():
        names = getattr(metadata, "names", metadata)
        axes[path.removesuffix("_axes")] = tuple(names or ())
    return axes


def parameter_spec(
    axes: tuple[str | None, ...],
    shape: tuple[int, ...],
    mesh: Mesh | AbstractMesh,
    fully_sharded: bool = False,
) -> PartitionSpec:
    """Return where the dimensions of one parameter lie; each mesh axis is used at most once.

    Fully sharded, a matrix of the backbone also lies split over the axes of the batch, along the
    longest dimension that is free and that they, or data alone, divide.
    """
    spec: list[str | tuple[str, ...] | None] = []
    used: set[str] = set()
    for axis, size in zip(axes, shape, strict=True):
        if axis is not None and axis not in LOGICAL_AXIS_RULES:
            raise UsageError(
                f"There is no logical axis {axis!r}, expected one of "
                f"{', '.join(LOGICAL_AXIS_RULES)}{nearest(axis, LOGICAL_AXIS_RULES)}."
            )
        mesh_axis = LOGICAL_AXIS_RULES[axis] if axis is not None else None
        if (
            mesh_axis is None
            or mesh_axis not in mesh.shape
            or mesh_axis in used
            or size % mesh.shape[mesh_axis]
        ):
            spec.append(None)
        else:
            spec.append(mesh_axis)
            used.add(mesh_axis)
    if fully_sharded and len(shape) > 1 and not PEMT_AXES & set(axes):
        for over in (batch_axes(mesh), ("data",)):
            parts = math.prod(mesh.shape[axis] for axis in over)
            free = [i for i, where in enumerate(spec) if where is None and shape[i] % parts == 0]
            if free:
                spec[max(free, key=lambda i: shape[i])] = over[0] if len(over) == 1 else over
                break
    return PartitionSpec(*spec)


def parameter_shardings(
    params: Mapping[str, jax.Array],
    params_axes: Mapping,
    mesh: Mesh | AbstractMesh,
    fully_sharded: bool = False,
) -> dict[str, NamedSharding]:
    """Return the sharding of each entry of a flat {path: array} dict; see `parameter_spec`.

    A parameter that `params_axes` does not name, or names with another number of axes than its
    array has, is replicated.
    """
    axes = logical_axes(params_axes)
    shardings = {}
    for path, value in params.items():
        names = axes.get(path, ())
        if len(names) != len(value.shape):
            names = (None,) * len(value.shape)
        spec = parameter_spec(names, value.shape, mesh, fully_sharded)
        shardings[path] = NamedSharding(mesh, spec)
    return shardings


def optimizer_shardings(opt_state, trainable_shardings: Mapping[str, NamedSharding], mesh: Mesh):
    """Return shardings like `opt_state`: a slot lies where its parameter lies, the rest everywhere.

    A slot is known by its path, which ends in the parameter's, and by being of a rank that the
    parameter's spec fits (Adafactor's row and column factors do not, and are replicated).
    """
    replicated = NamedSharding(mesh, PartitionSpec())

    def sharding(path, leaf):
        key = getattr(path[-1], "key", "") if path else ""
        owner = trainable_shardings.get(key)
        if owner is None or len(owner.spec) != len(leaf.shape):
            return replicated
        try:
            owner.shard_shape(leaf.shape)
        except ValueError:  # it does not divide
            return replicated
        return owner

    return jax.tree_util.tree_map_with_path(sharding, opt_state)


def check_batch_size(batch_size: int) -> None:
    """Raise UsageError when a batch is empty."""
    if batch_size < 1:
        raise UsageError(f"Found a batch of {batch_size} rows, expected 1 or more.")


def padded_rows(batch_size: int, mesh: Mesh | AbstractMesh) -> int:
    """Return how many rows a batch has on the mesh, the empty ones that fill it included."""
    parts = math.prod(mesh.shape[axis] for axis in batch_axes(mesh))
    return -(-batch_size // parts) * parts


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Return which rows of the padded batch lie on devices of this process, in order."""
    total = padded_rows(batch_size, mesh)
    held = batch_sharding(mesh).addressable_devices_indices_map((total,)).values()
    return np.unique(np.concatenate([np.arange(total)[index] for index in held]))


def row_share(mesh: Mesh) -> float:
    """Return the part of a batch's rows that this process holds."""
    if jax.process_count() == 1:
        return 1.0
    parts = padded_rows(1, mesh)
    return len(local_rows(parts, mesh)) / parts


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Put a host batch on the mesh: all rows, or of several processes each one's `local_rows`."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        rows = {value.shape[0] for value in batch.values()}
        missing = {found: padded_rows(found, mesh) - found for found in rows}
        return jax.device_put(
            {name: _filled(value, missing[value.shape[0]]) for name, value in batch.items()},
            sharding,
        )

    def put(value: np.ndarray) -> jax.Array:
        total = round(len(value) / row_share(mesh))
        rows = local_rows(total, mesh)
        local = lambda index: value[np.searchsorted(rows, np.arange(total)[index[0]])]  # noqa: E731
        return jax.make_array_from_callback((total, *value.shape[1:]), sharding, local)

    return {name: put(value) for name, value in batch.items()}


def _filled(value: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(value, ((0, rows), *((0, 0),) * (value.ndim - 1))) if rows else value


def place(tree, shardings):
    """Put a tree of host or device arrays on the mesh with the given tree of shardings."""

    def put(value, sharding):
        if jax.process_count() == 1 or isinstance(value, jax.Array):
            return jax.device_put(value, sharding)
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, value.__getitem__)

    return jax.tree.map(put, tree, shardings)
