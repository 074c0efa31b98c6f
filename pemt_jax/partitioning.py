"""Mesh, logical axis rules and shardings.

Every parameter carries logical axis names (flax partitioning, collection `params_axes`). The
rules map a logical axis to an axis of the ('data', 'model') mesh; one device is a mesh of 1 x 1.
As in T5X, the batch lies on `data`; vocab, mlp, heads and joined_kv on `model`; the rest, PEMT's
own axes included, is replicated. A dimension that its mesh axis does not divide is replicated.
"""

from collections.abc import Mapping

import flax.linen.partitioning as flax_partitioning
import flax.traverse_util
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pemt_jax.errors import UsageError, nearest

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
    # PEMT. The low-rank factors are small: to split them would cost more in messages than it saves.
    "experts": None,
    "expert_rank": None,
    "gate": None,
    "prompt": None,
    "adapter": None,
}


def make_mesh(data: int | None = None, model: int = 1, devices=None) -> Mesh:
    """Return the ('data', 'model') mesh over all devices; `data` defaults to what is left.

    `devices` may be those of a topology that is not attached; None for the ones that are.

    Raises:
        UsageError: data * model is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if data is None:
        data = max(len(devices) // max(model, 1), 1)
    if data < 1 or model < 1 or data * model != len(devices):
        raise UsageError(
            f"A mesh of {data} data x {model} model needs {data * model} devices, "
            f"expected sizes whose product is the {len(devices)} found."
        )
    return jax.make_mesh(
        (data, model), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2,
        devices=devices,
    )


def logical_axes(params_axes: Mapping) -> dict[str, tuple[str | None, ...]]:
    """Flatten the `params_axes` collection to {parameter path: logical axis names}."""
    flat = flax.traverse_util.flatten_dict(
        params_axes, sep="/", is_leaf=lambda _, x: isinstance(x, flax_partitioning.AxisMetadata)
    )
    axes = {}
    for path, metadata in flat.items():
        names = getattr(metadata, "names", metadata)
        axes[path.removesuffix("_axes")] = tuple(names or ())
    return axes


def parameter_spec(
    axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh
) -> PartitionSpec:
    """Return where the dimensions of one parameter lie; each mesh axis is used at most once."""
    spec, used = [], set()
    for axis, size in zip(axes, shape, strict=True):
        if axis is not None and axis not in LOGICAL_AXIS_RULES:
            raise UsageError(
                f"There is no logical axis {axis!r}, expected one of "
                f"{', '.join(LOGICAL_AXIS_RULES)}{nearest(axis, LOGICAL_AXIS_RULES)}."
            )
        mesh_axis = LOGICAL_AXIS_RULES.get(axis)
        if mesh_axis is None or mesh_axis in used or size % mesh.shape[mesh_axis]:
            spec.append(None)
        else:
            spec.append(mesh_axis)
            used.add(mesh_axis)
    return PartitionSpec(*spec)


def parameter_shardings(
    params: Mapping[str, jax.Array], params_axes: Mapping, mesh: Mesh
) -> dict[str, NamedSharding]:
    """Return the sharding of each entry of a flat {path: array} dict.

    A parameter that `params_axes` does not name, or names with another number of axes than its
    array has, is replicated.
    """
    axes = logical_axes(params_axes)
    shardings = {}
    for path, value in params.items():
        names = axes.get(path, ())
        if len(names) != len(value.shape):
            names = (None,) * len(value.shape)
        shardings[path] = NamedSharding(mesh, parameter_spec(names, value.shape, mesh))
    return shardings


def optimizer_shardings(opt_state, trainable_shardings: Mapping[str, NamedSharding], mesh: Mesh):
    """Return shardings like `opt_state`: a slot lies where its parameter lies, the rest everywhere.

    A slot is known by its path, which ends in the parameter's, and by being of a rank that the
    parameter's spec fits (Adafactor's row and column factors do not, and are replicated).
    """
    replicated = NamedSharding(mesh, PartitionSpec())

    def sharding(path, leaf):
        key = getattr(path[-1], "key", None) if path else None
        owner = trainable_shardings.get(key)
        if owner is None or len(owner.spec) != len(leaf.shape):
            return replicated
        fits = all(
            axis is None or size % mesh.shape[axis] == 0
            for axis, size in zip(owner.spec, leaf.shape, strict=True)
        )
        return owner if fits else replicated

    return jax.tree_util.tree_map_with_path(sharding, opt_state)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raise UsageError when a batch is empty or cannot be dealt evenly to the data axis."""
    data = mesh.shape["data"]
    if batch_size < 1:
        raise UsageError(f"Found a batch of {batch_size} rows, expected a positive multiple of "
                         f"the {data} data devices.")  # fmt: skip
    if batch_size % data:
        raise UsageError(
            f"A batch of {batch_size} rows cannot be dealt to {data} data devices, "
            f"expected a multiple of {data} (nearest: {-(-batch_size // data) * data})."
        )


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Put a global host batch (first axis rows) on the mesh; every host holds the same batch."""
    for rows in {value.shape[0] for value in batch.values()}:
        check_batch_size(rows, mesh)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), sharding)
    return {
        name: jax.make_array_from_callback(value.shape, sharding, value.__getitem__)
        for name, value in batch.items()
    }


def place(tree, shardings):
    """Put a tree of host or device arrays on the mesh with the given tree of shardings."""

    def put(value, sharding):
        if jax.process_count() == 1 or isinstance(value, jax.Array):
            return jax.device_put(value, sharding)
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, value.__getitem__)

    return jax.tree.map(put, tree, shardings)
