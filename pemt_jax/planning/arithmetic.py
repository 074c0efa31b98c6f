"""Memory and FLOPs of a run by arithmetic alone, in microseconds: an estimate, and said so.

What a chip keeps of parameters and optimizer is exact: it is what partitioning.py would give it.
Temporaries of the train step are those that a backward pass needs: what is kept of each layer's
forward pass (all of it, the results of weight matrices, or its input, as T5Config.remat_policy
says), the logits or one layer at work, what is gathered, and gradients. Those of evaluation, whose
batches have more rows, are the logits, a layer at work, or the decoder's cache; parameters and
optimizer are there meanwhile. tests/benchmarks/plan_check.py prints how far this is from the
compiler.
"""

import collections
import dataclasses
import math

from pemt_jax.common.user_input.linears import linear_kind
from pemt_jax.parallel import partitioning
from pemt_jax.planning.chips import Chip
from pemt_jax.planning.job import Job
from pemt_jax.planning.layout import Layout

BYTES = {"float32": 4, "bfloat16": 2}
# A layer whose backward pass is at work: its activations, their gradients, and as much again of
# float32 copies, padding and what is scheduled early. Compiled steps were between 2 and 3.5.
AT_WORK = 3


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A run on one chip: bytes by kind of the train step and of evaluation; FLOPs of the step,
    bytes sent, and the least seconds it takes."""

    memory: dict[str, int]
    evaluation: dict[str, int]
    flops: float
    sent: float
    seconds: float

    @property
    def train(self) -> int:
        return sum(self.memory.values())

    @property
    def total(self) -> int:
        """The peak of training and evaluation."""
        return max(self.train, sum(self.evaluation.values()))


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Elements of all parameters and of those on one chip, by what happens to them.

    What is sharded over the batch's chips too is gathered where it is used: `gathered` comes from
    others in a forward pass, of which `gathered_at_once` is the most for one layer. Gradients of
    trainables sharded like that are summed on their own chips, `reduce_scattered` of them go to
    others; those of the other trainables to all, `all_reduced`.
    """

    trainable: int
    frozen: int
    trainable_here: int
    frozen_here: int
    gathered: int
    gathered_at_once: int
    reduce_scattered: int
    all_reduced: int


def sizes_of(parameters, layout: Layout) -> Sizes:
    """Count what one chip holds.

    Args:
      parameters: what Job.parameters returned.
      layout: of the parameters on the slice.
    """
    trainable, frozen, params_axes = parameters
    whole, here = (
        _elements_here(trainable | frozen, params_axes, chosen)
        for chosen in (Layout(model=layout.model), layout)
    )
    gathered = {path: whole[path] - here[path] for path in whole}
    by_layer = collections.Counter()
    for path, count in gathered.items():
        by_layer["/".join(path.split("/")[:2])] += count
    return Sizes(
        trainable=sum(math.prod(x.shape) for x in trainable.values()),
        frozen=sum(math.prod(x.shape) for x in frozen.values()),
        trainable_here=sum(here[path] for path in trainable),
        frozen_here=sum(here[path] for path in frozen),
        gathered=sum(gathered.values()),
        gathered_at_once=max(by_layer.values()),
        reduce_scattered=sum(gathered[path] for path in trainable),
        all_reduced=sum(here[path] for path in trainable if not gathered[path]),
    )


def _elements_here(params, params_axes, layout: Layout) -> dict[str, int]:
    places = partitioning.parameter_shardings(
        params, params_axes, layout.abstract_mesh, layout.fully_sharded
    )
    return {path: math.prod(places[path].shard_shape(x.shape)) for path, x in params.items()}


def estimate(job: Job, sizes: Sizes, chip: Chip, layout: Layout) -> Estimate:
    """Return what the train step of a job takes of one chip."""
    t5, element, model = job.t5, BYTES[job.t5.dtype], layout.model
    rows = math.ceil(job.batch_size / layout.row_parts)
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
    flops = forward * (times + again[0]) + backward_only * (3 + again[1]) + logits_flops * times
    gradients = 4 * sizes.trainable_here
    # XLA gathers what is trained before the first layer, in float32; a loop gathers in each layer,
    # but has what is trained of all layers, and its gradients, stacked.
    gathered = element * sizes.gathered_at_once
    gathered += 2 * gradients if t5.scan_layers else 4 * sizes.reduce_scattered
    memory = {
        "frozen": sizes.frozen_here * BYTES[job.frozen_dtype],
        "trainable": 4 * sizes.trainable_here,
        "optimizer": 8 * sizes.trainable_here,
        "batch": 4 * rows * (job.inputs + 3 * job.targets),
        # float32 logits and their gradient are gone when the layers' backward passes begin.
        "temporaries": int(kept + max(AT_WORK * work, 2 * 4 * logits) + gradients + gathered),
    }
    moved = sum(memory.values())  # everything is at least read or written once
    sent = _sent(job, sizes, rows, stacks, element, layout)
    seconds = max(flops / chip.peak, moved / chip.bandwidth, sent / chip.ici)
    return Estimate(memory, _evaluation(job, sizes, layout, split), flops, sent, seconds)


def _evaluation(job: Job, sizes: Sizes, layout: Layout, split) -> dict[str, int]:
    """Bytes by kind of the programs of evaluation, losses and decoding, the larger of them."""
    t5, element = job.t5, BYTES[job.t5.dtype]
    rows = math.ceil(job.eval_batch_size / layout.row_parts)
    source, longest = job.inputs + job.pemt.prompt_length, job.decode_length
    heads = split(t5.num_heads)
    encoder, decoder = (
        element * _layer(job, rows, length, memories, heads, split)["kept"]["none"]
        for length, memories in ((source, (source,)), (job.targets, (job.targets, source)))
    )
    encoded = element * rows * source * t5.emb_dim
    inner = split(t5.num_heads * t5.head_dim)
    cache = 2 * element * rows * longest * inner * t5.num_decoder_layers
    keys = 2 * element * rows * source * inner  # of one layer's cross attention
    logits = 4 * rows * split(t5.vocab_size)
    work = max(
        encoder, encoded + max(decoder, logits * job.targets), encoded + cache + keys + logits
    )
    return {
        "frozen": sizes.frozen_here * BYTES[job.frozen_dtype],
        "trainable": 4 * sizes.trainable_here,
        "optimizer": 8 * sizes.trainable_here,
        "batch": 4 * rows * (job.inputs + 3 * job.targets),
        "temporaries": int(work + element * sizes.gathered_at_once),
    }


def _layer(job: Job, rows: int, length: int, memories: tuple[int, ...], heads: int, split) -> dict:
    """Elements kept of one layer by policy; FLOPs of its weight matrices and of its attention."""
    t5, pemt = job.t5, job.pemt
    source = memories[-1]
    tokens, inner = rows * length, split(t5.num_heads * t5.head_dim)
    hidden, branches = split(t5.mlp_dim), len(t5.mlp_activations)
    scores = sum(rows * heads * length * memory for memory in memories)
    keys = sum(rows * memory for memory in memories)
    stack, channels, expert_flops = ("decoder" if len(memories) > 1 else "encoder"), 0, 0
    for linear in t5.linears():
        if not linear.startswith(f"{stack}/layers_0/"):
            continue
        rank = pemt.rank_of(linear_kind(linear)) * (pemt.num_experts + pemt.source_expert)
        of_memory = linear.endswith(
            ("encoder_decoder_attention/key", "encoder_decoder_attention/value")
        )
        at = rows * source if of_memory else tokens
        channels += at * rank
        expert_flops += at * rank * (t5.emb_dim + (hidden if "/mlp/" in linear else inner))
    dots = (
        tokens
        * (
            t5.emb_dim * (len(memories) + 1)
            + inner * len(memories)
            + hidden * branches
            + pemt.adapter_dim
        )
        + channels
        + 2 * keys * inner
    )
    inputs = tokens * t5.emb_dim
    weights = 2 * (
        len(memories) * 2 * tokens * t5.emb_dim * inner
        + 2 * keys * t5.emb_dim * inner
        + tokens * t5.emb_dim * hidden * (branches + 1)
        + expert_flops
        + 2 * tokens * t5.emb_dim * pemt.adapter_dim
    )
    # Besides the results of matrices: norms, activations, masks; scores before and after dropout.
    everything = dots + inputs * (len(memories) + 2) + 2 * tokens * hidden + 2 * scores
    return {
        "kept": {"none": everything, "minimal": dots + inputs, "full": inputs},
        "weights": weights,
        "scores": sum(
            4 * rows * length * memory * split(t5.num_heads * t5.head_dim) for memory in memories
        ),
    }


def _sent(job: Job, sizes: Sizes, rows: int, stacks, element: int, layout: Layout) -> float:
    """Bytes one chip sends.

    Gradients are summed over the rows' chips, a sublayer's output over model each way, and what is
    gathered is so for the forward and for the backward pass.
    """
    ring = lambda n: 2 * (n - 1) / n  # noqa: E731  (an all-reduce over n, in times its size)
    sent = 4 * (ring(layout.row_parts) * sizes.all_reduced + sizes.reduce_scattered)
    sent += 2 * element * sizes.gathered
    activations = sum(
        layers * 2 * (len(memories) + 1) * rows * length * job.t5.emb_dim
        for layers, length, memories in stacks
    )
    return sent + ring(layout.model) * activations * element
