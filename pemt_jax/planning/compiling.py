"""The real steps, of training and evaluation, lowered without one parameter; what they need."""

import math
import re
import time
from collections.abc import Callable, Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pemt_jax.model.methods import merge
from pemt_jax.parallel import partitioning
from pemt_jax.parallel.activation_constraints import constrained
from pemt_jax.parallel.stacked_layers import stacked_shapes
from pemt_jax.planning.collectives import by_kind, find_collectives
from pemt_jax.planning.job import Job
from pemt_jax.training.step import jit_train_step, state_shardings

OUT_OF_MEMORY = re.compile(r"\(([\d.]+)([KMG])\) exceeds available HBM|Used ([\d.]+)([KMG]) of ")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def lower_train_step(job: Job, mesh: Mesh, fully_sharded: bool = False):
    """Return the lowered train step and the bytes of its arguments on one chip, by kind."""
    trainable, frozen, axes = job.parameters()
    shardings = [
        partitioning.parameter_shardings(x, axes, mesh, fully_sharded) for x in (trainable, frozen)
    ]
    state = job.state(trainable)
    layout = state_shardings(trainable, job.optimizer, shardings[0], mesh)
    batch = job.batch(partitioning.padded_rows(job.batch_size, mesh))
    on_data = partitioning.batch_sharding(mesh)
    if job.t5.scan_layers:
        frozen, shardings[1] = stacked_shapes(frozen, shardings[1])
    step = jit_train_step(job.model.loss_fn, job.optimizer, layout, shardings[1], mesh, axes)
    key = jax.eval_shape(lambda: jax.random.key(0, impl=job.prng))
    arguments = {
        "frozen": shard_bytes(frozen, shardings[1]),
        "trainable": shard_bytes(trainable, shardings[0]),
        "optimizer": shard_bytes(state.opt_state, layout.opt_state),
        "batch": shard_bytes(batch, dict.fromkeys(batch, on_data)),
    }
    return step.lower(state, frozen, batch, key), arguments


def lower_decode_step(job: Job, mesh: Mesh, fully_sharded: bool = False):
    """Return the lowered decoding of a batch, as evaluation runs it, and its arguments' bytes."""
    return _lower_evaluation(job, job.model.predict_batch, mesh, fully_sharded)


def lower_eval_step(job: Job, mesh: Mesh, fully_sharded: bool = False):
    """Return the lowered losses of a batch, as evaluation runs them, and its arguments' bytes."""

    def metrics(params, batch):
        return job.model.eval_fn(params, batch)[1]

    return _lower_evaluation(job, metrics, mesh, fully_sharded)


def _lower_evaluation(job: Job, function: Callable, mesh: Mesh, fully_sharded: bool):
    """Lower a function of (parameters, batch) for a batch of evaluation."""
    trainable, frozen, axes = job.parameters()
    shardings, frozen_shardings = (
        partitioning.parameter_shardings(x, axes, mesh, fully_sharded) for x in (trainable, frozen)
    )
    if job.t5.scan_layers:
        frozen, frozen_shardings = stacked_shapes(frozen, frozen_shardings)
    batch = job.batch(partitioning.padded_rows(job.eval_batch_size, mesh))
    on_data = partitioning.batch_sharding(mesh)
    arguments = {
        "frozen": shard_bytes(frozen, frozen_shardings),
        "trainable": shard_bytes(trainable, shardings),
        "batch": shard_bytes(batch, dict.fromkeys(batch, on_data)),
    }
    step = jax.jit(
        constrained(function, mesh, axes),
        in_shardings=(merge(shardings, frozen_shardings), on_data),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
    return step.lower(merge(trainable, frozen), batch), arguments


def shard_bytes(tree, shardings) -> int:
    """Bytes that one device holds of a tree of shapes."""
    shapes, places = (
        jax.tree.leaves(tree),
        jax.tree.leaves(shardings, is_leaf=lambda x: isinstance(x, NamedSharding)),
    )
    sizes = [
        x.dtype.itemsize * math.prod(s.shard_shape(x.shape))
        for x, s in zip(shapes, places, strict=True)
    ]
    return sum(sizes)


def compile_step(lowered, arguments: dict[str, int], held: Mapping[str, int] | None = None) -> dict:
    """Compile and return a JSON-able record of what the step needs on one chip.

    `memory` has the arguments by kind, what the compiler's layouts add to them (`padding`),
    `temporaries`, `output` (what is not written over an argument), `code`, what is on the chip
    meanwhile without being an argument (`held`), and `total`, in bytes. When the compiler finds
    that it does not fit, the record is {"out_of_memory": bytes it wants}.
    """
    start = time.time()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        match = OUT_OF_MEMORY.search(str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not match:
            raise
        size, unit = match[1] or match[3], match[2] or match[4]
        return {
            "out_of_memory": int(float(size) * UNITS[unit]),
            "arguments": arguments,
            "seconds": round(time.time() - start, 1),
            "message": str(error)[:300],
        }
    stats, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    output = stats.output_size_in_bytes - stats.alias_size_in_bytes
    memory = arguments | {
        "padding": stats.argument_size_in_bytes - sum(arguments.values()),
        "temporaries": stats.temp_size_in_bytes,
        "output": output,
        "code": stats.generated_code_size_in_bytes,
        **(held or {}),
    }
    return {
        "memory": memory | {"total": sum(memory.values())},
        "flops": costs.get("flops", 0.0),
        "bytes": costs.get("bytes accessed", 0.0),
        "collectives": by_kind(find_collectives(compiled.as_text())),
        "seconds": round(time.time() - start, 1),
    }
