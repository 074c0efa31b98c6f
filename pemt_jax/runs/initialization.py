"""Initial parameters of a model: given values where there are any, the rest drawn from a seed."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from pemt_jax.common.errors import UsageError
from pemt_jax.common.lazy_array import LazyArray
from pemt_jax.model.pemt_model import PemtModel
from pemt_jax.parallel.memory import check_memory


def initial_parameters(
    model: PemtModel, seed: int, given: Mapping[str, np.ndarray | LazyArray] | None = None
) -> tuple[dict[str, np.ndarray | LazyArray], Mapping]:
    """Return parameters as a flat dict of host arrays or, as given, lazy ones; and logical axes.

    Args:
      model: the model.
      seed: for the values that are not given.
      given: values by path. The others do not depend on which values are given.

    Raises:
      UsageError: a given value is not a parameter of the model, or has a different shape.
    """
    given = given or {}
    tokens = {
        "encoder_input_tokens": (1, 1),
        "decoder_input_tokens": (1, 1),
        "decoder_target_tokens": (1, 1),
    }
    # A jitted function can only return arrays, so tracing stores axes and shapes here.
    axes, shapes = {}, {}

    def init(rng):
        variables = model.get_initial_variables(rng, tokens)
        params: dict[str, Any] = traverse_util.flatten_dict(variables["params"], sep="/")
        axes.update(variables["params_axes"])
        shapes.update({path: value.shape for path, value in params.items()})
        return {path: value for path, value in params.items() if path not in given}

    made = jax.eval_shape(init, jax.random.key(seed))
    largest = max(made, key=lambda path: made[path].size, default="")
    check_memory(
        f"What is trained ({largest} has shape {made[largest].shape})" if made else "Nothing",
        sum(value.size * value.dtype.itemsize for value in made.values()),
    )
    fresh = jax.jit(init)(jax.random.key(seed))
    for path, value in given.items():
        if shapes.get(path) != value.shape:
            expected = f"shape {shapes[path]}" if path in shapes else "no such parameter"
            raise UsageError(f"{path} has shape {value.shape}, expected {expected}.")
    params = {path: given.get(path, fresh.get(path)) for path in shapes}
    return {
        path: value if isinstance(value, LazyArray) else np.asarray(value)
        for path, value in params.items()
    }, axes
