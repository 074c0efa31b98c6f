"""MODEL_DIR/config.gin: what a run was configured with, again a --gin_file."""

from collections.abc import Callable, Mapping
from pathlib import Path

from pemt_jax.common.errors import PemtError
from pemt_jax.common.storage import replacing
from pemt_jax.optimizers import Optimizer
from pemt_jax.parallel import processes
from pemt_jax.run_config import TrainConfig

CONFIG = "config.gin"
FIRST_LINE = "# Written by pemt_jax: the configuration of the run in this folder."
HEADER = """\
from __gin__ import dynamic_registration
from pemt_jax import config
from pemt_jax import optimizers
from pemt_jax import train
"""
DATACLASSES = {"t5": "config.T5Config", "options": "config.PemtConfig"}


def write_config(config: TrainConfig, text: Callable[[], str] | None = None) -> Path:
    """Write MODEL_DIR/config.gin, complete or not at all, and return its path.

    Args:
      text: gives its content; None for `to_gin(config)`.

    Raises:
      PemtError: config.gin exists and is no plain file of that folder, or cannot be written.
    """
    path = config.folder / CONFIG
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise PemtError(f"{path} is a link or a folder, expected a plain file of the run.")
    if processes.is_first():
        content = f"{FIRST_LINE}\n{text() if text else to_gin(config)}"
        with replacing(path) as partial:
            partial.write_text(content, encoding="utf-8")
    return path


def to_gin(config: TrainConfig) -> str:
    """The configuration as gin text; an optimizer that is no `Optimizer` has no text there.

    The modules that register the tasks, and the tasks' own settings, are not part of it.
    """
    bindings: dict[str, object] = {}
    for name, value in config.flat().items():
        if name == "optimizer":
            if isinstance(value, Optimizer):
                bindings["train.train.optimizer"] = "@optimizers.make_optimizer()"
                bindings |= {f"optimizers.{k}": v for k, v in value.bindings().items()}
        elif name in DATACLASSES and value is not None:
            bindings[f"train.train.{name}"] = f"@{DATACLASSES[name]}()"
            bindings |= {f"{DATACLASSES[name]}.{k}": v for k, v in vars(value).items()}
        else:
            bindings[f"train.train.{name}"] = value
    lines = [f"{name} = {_literal(value)}" for name, value in bindings.items()]
    return HEADER + "\n" + "\n".join(lines) + "\n"


def _literal(value: object) -> str:
    if isinstance(value, str) and value.startswith("@"):
        return value
    return repr(dict(value) if isinstance(value, Mapping) else value)
