"""Trees of single tasks into one with a leading task axis, padded on the left, and out of it."""

import functools
from collections.abc import Sequence

import jax
import numpy as np


def padded(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The array at the end of each axis of `shape`, zeros before it."""
    padded = np.zeros(shape, array.dtype)
    padded[tuple(slice(n - have, None) for n, have in zip(shape, array.shape, strict=True))] = array
    return padded


def like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def longest(*leaves: jax.Array) -> jax.ShapeDtypeStruct:
    shape = np.max([leaf.shape for leaf in leaves], axis=0).astype(int)
    return jax.ShapeDtypeStruct(tuple(shape.tolist()), leaves[0].dtype)


def written(tree, new, slot: int):
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, slot, 0), tree, new)


class TaskTakers:
    """Compiled functions (tree, task) -> that entry of the task axis without its padding.

    Called with what the entry is like: shapes and shardings; equal ones share their function.
    """

    def __init__(self):
        self._made = {}

    def __call__(self, alone):
        leaves, structure = jax.tree.flatten(alone)
        key = (structure, *(leaf.shape for leaf in leaves))
        if key not in self._made:
            self._made[key] = jax.jit(
                functools.partial(self._take, [leaf.shape for leaf in leaves]),
                out_shardings=jax.tree.map(lambda x: x.sharding, alone),
            )
        return self._made[key]

    @staticmethod
    def _take(shapes, tree, task):
        leaves, structure = jax.tree.flatten(tree)
        taken = [
            jax.lax.dynamic_index_in_dim(x, task, keepdims=False)[
                tuple(slice(have - n, None) for have, n in zip(x.shape[1:], shape, strict=True))
            ]
            for x, shape in zip(leaves, shapes, strict=True)
        ]
        return jax.tree.unflatten(structure, taken)
