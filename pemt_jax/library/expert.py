"""The expert library: a folder with one artefact per expert, named by the expert.

    <library>/<expert>/weights.safetensors     lora_a and lora_b per linear layer, prompt
    <library>/<expert>/card.json               task, base, rank, prompt text, metrics, sha256

Stage 1 saves into it, stage 2 loads by name, in the order that the gate will have, and stacks.
Experts on different linear layers, or of different ranks, are stacked by filling up with zeros:
x A B is a sum over the rank, so its value and its norm are exactly what they were (the product has
no factor alpha/R).

`python -m pemt_jax.library` are the commands for people. What enters from elsewhere comes through
interop/import_expert.py, transfer.py and hub.py.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.common.user_input.linears import linear_kind
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.library.artefact import (
    Card,
    artefact_names,
    check_name,
    read_artefact,
    write_artefact,
)
from pemt_jax.library.linears import Pair, expert_module, linear_of

PROMPT = "prompt/embedding"
OUTPUTS = ("wo", "out")  # linear layers from which the model's width comes; the others read it


@dataclasses.dataclass(frozen=True)
class Expert:
    """One source task: its prompt [P, D], and a low-rank pair per linear layer that it adapts.

    `lora` is keyed by T5X's path of the linear layer, "encoder/layers_0/mlp/wo"; `rank` is the
    largest of its ranks.
    """

    name: str
    task: str
    prompt_text: str
    base_fingerprint: str
    rank: int
    prompt: np.ndarray
    lora: Mapping[str, Pair]
    metrics: Mapping[str, float]
    versions: Mapping[str, str]
    sha256: str

    @property
    def features(self) -> int:
        """The width D of the model."""
        return self.prompt.shape[1]


def default_library() -> Path:
    """The folder that is meant when none is named."""
    return storage.path(os.environ.get("PEMT_JAX_LIBRARY") or "runs/library")


def save_expert(
    library: str | os.PathLike, name: str, trainable: Mapping[str, np.ndarray], card: Card
) -> Card:
    """Write the expert `name` from the flat trainables of stage 1 and return its card as written.

    The rank on the card becomes that of the trainables. PemtError when `trainable` holds anything
    but an expert's parameters or shapes disagree.
    """
    check_name(name)
    _, lora = take_apart(name, trainable)
    rank = max(a.shape[1] for a, _ in lora.values())
    card = dataclasses.replace(card, kind="expert", experts=(), rank=rank)
    return write_artefact(storage.path(library) / name, trainable, card)


def load_expert(
    library: str | os.PathLike, name: str, base_fingerprint: str | None = None
) -> Expert:
    """Read and verify the expert `name`.

    UsageError for an unknown name; PemtError when it is damaged or depends on another base.
    """
    return read_expert(expert_folder(library, name), name, base_fingerprint)


def read_expert(folder: Path, name: str, base_fingerprint: str | None = None) -> Expert:
    """Read and verify the expert in any `folder`; PemtError as `load_expert`."""
    arrays, card = read_artefact(folder, base_fingerprint)
    if card.kind != "expert":
        raise PemtError(f"{folder} is a {card.kind} artefact, expected an expert.")
    prompt, lora = take_apart(name, arrays)
    rank = max(a.shape[1] for a, _ in lora.values())
    if rank != card.rank:
        raise PemtError(
            f"{folder} has rank {card.rank} in its card, expected {rank} as its weights have."
        )
    return Expert(
        name=name,
        task=card.task,
        prompt_text=card.description,
        base_fingerprint=card.base_fingerprint,
        rank=card.rank,
        prompt=prompt,
        lora=lora,
        metrics=card.metrics,
        versions=card.versions,
        sha256=card.sha256,
    )


def expert_names(library: str | os.PathLike) -> list[str]:
    """The names of the experts in `library`, sorted; none when there is no such folder."""
    return artefact_names(storage.path(library))


def expert_folder(library: str | os.PathLike, name: str) -> Path:
    """The folder of the expert `name`; UsageError with the nearest name when there is none."""
    check_name(name)
    names = expert_names(library)
    if name not in names:
        raise UsageError(
            f"There is no expert {name!r} in {library}, which holds "
            f"{', '.join(names) or 'none'}{nearest(name, names)}."
        )
    return storage.current(storage.path(library) / name)


def check_fits(
    name: str, prompt: np.ndarray, lora: Mapping[str, Pair], t5: T5Config, every: bool = False
) -> None:
    """Raise PemtError where an expert does not fit a base; `every`: if it lacks W_o in a layer."""
    linears = t5.linears()
    if prompt.shape[1] != t5.emb_dim:
        raise PemtError(
            f"Expert {name!r} has a prompt of width {prompt.shape[1]}, expected {t5.emb_dim} as "
            "the base has."
        )
    for linear, pair in lora.items():
        if linear not in linears:
            raise PemtError(
                f"Expert {name!r} adapts {linear}, which the base lacks{nearest(linear, linears)}."
            )
        if _widths(pair) != linears[linear]:
            raise PemtError(
                "Expert {!r} has widths {} and {} beside {}, expected {} and {} as the base "
                "has.".format(name, *_widths(pair), linear, *linears[linear])
            )
    missing = {linear for linear in linears if linear.endswith("/mlp/wo")} - set(lora)
    if every and missing:
        raise PemtError(f"Expert {name!r} lacks {min(missing)}, expected W_o of every layer.")


def bank_options(experts: Sequence[Expert]) -> dict[str, object]:
    """The fields of `PemtConfig` that describe a bank of experts of one base, in their order.

    Raises:
      UsageError: no experts, or one named twice. PemtError: bases or widths differ.
    """
    if not experts:
        raise UsageError("No experts were named, expected at least one.")
    first, names = experts[0], tuple(expert.name for expert in experts)
    shapes: dict[str, tuple[int, int]] = {}
    ranks: dict[str, int] = {}
    for i, expert in enumerate(experts):
        if expert.name in names[:i]:
            raise UsageError(f"The expert {expert.name!r} was named twice, expected once.")
        if expert.base_fingerprint != first.base_fingerprint:
            raise PemtError(
                f"Expert {expert.name!r} depends on the base {expert.base_fingerprint[:12]}, "
                f"expected that of {first.name!r}, {first.base_fingerprint[:12]}."
            )
        if expert.features != first.features:
            raise PemtError(
                f"Expert {expert.name!r} has a prompt of width {expert.features}, expected "
                f"{first.features} as {first.name!r} has."
            )
        for linear, pair in expert.lora.items():
            kind = linear_kind(linear)
            ranks[kind] = max(ranks.get(kind, 0), pair[0].shape[1])
            if (known := shapes.setdefault(kind, _widths(pair))) != _widths(pair):
                raise PemtError(
                    "Expert {!r} has widths {} and {} beside {}, expected {} and {} as in "
                    "{!r}.".format(expert.name, *_widths(pair), linear, *known, first.name)
                )
    # The published model is described as it always was: one rank, on W_o of all layers.
    published = all(kind.endswith("/mlp/wo") for kind in ranks)
    words = tuple(f"{kind}:{rank}" for kind, rank in sorted(ranks.items()))
    return {
        "expert_names": names,
        "source_prompt_lengths": tuple(len(expert.prompt) for expert in experts),
        "expert_linears": PemtConfig.expert_linears if published else words,
        "expert_rank": max(ranks.values()),
    }


def stack_experts(experts: Sequence[Expert], options: PemtConfig) -> dict[str, np.ndarray]:
    """Stack experts into the frozen bank of stage 2, in the order given.

    Args:
      experts: of one base.
      options: with the fields of `bank_options(experts)`.

    Returns:
      Flat parameters as the model has them: `lora_a` [in, E, R] and `lora_b` [E, R, out] for each
      linear layer and source_prompts/embedding [E, P, D], filled up with zeros to the largest rank
      and prompt and where an expert lacks a layer. Without a gate there are only the prompts.
    """
    E, lengths = len(experts), options.source_prompt_lengths
    prompts_EPD = np.zeros((E, max(lengths), experts[0].features), np.float32)
    bank = {"source_prompts/embedding": prompts_EPD}
    for i, expert in enumerate(experts):
        prompts_EPD[i, : lengths[i]] = expert.prompt
        for linear, (a, b) in expert.lora.items() if options.num_experts else ():
            module, R = expert_module(linear, bank=True), options.rank_of(linear_kind(linear))
            if f"{module}/lora_a" not in bank:
                bank[f"{module}/lora_a"] = np.zeros((a.shape[0], E, R), np.float32)
                bank[f"{module}/lora_b"] = np.zeros((E, R, b.shape[1]), np.float32)
            bank[f"{module}/lora_a"][:, i, : a.shape[1]] = a
            bank[f"{module}/lora_b"][i, : b.shape[0]] = b
    return bank


def _widths(pair: Pair) -> tuple[int, int]:
    return pair[0].shape[0], pair[1].shape[1]


def take_apart(name: str, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, Pair]]:
    """Split flat parameters into the prompt and the pairs by linear layer.

    Raises:
      PemtError: one has no name or shape of an expert's, or its counterpart is missing.
    """
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for path, array in arrays.items():
        if found := linear_of(path):
            pairs.setdefault(found[0], {})[found[1]] = np.asarray(array)
        elif path != PROMPT:
            raise PemtError(
                f"Expert {name!r} has a parameter {path!r}, expected {PROMPT} and names like "
                "encoder/layers_0/mlp/expert/lora_a only."
            )
    if not pairs or PROMPT not in arrays or any(len(pair) != 2 for pair in pairs.values()):
        raise PemtError(
            f"Expert {name!r} is incomplete, expected {PROMPT} and a lora_a with a "
            "lora_b for each linear layer."
        )
    prompt = np.asarray(arrays[PROMPT])
    lora = {linear: (pair["a"], pair["b"]) for linear, pair in sorted(pairs.items())}
    shapes: dict[str, tuple[int, int]] = {}
    for linear, (a, b) in lora.items():
        own = linear.rpartition("/")[2]
        fits = a.ndim == b.ndim == prompt.ndim == 2 and a.shape[1] == b.shape[0]
        if fits:
            side = 1 if own in OUTPUTS else 0  # the one of the model's width
            fits = shapes.setdefault(own, _widths((a, b))) == _widths((a, b))
            fits = fits and _widths((a, b))[side] == prompt.shape[1]
        if not fits:
            raise PemtError(
                f"Expert {name!r} has lora_a {a.shape} and lora_b {b.shape} beside {linear} and a "
                f"prompt {prompt.shape}, expected (in, R), (R, out) and (P, D) with the same "
                "widths in all layers."
            )
    return prompt, lora
