"""A finished run: what it leaves behind, and how that is opened again.

Method `full` leaves MODEL_DIR/base, a Hugging Face folder with its vocabulary, which is a base
for others.  Every other method leaves MODEL_DIR/artefact: only what was trained, and a card with
the base and the experts it stands on, which `open_run` finds again and checks.  A source expert
enters the library as well.
"""

import dataclasses
from pathlib import Path

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.storage import current
from pemt_jax.config import PemtConfig
from pemt_jax.library.artefact import Card, read_artefact
from pemt_jax.runs.build_model import Assembly, assemble
from pemt_jax.runs.publish import ARTEFACT, BASE
from pemt_jax.tasks.vocabulary import Vocabulary, prefer


def open_run(
    model_dir: str,
    vocabulary: Vocabulary,
    base: str | None = None,
    library: str | None = None,
    vocabulary_file: str | None = None,
) -> tuple[Assembly, Card | None]:
    """Return the assembly with the trained parameters of a finished run, and its card.

    Args:
      model_dir: a run's folder (or an artefact's, or a base's).
      vocabulary: of the tasks.
      base, library: where the base and the experts are now, if they were moved.
      vocabulary_file: None for the one beside the base.

    Raises:
      UsageError, PemtError: no finished run, a damaged file, an exchanged expert, another base.
    """
    folder = Path(model_dir)
    if (folder / "config.json").is_file() or current(folder / BASE).is_dir():
        folder = folder if (folder / "config.json").is_file() else current(folder / BASE)
        prefer(vocabulary_file or folder / "spiece.model")
        return assemble("full", vocabulary, base=str(folder)), None
    if not (folder / "card.json").is_file():
        if not current(folder / ARTEFACT).is_dir():
            state = (
                "does not exist"
                if not folder.exists()
                else (
                    "has checkpoints but its run has not ended: run its command again to finish it"
                    if (folder / "checkpoints").is_dir()
                    else f"has neither {ARTEFACT} nor {BASE}"
                )
            )
            raise UsageError(f"{folder} {state}, expected the MODEL_DIR of a finished run.")
        folder = current(folder / ARTEFACT)
    arrays, card = read_artefact(folder)
    config = card.config
    try:
        options = PemtConfig(**config["pemt"])
        base, library = base or config["base"], library or config["library"]
        dtype, rows = str(config["t5"]["dtype"]), int(config["t5"]["vocab_size"])
        prefer(vocabulary_file or Path(base) / "spiece.model")
        _ = Path(library), dict(config["task_feature_lengths"])
    except (KeyError, TypeError, ValueError) as error:
        raise PemtError(f"{folder}/card.json has no usable config ({error}).") from error
    assembly = assemble(
        card.method,
        vocabulary,
        base=base,
        options=dataclasses.replace(options, expert_names=(), source_prompt_lengths=()),
        prompt_text=card.description,
        library=library,
        experts=[name for name, _ in card.experts] if card.kind == "target" else (),
        dtype=dtype,
        embedding_rows=rows,
        max_decode_length=config.get("max_decode_length"),
    )
    if assembly.identity["base"] != card.base_fingerprint:
        raise PemtError(
            f"{folder} was trained on the base {card.base_name!r} with fingerprint "
            f"{card.base_fingerprint[:12]}, found {assembly.identity['base'][:12]} at {base}."
        )
    found = {record["name"]: record["sha256"] for record in assembly.identity["experts"]}
    for name, sha256 in card.experts if card.kind == "target" else ():
        if found[name] != sha256:
            raise PemtError(
                f"Expert {name!r} in {library} is not the one that {folder} was trained with: "
                f"found sha256 {found[name][:12]}, expected {sha256[:12]}."
            )
    for path, value in arrays.items():
        expected = assembly.params.get(path)
        if expected is None or expected.shape != value.shape:
            raise PemtError(
                f"{folder} has {path} of shape {value.shape}, expected "
                f"{'no such parameter' if expected is None else expected.shape}."
            )
        assembly.params[path] = value
    return assembly, card
