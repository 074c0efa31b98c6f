"""Models built and finished runs opened by the flat names of their configurations."""

import dataclasses

from pemt_jax.finished_config import FinishedConfig
from pemt_jax.run_config import ExpertsConfig, ModelConfig
from pemt_jax.runs import build_model, finished


def assemble(method, vocabulary, *, seed=0, **values):
    """build_model of fields of ModelConfig and ExpertsConfig; `base` is the checkpoint's path."""
    if "base" in values:
        values["initial_checkpoint_path"] = values.pop("base")
    names = {field.name for field in dataclasses.fields(ExpertsConfig)}
    experts = {name: value for name, value in values.items() if name in names}
    model = {name: value for name, value in values.items() if name not in names}
    return build_model.build_model(
        ModelConfig(method, **model), vocabulary, ExpertsConfig(**experts), seed
    )


def open_run(folder, vocabulary, base=None, library=None, vocabulary_file=None):
    """(built model, card) of a finished run."""
    config = FinishedConfig(str(folder), base, library, vocabulary_file)
    run = finished.open_run(config, vocabulary)
    return run.built, run.card
