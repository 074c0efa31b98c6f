"""From a gin configuration to a model for T5X: of a run to be, or of one that is published."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from pemt_jax.common import storage
from pemt_jax.common.configured import configured
from pemt_jax.common.errors import UsageError
from pemt_jax.common.flat_config import Flat
from pemt_jax.config import T5Config
from pemt_jax.finished_config import FinishedConfig
from pemt_jax.optimizers import Optimizer
from pemt_jax.run_config import TrainConfig
from pemt_jax.runs.build_model import build_model
from pemt_jax.runs.finished import open_run
from pemt_jax.runs.model_dir import with_one_base
from pemt_jax.runs.probe import probe
from pemt_jax.runs.publish import check_model, check_publishable, folders_written
from pemt_jax.runs.task_run import complete
from pemt_jax.t5x.bridge import PemtT5X
from pemt_jax.t5x.run_folder import check_folder, hold, stored_identity, take_up
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY, beside, prefer

# Of T5Config what is not the shape.
FREE = {"dropout_rate", "broadcast_dropout", "dtype", "remat_policy", "scan_layers"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedConfig(Flat):
    """A finished run for T5X.

    Attributes:
      num_decodes, alpha: beams and their length penalty; 1 for greedy search.
    """

    run: FinishedConfig
    num_decodes: int = 1
    alpha: float = 0.6


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewConfig(TrainConfig):
    """A run under T5X, of which T5X itself decides the batch, the mesh, the data and the loop.

    Attributes:
      checkpoint_dir: T5X's MODEL_DIR, where `model_dir` is another folder, for artefacts.
    """

    checkpoint_dir: str | None = None

    @classmethod
    def check_types(cls, values: Mapping[str, object]) -> None:
        own = values.keys() - {"t5", "optimizer"}  # these two may be T5X's
        super().check_types({name: values[name] for name in own})

    @property
    def checkpoint_folder(self) -> Path:
        return storage.path(self.checkpoint_dir or self.model_dir)


@configured(NewConfig)
def new_model(config: NewConfig) -> PemtT5X:
    """Return a model for t5x.train.

    `model_dir` is a local folder for artefacts; T5X may have its checkpoints elsewhere. For method
    full `optimizer` may be one of T5X. `t5`, a T5Config of ours or of T5X, is the shape of a new
    backbone or, where there is a base, the shape that it must have.

    Raises:
      UsageError, PemtError: something named does not exist or does not fit; a folder holds another
        run, or another command trains in it.
    """
    if "://" in config.model_dir:
        raise UsageError(
            f"Artefacts cannot be written to {config.model_dir}, expected a local folder: set "
            "ARTEFACT_DIR."
        )
    config = complete(config)
    folders = {config.folder: "ARTEFACT_DIR", config.checkpoint_folder: "MODEL_DIR"}
    for folder, setting in folders.items():
        check_folder(setting, folder)
    probe(folders_written(config) | {setting: folder for folder, setting in folders.items()})
    check_publishable(config)
    hold(tuple(folders))
    config = with_one_base(config, stored_identity(config.checkpoint_folder))
    base, shape = config.model.initial_checkpoint_path, config.model.t5
    shape = None if shape is None else shape_of(shape)
    if shape is not None:
        rate, dtype = config.model.dropout_rate, config.model.dtype
        config = config.replace(
            t5=None if base else shape,
            dtype=dtype or shape.dtype,
            dropout_rate=shape.dropout_rate if rate is None else rate,
        )
    prefer(base and beside(base))
    built = build_model(config.model, DEFAULT_VOCABULARY, config.experts, config.loop.seed)
    check_model(config, built)
    if shape is not None:
        check_shape(built.model.t5, shape, base)
    optimizer = config.optimizer
    take_up(
        folders,
        built.identity
        | {
            "task": config.tasks[0],
            "task_feature_lengths": dict(config.data.task_feature_lengths),
            "batch_size": config.data.batch_size,
            "optimizer": optimizer.identity() if isinstance(optimizer, Optimizer) else {},
        },
    )
    return PemtT5X(built, config.optimizer, config)


@configured(TrainedConfig)
def trained_model(config: TrainedConfig) -> PemtT5X:
    """Return the model of a published run for t5x.eval and t5x.infer; see runs.finished."""
    run = open_run(config.run, DEFAULT_VOCABULARY)
    return PemtT5X(run.built, num_decodes=config.num_decodes, alpha=config.alpha)


def shape_of(t5: object) -> T5Config:
    """Return our configuration of a T5, from our own or from T5X's network.T5Config."""
    names = [field.name for field in dataclasses.fields(T5Config) if hasattr(t5, field.name)]
    values: dict[str, Any] = {name: getattr(t5, name) for name in names}
    values["dtype"] = jnp.dtype(values["dtype"]).name
    return T5Config(**values)


def check_shape(found: T5Config, expected: T5Config, base: str | None) -> None:
    """Raise UsageError when the base has another shape than the gin file of its size says."""
    for name, value in dataclasses.asdict(expected).items():
        if name not in FREE and getattr(found, name) != value:
            raise UsageError(
                f"The base {base} has {name} = {getattr(found, name)!r}, expected "
                f"{value!r} as the T5Config says."
            )
