"""Mesh, logical axis rules and shardings.

Every parameter has logical axis names (flax partitioning, collection `params_axes`). The rules map
each to an axis of the mesh, which has the axes ('data', 'model') or, with expert parallelism,
('data', 'expert', 'model'); a single device is a mesh of 1 x 1. A dimension that its mesh axis does
not divide is replicated.

    batch                            data and expert, so that no device repeats another's work
    vocab, mlp, heads, joined_kv     model, as in T5X
    experts                          expert: a device stores only its experts of the frozen bank,
                                     and those of a layer are gathered where they are used
    expert_rank                      expert, if that does not divide the number of experts
    all others                       replicated

With full sharding, the matrices of the backbone, frozen or trained, are also sharded over data (and
expert) and gathered layer by layer. A batch that the mesh does not divide is filled up with empty
rows, which count in no loss, metric or gate (model/pemt_model.py).
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
from pemt_jax.common.layer_stacks import stacked_path
from pemt_jax.common.lazy_array import LazyArray, for_device

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
    # PEMT. Trained parameters are small: sharding them would cost more communication than it saves.
    "experts": "expert",
    "expert_rank": "expert",
    "gate": None,
    "prompt": None,
    "adapter": None,
}
PEMT_AXES = {"experts", "expert_rank", "gate", "prompt", "adapter"}


def make_mesh(data: int | None = None, model: int = 1, expert: int = 1, devices=None) -> Mesh:
    """Return the mesh over all devices, with an expert axis if `expert` is more than 1.

    Args:
        data: None for the number of devices divided by `model * expert`.
        devices: attached devices, or those of a topology to compile for; None for all attached.

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
    """Return the mesh axes over which a batch is sharded."""
    return tuple(axis for axis in ("data", "expert") if axis in mesh.shape)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch, along its first axis."""
    return NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))


def logical_axes(params_axes: Mapping) -> dict[str, tuple[str | None, ...]]:
    """Flatten the `params_axes` collection to {parameter path: logical axis names}.

    Layers are there by themselves and stacked, see common/layer_stacks.py.
    """
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(
        params_axes, sep="/", is_leaf=lambda _, x: isinstance(x, flax_partitioning.AxisMetadata)
    )
    axes = {}
    for path, metadata in flat.items():
        names = getattr(metadata, "names", metadata)
        path, names = path.removesuffix("_axes"), tuple(names or ())
        axes[path] = names
        if stacked_path(path) != path:
            axes[stacked_path(path)] = ("layers", *names)
    return axes


def parameter_spec(
    axes: tuple[str | None, ...],
    shape: tuple[int, ...],
    mesh: Mesh | AbstractMesh,
    fully_sharded: bool = False,
) -> PartitionSpec:
    """Return how the dimensions of one parameter are sharded; each mesh axis is used at most once.

    With full sharding, a matrix of the backbone is also sharded over the axes of the batch, along
    the longest dimension that is not sharded yet and that they, or data alone, divide.
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
    if fully_sharded and len(shape) - ("layers" in axes) > 1 and not PEMT_AXES & set(axes):
        for over in (batch_axes(mesh), ("data",)):
            parts = math.prod(mesh.shape[axis] for axis in over)
            free = [
                i
                for i, where in enumerate(spec)
                if where is None and axes[i] != "layers" and shape[i] % parts == 0
            ]
            if free:
                spec[max(free, key=lambda i: shape[i])] = over[0] if len(over) == 1 else over
                break
    return PartitionSpec(*spec)


def parameter_shardings(
    params: Mapping[str, Any],
    params_axes: Mapping,
    mesh: Mesh | AbstractMesh,
    fully_sharded: bool = False,
) -> dict[str, NamedSharding]:
    """Return the sharding of each entry of a flat {path: array} dict; see `parameter_spec`.

    A parameter without an entry in `params_axes`, or whose entry has a different number of axes, is
    replicated.
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
    """Return a tree of shardings for `opt_state`: a slot's is its parameter's, all else replicated.

    A slot is an array whose path ends in a parameter's and whose shape the parameter's sharding
    fits. It does not fit Adafactor's row and column factors, which are replicated.
    """
    replicated = NamedSharding(mesh, PartitionSpec())

    def sharding(path, leaf):
        key = getattr(path[-1], "key", "") if path else ""
        owner = trainable_shardings.get(key)
        if owner is None or len(owner.spec) != len(leaf.shape):
            return replicated
        try:
            owner.shard_shape(leaf.shape)
        except ValueError:  # the sharding does not divide the shape
            return replicated
        return owner

    return jax.tree_util.tree_map_with_path(sharding, opt_state)


def check_batch_size(batch_size: int) -> None:
    """Raise UsageError when a batch is empty."""
    if batch_size < 1:
        raise UsageError(f"Found a batch of {batch_size} rows, expected 1 or more.")


def padded_rows(batch_size: int, mesh: Mesh | AbstractMesh) -> int:
    """Return the number of rows of a batch on the mesh, including empty ones that fill it up."""
    parts = math.prod(mesh.shape[axis] for axis in batch_axes(mesh))
    return -(-batch_size // parts) * parts


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Return the indices of the padded batch's rows on this process's devices, in order."""
    total = padded_rows(batch_size, mesh)
    held = batch_sharding(mesh).addressable_devices_indices_map((total,)).values()
    return np.unique(np.concatenate([np.arange(total)[index] for index in held]))


def row_share(mesh: Mesh) -> float:
    """Return the fraction of a batch's rows that this process's devices hold."""
    if jax.process_count() == 1:
        return 1.0
    parts = padded_rows(1, mesh)
    return len(local_rows(parts, mesh)) / parts


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Put a host batch on the mesh; with several processes, it has this one's `local_rows`."""
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
    """Put a tree of arrays on the devices, by a tree of shardings.

    Arrays are on the host, on the devices, or lazy: of those a process reads what its devices hold,
    one array after the other and each part once.
    """

    def put(value, sharding):
        if isinstance(value, LazyArray):
            return _read_on_devices(value, sharding)
        if jax.process_count() == 1 or isinstance(value, jax.Array):
            return jax.device_put(value, sharding)
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, value.__getitem__)

    return jax.tree.map(put, tree, shardings)


def _read_on_devices(array: LazyArray, sharding: jax.sharding.Sharding) -> jax.Array:
    parts: dict[str, np.ndarray] = {}

    def read(index) -> np.ndarray:
        key = str(index)  # devices may hold the same part
        if key not in parts:
            parts[key] = for_device(np.asarray(array[index]))
        return parts[key]

    return jax.make_array_from_callback(array.shape, sharding, read)
