"""LoraHub (arXiv 2307.13269): weights of frozen experts, found without gradients on few examples.

The expert beside x W becomes sum_i w_i (x A_i) B_i, with one weight per expert for all layers. The
weights minimise

    cross entropy of the task's training examples + 0.05 mean_i |w_i|,      -1.5 <= w_i <= 1.5,

from w = 0 in at most 40 evaluations, as in the paper. What differs: the paper sums the factors,
(sum_i w_i A_i) (sum_i w_i B_i), whose mixed terms A_i B_j mean something only where experts were
trained from one start; ours have prompts, of which the result gets one; and the search is COBYLA
(scipy), which is deterministic, not nevergrad's NGOpt.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import Array
from scipy.optimize import minimize

from pemt_jax.common.errors import UsageError
from pemt_jax.config import PemtConfig
from pemt_jax.data.batching import eval_batches
from pemt_jax.data.token_cache import open_split
from pemt_jax.library.artefact import Card
from pemt_jax.library.combination import Combination
from pemt_jax.library.combine import check_target, combine_experts
from pemt_jax.library.expert import load_expert
from pemt_jax.parallel import partitioning
from pemt_jax.parallel.activation_constraints import constrained
from pemt_jax.run_config import ExpertsConfig, ModelConfig
from pemt_jax.runs.build_model import build_model
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY, beside, prefer

BATCH_SIZE = 32
UNIFORM = PemtConfig(gate="uniform", prompt_mixing="own", tsl_weight=0.0)


@dataclasses.dataclass(frozen=True)
class Search:
    """What weights are searched for.

    Attributes:
      task: whose training split is evaluated, all of it in each evaluation.
      base: the pretrained T5 of the experts.
      prompt_of: the expert whose prompt is used, and which the result gets; None for the first.
      evaluations: at most so many.
      inputs, targets: longest, in tokens.
      bound: largest absolute weight.
      penalty: factor of the mean absolute weight.
    """

    task: str
    base: str
    prompt_of: str | None = None
    evaluations: int = 40
    inputs: int = 128
    targets: int = 16
    bound: float = 1.5
    penalty: float = 0.05


def lorahub(library: str | os.PathLike, name: str, experts: Sequence[str], search: Search) -> Card:
    """Save the best combination of experts as the new expert `name`; return its card.

    Raises:
      UsageError: a name is taken or unknown, or there are too few evaluations for the experts.
      PemtError: an expert is damaged, or does not fit the base.
    """
    check_target(library, name)
    weights, loss = find_weights(library, experts, search)
    found = {"loss": loss, **{k: v for k, v in vars(search).items() if k != "prompt_of"}}
    combination = Combination("cat", tuple(weights))
    return combine_experts(
        library, name, experts, combination, search.prompt_of, {"lorahub": found}
    )


def find_weights(
    library: str | os.PathLike, experts: Sequence[str], search: Search
) -> tuple[list[float], float]:
    """Return the weights of the experts, and their cross entropy on the training examples."""
    E = len(experts)
    if search.evaluations < E + 2:
        raise UsageError(
            f"Found {search.evaluations} evaluations for {E} experts, expected {E + 2} or more."
        )
    prefer(beside(search.base))
    owner = load_expert(library, search.prompt_of or experts[0])
    built = build_model(
        ModelConfig("mixture", search.base, options=UNIFORM, prompt_text=owner.prompt_text),
        DEFAULT_VOCABULARY,
        ExpertsConfig(os.fspath(library), tuple(experts)),
    )
    built.params["prompt/embedding"] = owner.prompt
    mesh = partitioning.make_mesh()
    params = built.placed(mesh)
    lengths = {"inputs": search.inputs, "targets": search.targets}
    split = open_split(search.task, "train", lengths)
    batches = [
        partitioning.place_batch(batch, mesh) for _, batch in eval_batches(split, BATCH_SIZE)
    ]

    def cross_entropy(params: Mapping, weights_E: Array, batch: Mapping) -> tuple[Array, Array]:
        _, metrics = built.model.eval_fn(scaled(params, weights_E * E), batch)
        average = metrics["cross_entropy"]
        return average.total, average.count

    step = jax.jit(constrained(cross_entropy, mesh, built.params_axes))
    best = (np.inf, np.zeros(E), np.inf)

    def objective(weights_E: np.ndarray) -> float:
        nonlocal best
        given = jnp.asarray(weights_E, jnp.float32)
        sums = np.sum([jax.device_get(step(params, given, batch)) for batch in batches], axis=0)
        loss = float(sums[0] / sums[1])
        value = loss + search.penalty * float(np.abs(weights_E).mean())
        if value < best[0]:
            best = value, np.array(weights_E), loss
        return value

    minimize(
        objective,
        np.zeros(E),
        method="COBYLA",
        bounds=[(-search.bound, search.bound)] * E,
        options={"rhobeg": 0.5, "maxiter": search.evaluations},
    )
    return [float(weight) for weight in best[1]], best[2]


def scaled(params: Mapping, weights_E: Array) -> dict:
    """Return nested parameters with each expert's A multiplied by its weight."""
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(params), sep="/")
    for path, a_XER in flat.items():
        if path.endswith("experts/lora_a"):
            flat[path] = a_XER * weights_E[None, :, None]
    return traverse_util.unflatten_dict(flat, sep="/")
