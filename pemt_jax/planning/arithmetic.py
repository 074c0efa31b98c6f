"""Memory and FLOPs of a train step by arithmetic alone, in microseconds: an estimate, and said so.

What a chip keeps of parameters and optimizer is exact: it is what partitioning.py would give it.
Temporaries are those that a backward pass needs: what is kept of each layer's forward pass (all of
it, the results of weight matrices, or its input, as T5Config.remat_policy says), one layer at work,
the logits, and gradients. README, "Planning", states how far this is from the compiler.
"""

import dataclasses
import math

from jax.sharding import AbstractMesh

from pemt_jax import partitioning
from pemt_jax.planning.chips import Chip
from pemt_jax.planning.job import Job

BYTES = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One step on one chip: `memory` in bytes by kind, FLOPs, and the least seconds it takes."""

    memory: dict[str, int]
    flops: float
    seconds: float

    @property
    def total(self) -> int:
        return sum(self.memory.values())


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Elements of all parameters, and of those on one chip, by what happens to them."""

    trainable: int
    frozen: int
    trainable_here: int
    frozen_here: int


def sizes_of(parameters, data: int, model: int) -> Sizes:
    """Count what one chip of a data x model mesh holds.

    Args:
      parameters: what Job.parameters returned.
      data, model: sizes of the mesh.
    """
    trainable, frozen, params_axes = parameters
    mesh = AbstractMesh((data, model), ("data", "model"))
    counts = []
    for params in (trainable, frozen):
        places = partitioning.parameter_shardings(params, params_axes, mesh)
        counts.append(sum(math.prod(x.shape) for x in params.values()))
        counts.append(sum(math.prod(places[path].shard_shape(x.shape))
                          for path, x in params.items()))  # fmt: skip
    return Sizes(counts[0], counts[2], counts[1], counts[3])


def estimate(job: Job, sizes: Sizes, chip: Chip, data: int, model: int) -> Estimate:
    """Return what the train step of a job takes of one chip of a data x model mesh."""
    t5, element = job.t5, BYTES[job.t5.dtype]
    rows = math.ceil(job.batch_size / data)
    heads = t5.num_heads // model if t5.num_heads % model == 0 else t5.num_heads
    split = lambda n: n // model if n % model == 0 else n  # noqa: E731
    source = job.inputs + job.pemt.prompt_length
    stacks = (  # layers, tokens, lengths of what is attended to
        (t5.num_encoder_layers, source, (source,)),
        (t5.num_decoder_layers, job.targets, (job.targets, source)),
    )
    kept = work = forward = backward_only = 0.0
    for layers, length, memories in stacks:
        cost = _layer(job, rows, length, memories, heads, split)
        kept += layers * cost["kept"][t5.remat_policy] * element
        work = max(work, cost["kept"]["none"] * element)
        forward += layers * cost["weights"]
        backward_only += layers * cost["scores"]
    logits = rows * job.targets * split(t5.vocab_size)
    logits_flops = 2 * logits * t5.emb_dim
    # Where nothing but activations has a gradient, a weight matrix is used twice, else thrice.
    times = {"full": 3}.get(job.method, 2)
    again = {"none": (0, 0), "minimal": (0, 1), "full": (1, 1)}[t5.remat_policy]
    flops = (forward * (times + again[0]) + backward_only * (3 + again[1])
             + logits_flops * times)  # fmt: skip
    gradients = 4 * sizes.trainable_here
    memory = {
        "frozen": sizes.frozen_here * BYTES[job.frozen_dtype],
        "trainable": 4 * sizes.trainable_here,
        "optimizer": 8 * sizes.trainable_here,
        "batch": 4 * rows * (job.inputs + 3 * job.targets),
        # float32 logits and their gradient; bfloat16 copies of float32 matrices while in use.
        "temporaries": int(kept + work + 2 * 4 * logits + gradients),
    }
    moved = sum(memory.values())  # everything is at least read or written once
    sent = _sent(job, sizes, rows, stacks, element, data, model)
    seconds = max(flops / chip.peak, moved / chip.bandwidth, sent / chip.ici)
    return Estimate(memory, flops, seconds)


def _layer(job: Job, rows: int, length: int, memories: tuple[int, ...], heads: int, split) -> dict:
    """Elements kept of one layer by policy; FLOPs of its weight matrices and of its attention."""
    t5, pemt = job.t5, job.pemt
    tokens, inner = rows * length, split(t5.num_heads * t5.head_dim)
    hidden, branches = split(t5.mlp_dim), len(t5.mlp_activations)
    experts = pemt.num_experts * pemt.expert_rank + pemt.source_expert * pemt.expert_rank
    scores = sum(rows * heads * length * memory for memory in memories)
    keys = sum(rows * memory for memory in memories)
    dots = (tokens * (t5.emb_dim * (len(memories) + 1) + inner * len(memories)
                      + hidden * branches + experts + pemt.adapter_dim) + 2 * keys * inner)
    inputs = tokens * t5.emb_dim
    weights = 2 * (
        len(memories) * 2 * tokens * t5.emb_dim * inner + 2 * keys * t5.emb_dim * inner
        + tokens * t5.emb_dim * hidden * (branches + 1)
        + tokens * experts * (hidden + t5.emb_dim) + 2 * tokens * t5.emb_dim * pemt.adapter_dim
    )  # fmt: skip
    # Besides the results of matrices: norms, activations, masks; scores before and after dropout.
    everything = dots + inputs * (len(memories) + 2) + 2 * tokens * hidden + 2 * scores
    return {
        "kept": {"none": everything, "minimal": dots + inputs, "full": inputs},
        "weights": weights,
        "scores": sum(4 * rows * length * memory * split(t5.num_heads * t5.head_dim)
                      for memory in memories),
    }  # fmt: skip


def _sent(job: Job, sizes: Sizes, rows: int, stacks, element: int, data: int, model: int) -> float:
    """Bytes one chip sends: gradients over data, a sum a sublayer each way over model."""
    ring = lambda n: 2 * (n - 1) / n  # noqa: E731  (an all-reduce over n, in times its size)
    sent = ring(data) * 4 * sizes.trainable_here
    activations = sum(layers * 2 * (len(memories) + 1) * rows * length * job.t5.emb_dim
                      for layers, length, memories in stacks)  # fmt: skip
    return sent + ring(model) * activations * element
