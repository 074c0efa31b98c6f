"""What a finished run's gates do on a split: a forward pass over its examples.

The gates of a layer are read from the model's collection "pemt", where every sublayer with experts
puts its own, [B, E] for a batch.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
import seqio
from jax.sharding import NamedSharding, PartitionSpec

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.data.batching import eval_batches
from pemt_jax.data.buckets import eval_buckets
from pemt_jax.data.token_cache import open_split
from pemt_jax.data.tokenized import Ragged, TokenizedSplit
from pemt_jax.parallel import partitioning
from pemt_jax.parallel.activation_constraints import constrained
from pemt_jax.reporting.heats import layer_order
from pemt_jax.runs.finished import FinishedRun
from pemt_jax.training.evaluator import decode, target_text

SPLITS = ("validation", "test", "train")  # the first that a task has is shown
EXAMPLES = 1000  # most examples of a split that are passed through the model
BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Gates:
    """Gates of a run on examples of a split.

    Attributes:
      task, split, total: which split it is, and how many examples it has.
      sources: names of the experts, in the order of the gate.
      layers: names of the gated sublayers, the encoder's first.
      gate_NLE: weight of each expert, by example and layer.
      inputs, targets: texts of the examples.
    """

    task: str
    split: str
    total: int
    sources: Sequence[str]
    layers: Sequence[str]
    gate_NLE: np.ndarray
    inputs: Sequence[str]
    targets: Sequence[str]

    @property
    def distances(self) -> np.ndarray:
        """How far each example's gates are from the mean gates, per layer: [N], from 0 to sqrt(2).

        The root of the mean over layers of the squared Euclidean distance.
        """
        apart = self.gate_NLE - self.gate_NLE.mean(axis=0)
        return np.sqrt(np.square(apart).sum(axis=2).mean(axis=1))


def read_gates(run: FinishedRun, split: str | None = None) -> Gates:
    """Pass examples of the run's task through its model: all, or 1,000 spread evenly over a split.

    Args:
      run: a finished run with experts.
      split: of its task; None for the first of SPLITS that it has.

    Raises:
      UsageError: the run has no experts or does not know its task, or there is no such task or
        split.
    """
    built, name = run.built, run.task
    if not built.model.pemt.num_experts:
        raise UsageError(f"{run.folder} mixes no experts, expected a run of method 'pemt_target'.")
    if not name or not run.lengths:
        raise UsageError(f"{run.folder} does not name its task, expected a run that does.")
    if name in seqio.MixtureRegistry.names():  # the gates of its tasks would be one picture
        raise UsageError(f"{name!r} is a mixture, expected the run of one task.")
    if split is None and name in seqio.TaskRegistry.names():
        have = seqio.TaskRegistry.get(name).splits
        split = next((known for known in SPLITS if known in have), None)
    whole = open_split(name, split or SPLITS[0], run.lengths)
    rows = np.unique(np.linspace(0, len(whole) - 1, min(len(whole), EXAMPLES)).astype(int))
    chosen = _subset(whole, rows)
    mesh = partitioning.make_mesh()
    params = built.placed(mesh)

    def gates(params, batch):
        _, collected = built.model.apply(params, batch)
        return {
            path.removesuffix("/gate"): value
            for path, value in collected.items()
            if path.endswith("/gate")
        }

    replicated = NamedSharding(mesh, PartitionSpec())
    step = jax.jit(constrained(gates, mesh, built.params_axes), out_shardings=replicated)
    layers: list[str] = []
    found = np.zeros((0, 0, 0))
    local_rows = partitioning.local_rows(BATCH_SIZE, mesh)
    buckets = eval_buckets(None, [chosen])  # a forward pass is compiled for each
    for numbers, batch in eval_batches(chosen, BATCH_SIZE, buckets, local_rows=local_rows):
        made = jax.device_get(step(params, partitioning.place_batch(batch, mesh)))
        if not layers:
            layers = sorted(made, key=layer_order)
            found = np.zeros((len(chosen), *np.shape([made[path][0] for path in layers])))
        stacked_BLE = np.stack([made[path] for path in layers], axis=1)
        found[numbers] = stacked_BLE[: len(numbers)]
    if not layers:
        raise PemtError(f"{run.folder} shows no gates, expected one per layer with experts.")
    examples, task = range(len(chosen)), seqio.TaskRegistry.get(name)
    return Gates(
        task=name,
        split=chosen.split,
        total=len(whole),
        sources=built.model.pemt.expert_names,
        layers=layers,
        gate_NLE=found,
        inputs=[decode(chosen.vocabulary, chosen.inputs(row)) for row in examples],
        targets=[target_text(task, chosen, row) for row in examples],
    )


def prompt_cosines(run: FinishedRun) -> tuple[list[str], np.ndarray]:
    """Cosines between the mean vectors of the source prompts and of the target's, and their names.

    The target comes last. A prompt whose mean is zero has cosine 0 with every other.
    """
    pemt, params = run.built.model.pemt, run.built.params
    sources_EQD = np.asarray(params["source_prompts/embedding"], np.float32)
    lengths = pemt.source_prompt_lengths
    means = [prompt[:n].mean(axis=0) for prompt, n in zip(sources_EQD, lengths, strict=True)]
    means.append(np.asarray(params["prompt/embedding"], np.float32).mean(axis=0))
    vectors = np.stack(means)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(norms > 0, norms, 1)
    return [*pemt.expert_names, f"target: {run.task}"], vectors @ vectors.T


def _subset(split: TokenizedSplit, rows: np.ndarray) -> TokenizedSplit:
    columns = {
        name: Ragged.of([column[row] for row in rows], np.int32)
        for name, column in split.columns.items()
    }
    other = Ragged.of([split.other[row] for row in rows], np.uint8)
    return dataclasses.replace(split, columns=columns, other=other)
