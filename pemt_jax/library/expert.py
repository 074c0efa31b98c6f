"""The expert library: a folder with one artefact an expert, named by the expert.

    <library>/<expert>/weights.safetensors     {stack}/layers_i/mlp/expert/lora_a, lora_b, prompt
    <library>/<expert>/card.json               task, base, rank, prompt text, metrics, sha256

Stage 1 saves into it, stage 2 loads by name, in the order that the gate will have, and stacks.
Experts of different ranks are stacked by filling the smaller with zeros: u A B is a sum over rank,
so its value and its norm are exactly what they were (the product has no factor alpha/R).

`python -m pemt_jax.library` is library_command.py: the commands for people. What enters from
elsewhere comes through exchange.py, importing.py and hub.py.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.library.artefact import (
    Card,
    artefact_names,
    check_name,
    read_artefact,
    write_artefact,
)

PROMPT = "prompt/embedding"
LORA = re.compile(r"((?:encoder|decoder)/layers_\d+)/mlp/expert/lora_([ab])")


@dataclasses.dataclass(frozen=True)
class Expert:
    """One source task: its prompt [P, D] and a low-rank pair ([F, R], [R, D]) a layer."""

    name: str
    task: str
    prompt_text: str
    base_fingerprint: str
    rank: int
    prompt: np.ndarray
    lora: Mapping[str, tuple[np.ndarray, np.ndarray]]  # "encoder/layers_0" -> (a, b)
    metrics: Mapping[str, float]
    versions: Mapping[str, str]
    sha256: str

    @property
    def widths(self) -> tuple[int, int]:
        """(D, F): model width and feed-forward width."""
        a_FR, b_RD = next(iter(self.lora.values()))
        return b_RD.shape[1], a_FR.shape[0]


def default_library() -> Path:
    """The folder that is meant when none is named."""
    return storage.path(os.environ.get("PEMT_JAX_LIBRARY") or "runs/library")


def save_expert(
    library: str | os.PathLike,
    name: str,
    trainable: Mapping[str, np.ndarray],
    *,
    task: str,
    prompt_text: str,
    base_fingerprint: str,
    base_name: str = "",
    method: str = "pemt_source",
    config: Mapping[str, object] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Card:
    """Write the expert `name` from the flat trainables of stage 1 and return its card.

    PemtError when `trainable` holds anything but an expert's parameters or shapes disagree.
    """
    check_name(name)
    prompt, lora = _take_apart(name, trainable)
    ranks = sorted({a.shape[1] for a, _ in lora.values()})
    card = Card(
        kind="expert",
        method=method,
        task=task,
        description=prompt_text,
        base_fingerprint=base_fingerprint,
        base_name=base_name,
        rank=ranks[-1],
        config=config or {},
        metrics=metrics or {},
    )
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
    prompt, lora = _take_apart(name, arrays)
    rank = max(a_FR.shape[1] for a_FR, _ in lora.values())
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


def stack_experts(
    experts: Sequence[Expert],
) -> tuple[dict[str, np.ndarray], tuple[int, ...], tuple[str, ...]]:
    """Stack experts into the frozen bank of stage 2, in the order given.

    Returns:
        flat parameters: {stack}/layers_i/mlp/experts/lora_a [F, E, R] and lora_b [E, R, D], and
        source_prompts/embedding [E, P, D], each filled with zeros to the largest rank and prompt
        and where an expert lacks a layer; then the prompt lengths and the names.

    Raises:
        UsageError: no experts, or one named twice. PemtError: bases or widths differ.
    """
    if not experts:
        raise UsageError("No experts were named, expected at least one.")
    first, names = experts[0], tuple(expert.name for expert in experts)
    for i, expert in enumerate(experts):
        if expert.name in names[:i]:
            raise UsageError(f"The expert {expert.name!r} was named twice, expected once.")
        if expert.base_fingerprint != first.base_fingerprint:
            raise PemtError(
                f"Expert {expert.name!r} depends on the base "
                f"{expert.base_fingerprint[:12]}, expected that of {first.name!r}, "
                f"{first.base_fingerprint[:12]}."
            )
        if expert.widths != first.widths:
            raise PemtError(
                "Expert {!r} has model and feed-forward widths {} and {}, expected "
                "{} and {} as in {!r}.".format(
                    expert.name, *expert.widths, *first.widths, first.name
                )
            )
    D, F = first.widths
    R = max(expert.rank for expert in experts)
    lengths = tuple(len(expert.prompt) for expert in experts)
    layers = sorted({layer for expert in experts for layer in expert.lora})
    bank = {"source_prompts/embedding": np.zeros((len(experts), max(lengths), D), np.float32)}
    for layer in layers:
        bank[f"{layer}/mlp/experts/lora_a"] = np.zeros((F, len(experts), R), np.float32)
        bank[f"{layer}/mlp/experts/lora_b"] = np.zeros((len(experts), R, D), np.float32)
    for i, expert in enumerate(experts):
        bank["source_prompts/embedding"][i, : lengths[i]] = expert.prompt
        for layer, (a_FR, b_RD) in expert.lora.items():
            bank[f"{layer}/mlp/experts/lora_a"][:, i, : a_FR.shape[1]] = a_FR
            bank[f"{layer}/mlp/experts/lora_b"][i, : b_RD.shape[0]] = b_RD
    return bank, lengths, names


def _take_apart(
    name: str, arrays: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Split flat parameters into the prompt and the pairs, after checking names and shapes."""
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for path, array in arrays.items():
        if match := LORA.fullmatch(path):
            pairs.setdefault(match[1], {})[match[2]] = np.asarray(array)
        elif path != PROMPT:
            raise PemtError(
                f"Expert {name!r} has a parameter {path!r}, expected {PROMPT} and "
                "{encoder,decoder}/layers_i/mlp/expert/lora_{a,b} only."
            )
    if not pairs or PROMPT not in arrays or any(len(pair) != 2 for pair in pairs.values()):
        raise PemtError(
            f"Expert {name!r} is incomplete, expected {PROMPT} and a lora_a with a "
            "lora_b in each of its layers."
        )
    prompt = np.asarray(arrays[PROMPT])
    lora = {layer: (pair["a"], pair["b"]) for layer, pair in sorted(pairs.items())}
    a, b = next(iter(lora.values()))
    for layer, (a_FR, b_RD) in lora.items():
        fits = a_FR.ndim == b_RD.ndim == prompt.ndim == 2 and a_FR.shape[1] == b_RD.shape[0]
        if not fits or (a_FR.shape[0], b_RD.shape[1], b_RD.shape[1]) != (
            a.shape[0],
            b.shape[1],
            prompt.shape[1],
        ):
            raise PemtError(
                f"Expert {name!r} has lora_a {a_FR.shape} and lora_b {b_RD.shape} in "
                f"{layer} and a prompt {prompt.shape}, expected (F, R), (R, D) and "
                "(P, D) with the same F and D everywhere."
            )
    return prompt, lora
