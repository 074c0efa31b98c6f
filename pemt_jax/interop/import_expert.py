"""Experts from elsewhere, made experts of the library: of PEFT, and of the authors' code.

An expert depends on a base and has a prompt. Where the files lack these, they are given: the base's
path, whose weights are hashed and whose shape the expert must fit, and the text of the
prompt, whose rows are then those of the base's embedding, from which stage 1 starts as well.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.hashing import fingerprint
from pemt_jax.common.storage import check_free
from pemt_jax.config import T5Config
from pemt_jax.interop.base import check_vocabulary, load_base
from pemt_jax.interop.peft import import_adapter
from pemt_jax.interop.reference import check_backbone, from_reference, load_reference
from pemt_jax.library.artefact import Card, check_name
from pemt_jax.library.expert import PROMPT, check_fits, save_expert, take_apart
from pemt_jax.library.hub_names import find
from pemt_jax.library.linears import linear_of
from pemt_jax.model.prompts import prompt_tokens


@dataclasses.dataclass(frozen=True)
class Request:
    """What the user says of an expert that comes from elsewhere; see library_command.py."""

    library: Path
    name: str
    path: Path
    base: str | None = None
    prompt: str | None = None
    task: str | None = None
    vocabulary: str | None = None
    source: str | None = None  # OWNER/NAME@COMMIT of a `path` that is in the hub's cache


def import_peft(request: Request) -> Card:
    """Import a PEFT folder into the library.

    Raises:
      UsageError: the name is taken, or a base or a prompt is missing. PemtError: it is no plain
        LoRA on linear layers of a T5, is damaged, or does not fit the base.
    """
    _check_target(request)
    adapter = import_adapter(request.path)
    card, prompt = adapter.card, adapter.prompt
    if card is None:
        if request.base is None or request.prompt is None:
            lacks = "--base" if request.base is None else "--prompt"
            raise UsageError(
                f"A PEFT adapter knows neither its base's weights nor a prompt, expected {lacks}."
            )
        about = {"imported": "peft", "prompt": "rows of the base's vocabulary, not trained"}
        card = Card("expert", "lora", request.name, "", description=request.prompt, config=about)
    elif request.prompt is not None:
        raise UsageError(
            f"{request.path} brings a prompt of its own, {card.description!r}, "
            "expected no --prompt."
        )
    config = {**card.config, **_on_the_hub(request)}
    card = dataclasses.replace(card, task=request.task or card.task, config=config)
    if request.base is not None:
        t5, params = load_base(request.base)
        base_print, base_name = fingerprint(params), _base_name(request.base)
        if prompt is None:
            prompt = vocabulary_rows(request, t5, params)
        elif card.base_fingerprint != base_print:
            raise PemtError(
                f"{request.path} was trained on the base {card.base_name!r} with "
                f"fingerprint {card.base_fingerprint[:12]}, found {base_print[:12]} at "
                f"{request.base}."
            )
        arrays = adapter.lora | {PROMPT: prompt}
        check_fits(request.name, *take_apart(request.name, arrays), t5)
        card = dataclasses.replace(card, base_fingerprint=base_print, base_name=base_name)
    assert prompt is not None  # of the adapter, or of the base without which there is no card
    return save_expert(request.library, request.name, adapter.lora | {PROMPT: prompt}, card)


def import_reference(request: Request) -> Card:
    """Import the expert of a stage-1 run of the authors' code into the library.

    Their prompt is trained, its text is in no file: `request.prompt` only describes it.

    Raises:
      UsageError: the name is taken, or no base is given. PemtError: the files hold something
        else, are damaged, or do not fit the base.
    """
    _check_target(request)
    if request.base is None:
        raise UsageError("The authors' files do not name their base, expected --base.")
    source, tensors = str(request.path), load_reference(request.path, stage=1)
    t5, base = load_base(request.base)
    rows = len(tensors.get("shared.weight", base["token_embedder/embedding"]))
    params = from_reference(dataclasses.replace(t5, vocab_size=rows), tensors, source)
    cut = {**base, "token_embedder/embedding": base["token_embedder/embedding"][:rows]}
    check_backbone(params, cut, source)
    expert = {path: array for path, array in params.items() if path not in base}
    if unknown := [path for path in expert if path != PROMPT and not linear_of(path)]:
        raise PemtError(
            f"{source} holds {unknown[0]}, which stage 1 does not train, expected its "
            "lora_A, lora_B and task_shared only."
        )
    check_fits(request.name, *take_apart(request.name, expert), t5, every=True)
    card = Card(
        kind="expert",
        method="pemt_source",
        task=request.task or request.name,
        description=request.prompt or "",
        base_fingerprint=fingerprint(base),
        base_name=_base_name(request.base),
        config={"imported": "the authors' code", "vocab_size": rows, **_on_the_hub(request)},
    )
    return save_expert(request.library, request.name, expert, card)


def vocabulary_rows(request: Request, t5: T5Config, base: Mapping[str, np.ndarray]) -> np.ndarray:
    """The base's embedding rows [P, D] of the prompt's tokens."""
    assert request.base is not None and request.prompt is not None  # import_peft asks for both
    vocabulary = open_vocabulary(request.base, request.vocabulary)

    check_vocabulary(vocabulary, t5, request.base)
    tokens = prompt_tokens(vocabulary, request.prompt)
    return np.asarray(base["token_embedder/embedding"])[tokens]


def open_vocabulary(base: str | os.PathLike, file: str | None = None):
    """The vocabulary in `file`, else the one beside the base; UsageError when there is none."""
    from pemt_jax.tasks.vocabulary import BYTES, Vocabulary, beside  # brings TensorFlow: seconds

    found = file or beside(base)
    if found is None or not (found == BYTES or storage.path(found).is_file()):
        raise UsageError(
            f"There is no vocabulary {file or f'in {base}'}, expected --vocabulary with a "
            "spiece.model or a tokenizer.json, or 'bytes' for a ByT5."
        )
    return Vocabulary(found)


def _base_name(base: str) -> str:
    found = find(base)
    return found.repo if found else storage.path(base).resolve().name


def _on_the_hub(request: Request) -> dict[str, str]:
    """What a card records of names on the hub: each with its commit."""
    base = find(request.base) if request.base else None
    names = {"source": request.source, "base": base.name if base else None}
    return {fact: name for fact, name in names.items() if name}


def _check_target(request: Request) -> None:
    check_name(request.name)
    check_free(storage.path(request.library) / request.name)
