"""A finished run: what it leaves behind, and how that is opened again.

Method `full` leaves MODEL_DIR/base, a Hugging Face folder with its vocabulary, which is a base
for others.  Every other method leaves MODEL_DIR/artefact: only what was trained, and a card with
the base and the experts it stands on, which `open_run` finds again and checks.  A source expert
enters the library as well.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pemt_jax.common.errors import UsageError, nearest
from pemt_jax.common.hashing import write_checksums
from pemt_jax.common.storage import replacing_folder
from pemt_jax.config import DTYPES
from pemt_jax.interop.base import absolute
from pemt_jax.interop.hf import save_hf
from pemt_jax.library import expert as expert_library
from pemt_jax.library.artefact import Card, check_name, check_replaceable, read_card, write_artefact
from pemt_jax.model.methods import get_method
from pemt_jax.runs.build_model import Assembly

ARTEFACT, BASE = "artefact", "base"


def check_publishable(
    model_dir: Path,
    method: str,
    base: str | None,
    library: str,
    expert_name: str | None,
    dtypes: Sequence[str],
) -> None:
    """Raise UsageError, before hours of training, for what `publish` could not write.

    Args:
      model_dir, base, library, expert_name: see `publish`.
      method: name of the method.
      dtypes: in which parameters are to be stored or kept.
    """
    place = next(path for path in (model_dir, *model_dir.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        state = "is read-only" if place.is_dir() else "is a file"
        raise UsageError(
            f"MODEL_DIR is {model_dir} but {place} {state}, expected a folder to write to."
        )
    chosen = get_method(method)
    if base is None and method != "full":
        raise UsageError(
            f"Method {method!r} has no base to stand on, expected "
            "INITIAL_CHECKPOINT_PATH, for only method 'full' trains one anew."
        )
    if expert_name:
        if not chosen.source_expert:
            raise UsageError(
                f"Method {method!r} trains no expert, found EXPERT_NAME "
                f"{expert_name!r} and expected none."
            )
        check_name(expert_name)
        check_owner(model_dir, library, expert_name)
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise UsageError(
                f"There is no dtype {dtype!r} to keep parameters in, expected one of "
                f"{', '.join(sorted(DTYPES))}{nearest(dtype, DTYPES)}."
            )


def check_owner(model_dir: Path, library: str, expert_name: str) -> None:
    """Raise PemtError when the library holds an expert of this name that another run made.

    Targets stand on experts: one that changed under its name would break every one of them.
    """
    folder = Path(library) / expert_name
    check_replaceable(folder, "expert")
    if not folder.exists():
        return
    owner = read_card(folder).config.get("model_dir")
    if owner != str(model_dir.resolve()):
        raise UsageError(
            f"The library {library} holds an expert {expert_name!r} made by {owner}, "
            "expected another EXPERT_NAME or another LIBRARY."
        )


def publish(
    model_dir: Path,
    trained: Mapping[str, np.ndarray],
    assembly: Assembly,
    task: str,
    task_feature_lengths: Mapping[str, int],
    metrics: Mapping[str, float],
    *,
    base: str | None,
    library: str,
    expert_name: str | None,
    base_dtype: str = "float32",
    notes: Mapping[str, object] | None = None,
) -> Path:
    """Write what a run has trained and return the folder.

    Args:
      model_dir: the run's folder.
      trained: flat trained parameters.
      assembly: what they were trained in.
      task: the task or mixture.
      task_feature_lengths: longest inputs and targets.
      metrics: of the best checkpoint, on validation.
      base: path of the base, None for a backbone trained from nothing.
      library: folder of the expert library that the run used, and that a source expert enters.
      expert_name: its name there; None to keep it out.
      base_dtype: in which a base is stored.
      notes: more facts for the card.
    """
    trained = {path: np.asarray(value) for path, value in trained.items()}
    if assembly.method.name == "full":
        vocabulary = assembly.model.input_vocabulary
        with replacing_folder(model_dir / BASE) as made:  # the one there is this run's
            save_hf(made, assembly.model.t5, trained, base_dtype)
            shutil.copyfile(vocabulary.sentencepiece_model_file, made / "spiece.model")
            write_checksums(made)
        return model_dir / BASE
    identity, options = assembly.identity, assembly.model.pemt
    about = {
        "task": task,
        "base_fingerprint": identity["base"],
        "base_name": Path(base).name,
        "metrics": metrics,
        "method": assembly.method.name,
    }
    config = {
        "model_dir": str(model_dir.resolve()),
        "base": absolute(base),
        "library": str(Path(library).resolve()),
        "t5": identity["t5"],
        "pemt": identity["pemt"],
        "task_feature_lengths": dict(task_feature_lengths),
        "max_decode_length": assembly.model.max_decode_length,
        "vocabulary": identity["vocabulary"],
        "seed": identity["seed"],
        **(notes or {}),
    }
    experts = tuple((record["name"], record["sha256"]) for record in identity["experts"])
    kind = "expert" if options.source_expert else "target"
    card = Card(
        kind=kind,
        description=identity["prompt_text"],
        experts=experts,
        rank=options.expert_rank if options.source_expert or experts else 0,
        config=config,
        **about,
    )
    # The artefact comes last: where it stands, the run has ended in every respect.
    if expert_name:
        expert_library.save_expert(
            library, expert_name, trained, prompt_text=card.description, config=config, **about
        )
    write_artefact(model_dir / ARTEFACT, trained, card)
    return model_dir / ARTEFACT
