"""A finished run, opened again: its model with the trained parameters, and what it was."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.storage import current
from pemt_jax.common.user_input.files import read_object
from pemt_jax.config import PemtConfig, base_path
from pemt_jax.finished_config import FinishedConfig
from pemt_jax.library.artefact import Card, read_artefact
from pemt_jax.library.hub_names import same_everywhere
from pemt_jax.library.linears import linear_of
from pemt_jax.run_config import ExpertsConfig, ModelConfig
from pemt_jax.runs.build_model import BuiltModel, build_model
from pemt_jax.runs.publish import ARTEFACT, BASE, RUN_FACTS
from pemt_jax.tasks.vocabulary import BYTES, Vocabulary, beside, prefer


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
      folder: of the artefact or base.
      built: the model, with the trained parameters in `params`.
      task: the task or mixture that it was trained on; None where that is not known.
      lengths: the longest inputs and targets of that training, likewise.
      card: of an artefact.
    """

    folder: Path
    built: BuiltModel
    task: str | None = None
    lengths: Mapping[str, int] | None = None
    card: Card | None = None


def open_run(config: FinishedConfig, vocabulary: Vocabulary) -> FinishedRun:
    """Open a finished run.

    Args:
      config: where it is, and where its base and experts are now.
      vocabulary: of the tasks.

    Raises:
      UsageError, PemtError: no finished run, a damaged file, an exchanged expert, another base.
    """
    folder = storage.path(config.model_dir)
    if (
        config.vocabulary not in (None, BYTES)
        and not (file := storage.path(config.vocabulary)).is_file()
    ):
        state = f"{file} is no plain file" if file.exists() else f"There is no file {file}"
        raise UsageError(f"{state}, expected VOCABULARY to be a spiece.model or tokenizer.json.")
    if (folder / "config.json").is_file() or current(folder / BASE).is_dir():
        folder = folder if (folder / "config.json").is_file() else current(folder / BASE)
        return open_base_run(folder, vocabulary, config)
    if not (folder / "card.json").is_file():
        if not current(folder / ARTEFACT).is_dir():
            state = f"has neither {ARTEFACT} nor {BASE}"
            if not folder.exists():
                state = "does not exist"
            elif (folder / "checkpoints").is_dir():
                state = "has checkpoints but its run has not ended: run its command again"
            raise UsageError(f"{folder} {state}, expected the MODEL_DIR of a finished run.")
        folder = current(folder / ARTEFACT)
    arrays, card = read_artefact(folder)
    facts: dict[str, Any] = dict(card.config)
    try:
        options = PemtConfig(**facts["pemt"])
        if not (base := config.initial_checkpoint_path or facts.get("base")):
            raise UsageError(
                f"{folder} comes from elsewhere and does not say where its base "
                f"{card.base_name!r} is, expected INITIAL_CHECKPOINT_PATH."
            )
        base = same_everywhere(base_path(base))
        library = config.library or facts.get("library") or str(folder.parent)
        lengths = dict(facts["task_feature_lengths"])
        model = ModelConfig(
            method=card.method,
            initial_checkpoint_path=base,
            options=dataclasses.replace(options, expert_names=(), source_prompt_lengths=()),
            prompt_text=card.description or None,
            dtype=str(facts["t5"]["dtype"]),
            scan_layers=config.scan_layers,
            embedding_rows=int(facts["t5"]["vocab_size"]),
            max_decode_length=facts.get("max_decode_length"),
        )
        _ = storage.path(library)
        prefer(config.vocabulary or beside(base))
    except (KeyError, TypeError, ValueError) as error:
        raise PemtError(f"{folder}/card.json has no usable config ({error}).") from error
    names = [name for name, _ in card.experts] if card.kind == "target" else []
    built = build_model(model, vocabulary, ExpertsConfig(library, names))
    if built.identity["base"] != card.base_fingerprint:
        raise PemtError(
            f"{folder} was trained on the base {card.base_name!r} with fingerprint "
            f"{card.base_fingerprint[:12]}, found {built.identity['base'][:12]} at {base}."
        )
    found = {record["name"]: record["sha256"] for record in built.identity["experts"]}
    for name, sha256 in card.experts if card.kind == "target" else ():
        if found[name] != sha256:
            raise PemtError(
                f"Expert {name!r} in {library} is not the one that {folder} was trained with: "
                f"found sha256 {found[name][:12]}, expected {sha256[:12]}."
            )
    for path, value in arrays.items():
        expected = built.params.get(path)
        if expected is not None and linear_of(path):
            value = filled_up(value, expected.shape)
        if expected is None or expected.shape != value.shape:
            raise PemtError(
                f"{folder} has {path} of shape {value.shape}, expected "
                f"{'no such parameter' if expected is None else expected.shape}."
            )
        built.params[path] = value
    return FinishedRun(folder, built, card.task, lengths, card)


def filled_up(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A matrix with zeros up to `shape`, which holds an expert whose layers differ in rank."""
    missing = [wanted - found for wanted, found in zip(shape, value.shape, strict=True)]
    return np.pad(value, [(0, max(0, more)) for more in missing]) if any(missing) else value


def open_base_run(folder: Path, vocabulary: Vocabulary, config: FinishedConfig) -> FinishedRun:
    """Open a base as a model: one that a run has left, or any other."""
    prefer(config.vocabulary or beside(folder))
    facts: dict[str, Any] = {}
    if (folder / RUN_FACTS).is_file():
        try:
            facts = read_object(folder / RUN_FACTS, "the facts of the run")
            facts = {
                "task": str(facts["task"]),
                "lengths": {k: int(v) for k, v in facts["task_feature_lengths"].items()},
                "longest": facts["max_decode_length"] and int(facts["max_decode_length"]),
            }
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise PemtError(
                f"{folder / RUN_FACTS} is not readable ({error}), expected the facts of the run."
            ) from error
    model = ModelConfig(
        method="full",
        initial_checkpoint_path=str(folder),
        scan_layers=config.scan_layers,
        max_decode_length=facts.get("longest"),
    )
    built = build_model(model, vocabulary)
    return FinishedRun(folder, built, facts.get("task"), facts.get("lengths"))
