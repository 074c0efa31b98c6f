"""What a finished run leaves behind.

Methods `full` and `decoder` leave MODEL_DIR/base, a Hugging Face folder with its vocabulary, which
is a base for others, and a card beside it. Every other method leaves MODEL_DIR/artefact: only what
was trained, and a card with the base and the experts it depends on. A source expert enters the
library as well.
"""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError, warn
from pemt_jax.common.hashing import unlisted, write_checksums
from pemt_jax.common.lazy_array import LazyArray
from pemt_jax.common.storage import current, replacing_folder
from pemt_jax.common.writing import lease
from pemt_jax.interop.base import open_base
from pemt_jax.interop.hf import save_hf
from pemt_jax.interop.hf_config import check_savable
from pemt_jax.library import expert as expert_library
from pemt_jax.library.artefact import (
    Card,
    check_name,
    check_replaceable,
    finite_metrics,
    read_card,
    write_artefact,
)
from pemt_jax.library.hub_names import find, lasting_name
from pemt_jax.model.methods import get_method
from pemt_jax.run_config import TrainConfig
from pemt_jax.runs.build_model import BuiltModel, cut_embedding

ARTEFACT, BASE = "artefact", "base"
RUN_FACTS = "pemt_run.json"  # of a base: what its run was, for predict and evaluate

log = logging.getLogger(__name__)


def check_publishable(config: TrainConfig) -> None:
    """Raise UsageError, before hours of training, for what `publish` could not write.

    `config` is that of one task, completed.
    """
    folder = config.folder
    storage.check_writable("MODEL_DIR", folder)
    method, name = get_method(config.model.method), config.experts.expert_name
    library = config.experts.library
    if config.model.initial_checkpoint_path is None and method.name != "full":
        raise UsageError(
            f"Method {method.name!r} has no base model, expected INITIAL_CHECKPOINT_PATH, for only "
            "method 'full' trains one anew."
        )
    if method.base:
        check_base_replaceable(folder)
    else:
        check_replaceable(folder / ARTEFACT, "expert" if method.source_expert else "target")
    if name:
        if not method.source_expert:
            raise UsageError(
                f"Method {method.name!r} trains no expert, found EXPERT_NAME {name!r} and expected "
                "none."
            )
        check_name(name)
        assert library is not None, "a completed configuration names its library"
        check_owner(folder, library, name)


def folders_written(config: TrainConfig) -> dict[str, Path]:
    """The folders that a run writes to, by the names of their settings; of one task, completed."""
    folders, library = {"MODEL_DIR": config.folder}, config.experts.library
    if config.experts.expert_name and library is not None:
        folders["LIBRARY"] = storage.path(library)
    return folders


def check_base_replaceable(model_dir: Path) -> None:
    """Raise UsageError when MODEL_DIR/base holds anything but a base that a run has written."""
    folder = current(model_dir / BASE)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if others := unlisted(folder):
        raise UsageError(
            f"{folder} holds {others[0]!r}, which no run wrote, expected another MODEL_DIR."
        )


def check_owner(model_dir: Path, library: str, expert_name: str) -> None:
    """Raise UsageError when the library holds an expert of this name that another run made.

    Targets depend on experts: one that changed under its name would break every one of them.
    """
    folder = current(storage.path(library) / expert_name)
    check_replaceable(folder, "expert")
    if not folder.exists():
        return
    owner = read_card(folder).config.get("model_dir")
    if owner != str(model_dir.resolve()):
        raise UsageError(
            f"The library {library} holds an expert {expert_name!r} made by {owner}, expected "
            "another EXPERT_NAME or another LIBRARY."
        )


def check_model(config: TrainConfig, built: BuiltModel) -> None:
    """Raise UsageError for a model whose shape its format cannot store."""
    if built.method.base:
        check_savable(built.model.t5)


def publish(
    config: TrainConfig,
    trained: Mapping[str, np.ndarray],
    built: BuiltModel,
    metrics: Mapping[str, float],
    notes: Mapping[str, object] | None = None,
) -> Path:
    """Write what a run has trained and return the folder.

    Args:
      config: of one task, completed.
      trained: flat trained parameters.
      built: what they were trained in.
      metrics: of the best checkpoint, on validation; those that are not finite are left out.
      notes: more facts for the card.
    """
    trained = {path: np.asarray(value) for path, value in trained.items()}
    metrics = finite_metrics(metrics)
    if built.method.base:
        return publish_base(config, trained, built, metrics)
    identity, options, library = built.identity, built.model.pemt, config.experts.library
    base = config.model.initial_checkpoint_path
    assert base is not None and library is not None, "see check_publishable"
    facts = {
        "model_dir": str(config.folder.resolve()),
        "base": lasting_name(base),
        "library": storage.absolute(library),
        "t5": identity["t5"],
        "pemt": identity["pemt"],
        "task_feature_lengths": dict(config.data.task_feature_lengths),
        "max_decode_length": built.model.max_decode_length,
        "vocabulary": identity["vocabulary"],
        "seed": identity["seed"],
        **(notes or {}),
    }
    experts = tuple((record["name"], record["sha256"]) for record in identity["experts"])
    if experts and not (options.source_expert or built.method.experts):  # its prompt was used
        facts, experts = facts | {"started_from": identity["experts"]}, ()
    card = Card(
        kind="expert" if options.source_expert else "target",
        method=built.method.name,
        task=config.tasks[0],
        base_fingerprint=identity["base"],
        base_name=found.repo if (found := find(base)) else Path(base).name,
        description=identity["prompt_text"] or "",
        experts=experts,
        rank=options.expert_rank if options.source_expert or experts else 0,
        config=facts,
        metrics=metrics,
    )
    check_replaceable(config.folder / ARTEFACT, card.kind)
    # The artefact comes last: once it is there, the run has ended in every respect.
    if name := config.experts.expert_name:
        lock = storage.path(library) / f".{name}.lock"
        with lease.held(lock, f"The expert {name!r} of {library}", wait=60):
            check_owner(config.folder, library, name)  # another run may have published meanwhile
            expert_library.save_expert(library, name, trained, card)
    write_artefact(config.folder / ARTEFACT, trained, card)
    log.info("%s is published.", config.folder / ARTEFACT)
    return config.folder / ARTEFACT


def against_majority(
    task: str, metrics: Mapping[str, float], majority: float | None
) -> dict[str, object]:
    """For the card: the `average` of the majority class, and whether the best one is above it.

    A result that is not, which is at chance, is a warning. Empty where `majority` is no number.
    """
    if majority is None or not math.isfinite(majority):
        return {}
    best = metrics.get("average", math.nan)
    if not (beaten := best > majority):
        warn(
            f"The best validation score of {task!r} is {best:.4g}, expected more than the "
            f"{majority:.4g} of the majority class: what was trained is at chance."
        )
    return {"majority_class": {"average": majority, "beaten": beaten}}


def publish_base(
    config: TrainConfig, trained: Mapping, built: BuiltModel, metrics: Mapping[str, float]
) -> Path:
    """Write MODEL_DIR/base, which replaces only what an earlier publication wrote there.

    What was not trained is as in the run's own base.
    """
    check_base_replaceable(config.folder)
    vocabulary, folder = built.model.input_vocabulary, config.folder / BASE
    assert vocabulary is not None
    facts = {
        "task": config.tasks[0],
        "task_feature_lengths": dict(config.data.task_feature_lengths),
        "max_decode_length": built.model.max_decode_length,
        "metrics": dict(metrics),
    }
    params: dict[str, np.ndarray | LazyArray] = {}
    if path := config.model.initial_checkpoint_path:
        params |= open_base(path)[1]
        params |= cut_embedding(params, built.model.t5.vocab_size)
    params |= trained
    try:
        with replacing_folder(folder) as partial:
            save_hf(partial, built.model.t5, params, config.model.base_dtype)
            vocabulary.save(partial)
            text = json.dumps(facts, indent=1) + "\n"
            (partial / RUN_FACTS).write_text(text, encoding="utf-8")
            write_checksums(partial)
    except OSError as error:
        raise PemtError(f"Cannot write {folder}: {storage.reason(error)}.") from error
    log.info("%s is published.", folder)
    return folder
