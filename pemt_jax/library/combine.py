"""Experts made of others in the library: one of several, or a random one for controls.

Each is an ordinary expert: stage 2 mixes it, PEFT gets it, `evaluate` measures it alone where its
sources can be. Its card says how it was made.

A prompt is not combined: prompts differ in length, and equal rows of two prompts have nothing in
common. A combined expert has that of its first source, or of another that is named, with its text
and task.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np

from pemt_jax.common import storage
from pemt_jax.common.errors import UsageError, nearest
from pemt_jax.common.storage import check_free
from pemt_jax.library.artefact import Card, check_name, read_card
from pemt_jax.library.combination import Combination
from pemt_jax.library.expert import (
    PROMPT,
    Expert,
    bank_options,
    expert_folder,
    load_expert,
    save_expert,
)
from pemt_jax.library.linears import Pair, flat_lora

# What the card of a trained expert says that holds for all of its base: how to open it again.
KEPT = ("base", "library", "t5", "task_feature_lengths", "max_decode_length", "vocabulary")


def combine_experts(
    library: str | os.PathLike,
    name: str,
    sources: Sequence[str],
    combination: Combination,
    prompt_of: str | None = None,
    facts: Mapping[str, object] | None = None,
) -> Card:
    """Save the combination of experts as the new expert `name`; return its card.

    Args:
      library: has the sources and gets the result.
      name: of the result.
      sources: names of experts of one base, one per weight. Those that lack a linear layer, which
        another has, are left out there.
      combination: how.
      prompt_of: the source whose prompt it gets; by default the first.
      facts: more for its card.

    Raises:
      UsageError: a name is taken or unknown, or the settings do not fit the sources.
      PemtError: a source is damaged, or their bases differ.
    """
    check_target(library, name)
    if len(sources) != len(combination.weights):
        raise UsageError(
            f"Found {len(combination.weights)} weights for {len(sources)} experts, expected one "
            "weight per expert."
        )
    experts = [load_expert(library, source) for source in sources]
    bank_options(experts)  # raises for experts that do not fit each other
    prompt_of = sources[0] if prompt_of is None else prompt_of
    if prompt_of not in sources:
        raise UsageError(
            f"The prompt of {prompt_of!r} is asked for, expected one of "
            f"{', '.join(sources)}{nearest(prompt_of, sources)}."
        )
    owner = experts[sources.index(prompt_of)]
    linears = sorted({linear for expert in experts for linear in expert.lora})
    lora = {
        linear: combination.combine(linear, [expert.lora.get(linear) for expert in experts])
        for linear in linears
    }
    made = {
        "made": "combined",
        "sources": [{"name": expert.name, "sha256": expert.sha256} for expert in experts],
        "prompt_of": prompt_of,
        **{key: value for key, value in vars(combination).items() if value is not None},
        **(facts or {}),
    }
    return _save(library, name, owner, owner.prompt, lora, made)


def random_expert(library: str | os.PathLike, name: str, like: str, seed: int = 0) -> Card:
    """Save a random expert of the size of another as the new expert `name`; return its card.

    Every matrix has the shape of that of `like`, every A and every product A B the Frobenius norm,
    and every prompt row the norm of its row. Where `like` is no better than this, it is not what it
    has learned that helps.

    Raises:
      UsageError: a name is taken or unknown, or the seed is negative. PemtError: `like` is damaged.
    """
    check_target(library, name)
    if seed < 0:
        raise UsageError(f"The seed is {seed}, expected 0 or more.")
    source, random = load_expert(library, like), np.random.default_rng(seed)
    lora = {}
    for linear, (a, b) in source.lora.items():
        new_a, new_b = (random.normal(size=matrix.shape) for matrix in (a, b))
        new_a *= np.linalg.norm(a) / np.linalg.norm(new_a)
        new_b *= product_norm(a, b) / product_norm(new_a, new_b) if np.any(new_a) else 0
        lora[linear] = new_a.astype(np.float32), new_b.astype(np.float32)
    rows = random.normal(size=source.prompt.shape)
    norms, new_norms = (np.linalg.norm(x, axis=1, keepdims=True) for x in (source.prompt, rows))
    prompt = (rows * (norms / new_norms)).astype(np.float32)
    made = {"made": "random", "like": {"name": like, "sha256": source.sha256}, "seed": seed}
    return _save(library, name, source, prompt, lora, made)


def product_norm(a: np.ndarray, b: np.ndarray) -> float:
    """The Frobenius norm of A B, from R x R matrices: |A B|^2 = tr(A^T A B B^T)."""
    a, b = (np.asarray(matrix, np.float64) for matrix in (a, b))
    return float(np.sqrt(max(0.0, np.sum((a.T @ a) * (b @ b.T)))))


def check_target(library: str | os.PathLike, name: str) -> None:
    """Raise UsageError unless an expert may be saved as `name`."""
    check_name(name)
    check_free(storage.path(library) / name)


def _save(
    library: str | os.PathLike,
    name: str,
    owner: Expert,
    prompt: np.ndarray,
    lora: Mapping[str, Pair],
    made: Mapping[str, object],
) -> Card:
    """Save an expert with the card of another, less what was measured, and how it was made."""
    card = read_card(expert_folder(library, owner.name))
    config = {key: card.config[key] for key in KEPT if key in card.config}
    if isinstance(options := card.config.get("pemt"), dict):
        new = bank_options([dataclasses.replace(owner, lora=lora)])
        shape = {key: new[key] for key in ("expert_linears", "expert_rank")}
        config["pemt"] = options | shape | {"lora_b_init": "zero"}  # where it lacks a layer
    card = dataclasses.replace(card, config={**made, **config}, metrics={})
    return save_expert(library, name, flat_lora(lora) | {PROMPT: prompt}, card)
