"""From a gin configuration to a model for T5X: of a run to be, or of one that is published."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp

from pemt_jax import tasks
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.library import expert as expert_library
from pemt_jax.library.artefact import CARD, read_card
from pemt_jax.model.methods import get_method
from pemt_jax.runs.build_model import MINI_T5, Assembly, assemble
from pemt_jax.runs.finished import open_run
from pemt_jax.runs.publish import ARTEFACT, check_publishable
from pemt_jax.t5x.bridge import Optimizer, PemtT5X, Publication
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY, prefer

FREE = {"dropout_rate", "broadcast_dropout", "dtype", "remat_policy"}  # of T5Config: not the shape


def new_model(
    method: str,
    mixture_or_task_name: str,
    task_feature_lengths: Mapping[str, int],
    model_dir: str,
    train_steps: int,
    optimizer: Optimizer,
    initial_checkpoint_path: str | None = MINI_T5,
    t5: object | None = None,
    options: PemtConfig | None = None,
    prompt_text: str | None = None,
    library: str | None = None,
    experts: Sequence[str] = (),
    initial_expert: str | None = None,
    expert_name: str | None = None,
    dropout_rate: float | None = None,
    broadcast_dropout: bool | None = None,
    dtype: str | None = None,
    embedding_rows: int | None = None,
    base_dtype: str = "float32",
    max_decode_length: int | None = None,
    seed: int = 0,
) -> PemtT5X:
    """Return a model for t5x.train; the arguments are those of pemt_jax.train.train, except:

    Args:
      model_dir: a local folder for artefacts; T5X may have its checkpoints elsewhere.
      train_steps: after so many an expert enters the library.
      optimizer: an optax optimizer; for method full also one of T5X.
      t5: a T5Config, ours or T5X's: the shape of a new backbone or, where there is a base, the
        shape that it must have.

    Raises:
      UsageError, PemtError: something named does not exist or does not fit; `model_dir` holds
        another run.
    """
    library = library or str(expert_library.default_library())
    if "://" in model_dir:
        raise UsageError(
            f"Artefacts cannot be written to {model_dir}, expected a local folder: "
            "set ARTEFACT_DIR."
        )
    if method == "pemt_source":
        expert_name = expert_name or mixture_or_task_name
    Path(model_dir).mkdir(parents=True, exist_ok=True)
    check_publishable(
        Path(model_dir), method, initial_checkpoint_path, library, expert_name, (base_dtype,)
    )
    if prompt_text is None and get_method(method).prompt:
        prompt_text = tasks.description(mixture_or_task_name)
    shape = None if t5 is None else shape_of(t5)
    if shape is not None:
        dtype = dtype or shape.dtype
        dropout_rate = shape.dropout_rate if dropout_rate is None else dropout_rate
    prefer(initial_checkpoint_path and Path(initial_checkpoint_path) / "spiece.model")
    made = assemble(
        method,
        DEFAULT_VOCABULARY,
        base=initial_checkpoint_path,
        t5=None if initial_checkpoint_path else shape,
        options=options,
        prompt_text=prompt_text,
        library=library,
        experts=experts,
        initial_expert=initial_expert,
        dropout_rate=dropout_rate,
        broadcast_dropout=broadcast_dropout,
        dtype=dtype,
        embedding_rows=embedding_rows,
        max_decode_length=max_decode_length,
        seed=seed,
    )
    if shape is not None:
        check_shape(made.model.t5, shape, initial_checkpoint_path)
    check_same_run(Path(model_dir), made)
    publication = Publication(
        Path(model_dir),
        mixture_or_task_name,
        dict(task_feature_lengths),
        train_steps,
        initial_checkpoint_path,
        library,
        expert_name,
        base_dtype,
    )
    return PemtT5X(made, optimizer, publication)


def trained_model(
    model_dir: str,
    initial_checkpoint_path: str | None = None,
    library: str | None = None,
    vocabulary: str | None = None,
    num_decodes: int = 1,
    alpha: float = 0.6,
) -> PemtT5X:
    """Return the model of a published run for t5x.eval and t5x.infer; see runs.open_run."""
    made, _ = open_run(model_dir, DEFAULT_VOCABULARY, initial_checkpoint_path, library, vocabulary)
    return PemtT5X(made, num_decodes=num_decodes, alpha=alpha)


def shape_of(t5: object) -> T5Config:
    """Return our configuration of a T5, from our own or from T5X's network.T5Config."""
    names = [field.name for field in dataclasses.fields(T5Config) if hasattr(t5, field.name)]
    values = {name: getattr(t5, name) for name in names}
    return T5Config(**values | {"dtype": jnp.dtype(values["dtype"]).name})


def check_shape(found: T5Config, expected: T5Config, base: str | None) -> None:
    """Raise UsageError when the base has another shape than the gin file of its size says."""
    for name, value in dataclasses.asdict(expected).items():
        if name not in FREE and getattr(found, name) != value:
            raise UsageError(
                f"The base {base} has {name} = {getattr(found, name)!r}, expected "
                f"{value!r} as the T5Config says."
            )


def check_same_run(folder: Path, made: Assembly) -> None:
    """Raise PemtError when `folder` was published by a run of another method, base or experts."""
    if not (folder / ARTEFACT / CARD).is_file():
        return
    card = read_card(folder / ARTEFACT)
    found = {
        "method": card.method,
        "base": card.base_fingerprint,
        "prompt_text": card.description,
        "experts": [{"name": name, "sha256": sha256} for name, sha256 in card.experts],
    }
    for name, value in found.items():
        if value != made.identity[name]:
            raise PemtError(
                f"{folder} holds a run with {name} {value!r}, expected "
                f"{made.identity[name]!r} or another MODEL_DIR."
            )
